"""The archive of the environment: it works elsewhere, is made once, and is looked at before use."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from helpers import small_environment

from dtl.cluster import environment


def pack(python: Path, url: Path) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "dtl.pipeline", "pack-environment", "--out", url]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The interpreter of a small environment, and the archive of it."""
    folder = tmp_path_factory.mktemp("packed")
    python = small_environment(folder / "venv")
    done = pack(python, folder / "out" / "env.tar")
    assert done.returncode == 0, done.stderr
    return python, folder / "out" / "env.tar"


@pytest.mark.slow
def test_the_archive_works_in_any_folder(packed: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(packed[1]) as tar:
        tar.extractall(tmp_path / "elsewhere", filter="tar")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    code = "import sys, json, ssl, ctypes, dtl.pipeline, yaml; print(sys.prefix, dtl.__file__)"
    done = subprocess.run(
        [tmp_path / "link" / "bin" / "python", "-c", code],
        capture_output=True, text=True, check=False, cwd="/", env={},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    prefix, module = done.stdout.split()
    assert prefix == str(tmp_path / "elsewhere")
    assert module.startswith(prefix)


@pytest.mark.slow
def test_an_unchanged_environment_is_not_packed_again(packed: tuple[Path, Path]) -> None:
    python, url = packed
    before = url.stat()
    again = pack(python, url)
    assert again.stdout == f"Environment: {url} (there already, unchanged)\n"
    assert url.stat() == before
    (site,) = (python.parents[1] / "lib").glob("python*/site-packages")
    (site / "new.py").write_text("")
    (site / "new.h").write_text("for compilers only")
    assert pack(python, url).stdout == f"Environment: {url}\n"
    with tarfile.open(url) as tar:
        assert tar.getnames() == ["bin/python", "environment.tar.gz"]
        with tarfile.open(fileobj=tar.extractfile("environment.tar.gz")) as inner:
            names = inner.getnames()
    assert any(name.endswith("site-packages/new.py") for name in names)
    assert not any(name.endswith(".h") for name in names)


def test_what_is_broken_is_named(packed: tuple[Path, Path], tmp_path: Path) -> None:
    content, record = packed[1].read_bytes(), Path(f"{packed[1]}.json").read_bytes()
    url = tmp_path / "env.tar"
    again = r"Make it with `dtl pack-environment`\."
    with pytest.raises(FileNotFoundError, match=rf"no such file: {url}\. {again}"):
        environment.check(str(url))
    Path(f"{url}.json").write_bytes(record)
    url.write_bytes(content)
    environment.check(str(url))
    url.write_bytes(content[:-1])
    size = json.loads(record)["size_bytes"]
    message = rf"has {size - 1} bytes, but was packed with {size}\. It is broken\. {again}"
    with pytest.raises(ValueError, match=message):
        environment.check(str(url))


@pytest.mark.parametrize("ending", environment.ENDINGS)
@pytest.mark.parametrize(
    "content",
    [b"", b"no archive" * 100, gzip.compress(b"no tar" * 100)],
    ids=["empty", "text", "compressed text"],  # what gzip writes has the time in it
)
def test_what_is_no_archive_is_named(tmp_path: Path, ending: str, content: bytes) -> None:
    url = tmp_path / f"env{ending}"
    url.write_bytes(content)
    again = "with `dtl pack-environment`" if ending == ".tar" else "again with `conda pack`"
    with pytest.raises(ValueError, match=rf"{url} is not an archive, or broken\. Make .*{again}"):
        environment.check(str(url))


def test_archives_that_others_made_will_do(tmp_path: Path) -> None:
    for ending, mode in ((".tar", "w"), (".tgz", "w:gz"), (".tar.gz", "w:gz")):
        with tarfile.open(tmp_path / f"env{ending}", mode) as tar:  # type: ignore[call-overload]
            tar.add(sys.executable, "bin/python")
        environment.check(str(tmp_path / f"env{ending}"))


def test_another_ending(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.tar\. Received: '.*env\.zip'"):
        environment.pack(str(tmp_path / "env.zip"))


def test_an_environment_of_conda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conda-meta").mkdir()
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    with pytest.raises(ValueError, match=rf"{tmp_path} is conda's\. Pack it with `conda pack`"):
        environment.pack(str(tmp_path / "env.tar"))
