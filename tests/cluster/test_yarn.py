"""What is asked of YARN, and what can be refused without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dtl import config
from dtl.cluster.yarn import capacity, resource_manager, specification

ROOT = Path(__file__).parents[2]


@pytest.fixture
def conf_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "conf"
    folder.mkdir()
    for name in ("core-site.xml", "hdfs-site.xml", "yarn-site.xml"):
        (folder / name).write_text("<configuration/>")
    return folder


def test_the_specification_shown_is_what_the_code_makes(conf_dir: Path) -> None:
    asked = config.build(
        {
            "cluster": {"n_workers": 4},
            "yarn": {"environment": "hdfs:///user/me/dtl-env.tar", "env": ["A=1"]},
        }
    )
    made = specification.make_specification(
        asked.cluster,
        asked.yarn,
        str(conf_dir),
        driver=["run", "--config", "dtl.toml"],
        driver_files=["/tmp/dtl.toml"],
    )
    text = made.to_yaml().replace(str(conf_dir), "/etc/hadoop/conf")
    shown = (ROOT / "deploy" / "yarn" / "specification.yaml").read_text()
    comment = "".join(line for line in shown.splitlines(True) if line.startswith("#"))
    assert shown == comment + text, f"write {comment + text!r}"


def test_options_reach_the_specification(conf_dir: Path) -> None:
    asked = config.build(
        {
            "cluster": {"n_workers": 2, "threads_per_worker": 3, "memory_limit": "5GiB"},
            "yarn": {
                "name": "n", "queue": "q", "node_label": "l", "environment": "/opt/my env/",
                "worker_memory": "6 GiB", "worker_vcores": 4, "worker_gpus": 1,
                "adaptive_max": 5, "env": ["B=x=y", "TF_NUM_INTRAOP_THREADS=7"],
                "files": ["hdfs:///a/weights.h5"],
            },
        }
    )  # fmt: skip
    made = specification.make_specification(
        asked.cluster, asked.yarn, str(conf_dir), file_systems=["hdfs://b"]
    )
    assert (made.name, made.queue, made.node_label) == ("n", "q", "l")
    assert made.file_systems == ["hdfs://b"]
    assert set(made.services) == {"dask.scheduler", "dask.worker"}
    worker, scheduler = made.services["dask.worker"], made.services["dask.scheduler"]
    assert (worker.resources.memory, worker.resources.vcores, worker.resources.gpus) == (6144, 4, 1)
    assert worker.instances == 2
    assert worker.max_restarts == -1
    assert worker.depends == {"dask.scheduler"}
    assert worker.env["TF_NUM_INTRAOP_THREADS"] == "7"  # the user's own wins
    assert worker.env["B"] == "x=y"
    assert worker.env["OMP_NUM_THREADS"] == "1"  # as Dask's nanny has it
    assert set(worker.files) == {"core-site.xml", "hdfs-site.xml", "weights.h5"}
    assert "--nthreads 3" in worker.script
    assert f"--memory-limit {5 << 30}" in worker.script
    assert "'/opt/my env/bin/python'" in worker.script
    assert "--min-workers 2 --max-workers 5" in scheduler.script


def test_the_running_environment_is_the_default(conf_dir: Path) -> None:
    asked = config.build({})
    made = specification.make_specification(asked.cluster, asked.yarn, str(conf_dir))
    assert f"exec {sys.prefix}/bin/python -m" in made.services["dask.worker"].script
    assert made.services["dask.worker"].env["TF_NUM_INTRAOP_THREADS"] == "2"  # its vcores


@pytest.mark.parametrize(
    ("cluster", "options", "message"),
    [
        ({}, {"worker_memory": "2GiB"},
         r"A worker with the network needs 2\.5 GiB, but yarn\.worker_memory gives it 2\.0 GiB\. "
         r"Raise `yarn\.worker_memory`\."),
        ({"memory_limit": "1GiB"}, {}, r"cluster\.memory_limit gives it 1\.0 GiB\. Raise "
         r"`cluster\.memory_limit`\."),
        ({"memory_limit": "5GiB"}, {}, r"cluster\.memory_limit = 5GiB is more than the container "
         r"has, yarn\.worker_memory = 4GiB: YARN would kill it\. Raise `yarn\.worker_memory`"),
    ],
)  # fmt: skip
def test_memory_that_does_not_suffice(
    cluster: dict[str, str], options: dict[str, str], message: str
) -> None:
    asked = config.build({"cluster": cluster, "yarn": options})
    with pytest.raises(ValueError, match=message):
        capacity.check_worker_memory(asked.cluster, asked.yarn, lambda: 5 << 29)


def test_memory_that_suffices() -> None:
    asked = config.build({})
    capacity.check_worker_memory(asked.cluster, asked.yarn, lambda: 5 << 29)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"worker_memory": "4"}, r"yarn\.worker_memory must be .*such as 4GiB. Received: '4'"),
        ({"env": ["A"]}, r"yarn\.env must be texts of the form NAME=VALUE. Received: \('A',\)"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.build({"yarn": options})
