"""Files of this machine: on disk before a write returns, and never larger than wanted."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from dtl import storage
from dtl.storage import TooLargeError, local
from dtl.storage.local import Local


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and renamed, in order."""
    found: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        found.append("sync " + os.readlink(f"/proc/self/fd/{descriptor}").split(".")[0])
        fsync(descriptor)

    def note_replace(source: str, target: str) -> None:
        found.append(f"replace {target}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    return found


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path: Path, events: list[str]) -> None:
    storage.write_bytes(f"{tmp_path}/a/b/file", b"1")
    assert events == [
        f"sync {tmp_path}", f"sync {tmp_path}/a", f"sync {tmp_path}/a/b/file",
        f"replace {tmp_path}/a/b/file", f"sync {tmp_path}/a/b",
    ]  # fmt: skip
    events.clear()
    (tmp_path / "source").write_bytes(b"2")
    storage.put(f"{tmp_path}/source", f"{tmp_path}/a/b/file")
    assert events == [
        f"sync {tmp_path}/a/b/file", f"replace {tmp_path}/a/b/file", f"sync {tmp_path}/a/b",
    ]  # fmt: skip
    assert (tmp_path / "a/b/file").read_bytes() == b"2"


def test_zarrs_files_are_on_disk_too(tmp_path: Path, events: list[str]) -> None:
    fs, path = storage.asynchronous(str(tmp_path))
    asyncio.run(fs._pipe_file(f"{path}/0", b"1"))
    assert events == [f"sync {tmp_path}/0", f"replace {tmp_path}/0", f"sync {tmp_path}"]


def test_zarrs_files_are_whole_on_other_filesystems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped: list[str] = []
    pipe_file = LocalFileSystem.pipe_file

    def watch(self: LocalFileSystem, path: str, value: bytes, **kwargs: Any) -> None:
        piped.append(path)
        pipe_file(self, path, value, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "pipe_file", watch)
    fsspec.register_implementation("another", LocalFileSystem, clobber=True)
    fs, path = storage.asynchronous(f"another://{tmp_path}")
    asyncio.run(fs._pipe_file(f"{path}/0", b"1"))
    (partial,) = piped
    assert partial.startswith(f"{tmp_path}/0.")
    assert partial.endswith(".partial")
    assert (tmp_path / "0").read_bytes() == b"1"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_without_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, "no fsync")

    monkeypatch.setattr(os, "fsync", refuse)
    storage.write_bytes(f"{tmp_path}/a/b", b"1")
    assert (tmp_path / "a/b").read_bytes() == b"1"


def test_a_sync_that_fails_is_a_write_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{tmp_path}/a", b"old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=rf"{tmp_path}/a cannot be written: no space is left there"):
        storage.write_bytes(f"{tmp_path}/a", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(60 << 30)  # sparse
    url = str(tmp_path / "large")
    said = rf"{url} has 64424509440 bytes\. At most 1000 are read\."
    with pytest.raises(TooLargeError, match=said):
        storage.read_bytes(url, 1000)
    with pytest.raises(TooLargeError, match=said), storage.Reader([url], 1000) as reader:
        reader.read(0)
    assert storage.read_start(url, 10) == bytes(10)
    member = storage.Extent(url, 512, 5000)
    with (
        pytest.raises(TooLargeError, match=rf"{url} from byte 512 has 5000 bytes"),
        storage.Reader([member], 1000) as reader,
    ):
        reader.read(0)


def test_a_file_that_is_not_larger(root: str) -> None:
    url = storage.join(root, "file")
    for data in (b"", b"1", b"12345"):
        storage.write_bytes(url, data)
        assert storage.read_bytes(url, 5) == data
    storage.write_bytes(url, b"123456")
    with pytest.raises(TooLargeError, match=r"/file has (6|over 5) bytes\. At most 5 are read"):
        storage.read_bytes(url, 5)


def test_a_file_that_grows(tmp_path: Path) -> None:
    # Files of /proc have no size, and yet bytes.
    assert storage.read_start("/proc/self/comm", 1) == Path("/proc/self/comm").read_bytes()[:1]
    assert local.read_regular("/proc/self/maps", 1 << 30).count(b"\n") > 10


def test_a_range_of_a_stale_handle_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tar").write_bytes(b"0123456789")
    pread, stale = os.pread, [True, True]

    def read(descriptor: int, n_bytes: int, offset: int) -> bytes:
        if stale and stale.pop():
            raise OSError(errno.ESTALE, "Stale file handle")
        return pread(descriptor, n_bytes, offset)

    monkeypatch.setattr(os, "pread", read)
    with storage.Ranges(str(tmp_path / "tar")) as ranges:
        assert ranges.read(2, 3) == b"234"
    assert isinstance(storage.filesystem(str(tmp_path))[0], Local)
