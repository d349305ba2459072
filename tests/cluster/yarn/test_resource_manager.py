"""Faults of the Hadoop client on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dtl.cluster.yarn import resource_manager


def test_no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HADOOP_CONF_DIR", raising=False)
    message = r"HADOOP_CONF_DIR must name .*; it is not set\. For example: export HADOOP_CONF_DIR="
    with pytest.raises(FileNotFoundError, match=message):
        resource_manager.check_client()
    monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} has no yarn-site\.xml"):
        resource_manager.check_client()


def test_no_java(monkeypatch: pytest.MonkeyPatch, conf_dir: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("HADOOP_CONF_DIR", str(conf_dir))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(FileNotFoundError, match=r"No Java found.*JAVA_HOME \(now: not set\)"):
        resource_manager.check_client()
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    with pytest.raises(FileNotFoundError, match=r"No Java found.*JAVA_HOME \(now: /nowhere\)"):
        resource_manager.check_client()


def test_no_hadoop_client(monkeypatch: pytest.MonkeyPatch, conf_dir: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("HADOOP_CONF_DIR", str(conf_dir))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    (tmp_path / "java").write_text("#!/bin/sh\n")
    (tmp_path / "java").chmod(0o755)
    with pytest.raises(FileNotFoundError, match=r"No `yarn` command on PATH"):
        resource_manager.check_client()


# skein leaves its log and a pipe open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_java_does_not_start(
    monkeypatch: pytest.MonkeyPatch, conf_dir: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("HADOOP_CONF_DIR", str(conf_dir))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    for name, does in (("java", "echo the heap is too small >&2; exit 1"), ("yarn", "echo x")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    message = r"YARN's client did not start: .*\nthe heap is too small"
    with pytest.raises(ConnectionError, match=message), resource_manager.connect_to_yarn():
        pass


def test_without_the_extra() -> None:
    code = (
        "import sys\n"
        "sys.modules['skein'] = None\n"
        "from dtl import config\n"
        "from dtl.cluster import connection\n"
        "with connection.connect(config.build({'cluster': {'address': 'yarn'}}).cluster): pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        "MissingExtraError: YARN needs the package skein. In dtl's folder: pip install -e '.[yarn]'"
        in done.stderr
    )
