"""Files on every backend: one conformance check for all of them."""

from __future__ import annotations

import hashlib
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import all_files

from dtl import storage
from dtl.storage import Found, files


def test_files(root: str) -> None:
    url = storage.join(root, "a/b.bin")
    assert not storage.exists(url)
    storage.write_bytes(url, b"0123456789")
    assert storage.exists(url)
    assert storage.read_bytes(url) == b"0123456789"
    assert storage.read_start(url, 4) == b"0123"
    assert storage.read_start(url, 99) == b"0123456789"
    storage.write_bytes(url, b"")
    assert storage.read_bytes(url) == storage.read_start(url, 4) == b""
    assert list(storage.walk(root)) == [Found("a/b.bin", 0)]
    storage.remove(url)
    storage.remove(url)  # which is no error
    assert not storage.exists(url)


def test_a_file_is_digested_again_where_it_has_changed_and_only_there(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = storage.join(root, "weights.npz")
    with pytest.raises(FileNotFoundError, match="No such file"):
        storage.sha256(url)
    for data in (b"one", b"another"):
        storage.write_bytes(url, data)
        expected = hashlib.sha256(data).hexdigest()
        assert storage.sha256(url) == expected
    monkeypatch.setattr(hashlib, "sha256", None)
    assert storage.sha256(url) == expected


def test_an_interrupted_write_leaves_the_old_file(root: str) -> None:
    url = storage.join(root, "a.json")
    storage.write_bytes(url, b"old")
    with pytest.raises(TypeError):
        storage.write_bytes(url, 5)  # fails when the file is already open
    assert all_files(root) == {"a.json": b"old"}


def test_the_old_file_is_there_until_the_new_one_is(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if root.startswith("memory://"):
        pytest.skip("what is in memory goes with the process in any case")
    url = storage.join(root, "a.json")
    storage.write_bytes(url, b"old")
    fs, _ = storage.filesystem(url)
    for name in ("rm", "rm_file"):
        monkeypatch.setattr(fs, name, None)
    storage.write_bytes(url, b"new")
    assert all_files(root) == {"a.json": b"new"}


def test_which_places_replace_at_once_for_certain(root: str) -> None:
    in_two_steps = root.startswith(("memory://", "webhdfs://"))  # behind webhdfs:// may be HttpFS
    assert storage.replaces_atomically(storage.join(root, "a.json")) is not in_two_steps


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    url = str(tmp_path / "a.json")
    storage.write_bytes(url, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            storage.write_bytes(url, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert all_files(str(tmp_path)) == {"a.json": b"old"}


def test_sha256(root: str) -> None:
    url = storage.join(root, "weights.npz")
    data = np.random.default_rng(0).bytes(9_000_000)  # more than a block
    storage.write_bytes(url, data)
    assert storage.sha256(url) == hashlib.sha256(data).hexdigest()
    with pytest.raises(FileNotFoundError, match=r"No such file: .*/nothing\.npz\."):
        storage.sha256(storage.join(root, "nothing.npz"))


def test_local_copy(root: str) -> None:
    url = storage.join(root, "weights.h5")
    storage.write_bytes(url, b"weights")
    with storage.local_copy(url) as path:
        with open(path, "rb") as file:
            assert file.read() == b"weights"
        assert (path == url) == storage.is_local(url)
    assert os.path.exists(path) == storage.is_local(url)  # a copy is gone, the file itself is not
    with (
        pytest.raises(FileNotFoundError, match=r"No such file: .*/no\.h5\."),
        storage.local_copy(storage.join(root, "no.h5")),
    ):
        pass


def test_check_writable(root: str) -> None:
    url = storage.join(root, "out/deep")
    storage.check_writable(url)
    storage.write_bytes(storage.join(url, "a"), b"")  # S3 has no empty folders to walk through
    assert [found.path for found in storage.walk(root)] == ["out/deep/a"]


def test_an_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    # Root may write anywhere, but not below a file.
    with pytest.raises(PermissionError, match=r"Cannot write to .*/file/out: .* another `out`, or"):
        storage.check_writable(str(tmp_path / "file" / "out"))


@pytest.mark.parametrize("n_gone", [1, 5])
@pytest.mark.parametrize("remove", [storage.remove, lambda url: storage.empty_folder(url, "x")])
def test_nothing_is_left_of_a_folder_of_which_others_remove_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remove: Callable[[str], None], n_gone: int
) -> None:
    for number in range(40):
        storage.write_bytes(f"{tmp_path}/out/a/{number}", b"")
    unlink, unlinked = os.unlink, []

    def unlink_twice(path: Any, **kwargs: Any) -> None:
        unlinked.append(path)
        if len(unlinked) % 5 == 0 and len(unlinked) <= 5 * n_gone:
            unlink(path, **kwargs)
        unlink(path, **kwargs)

    monkeypatch.setattr(os, "unlink", unlink_twice)
    remove(f"{tmp_path}/out")
    assert [path.name for path in tmp_path.rglob("*") if path.name != "out"] == []


def test_a_removal_that_never_ends_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove_nothing(path: str, **_: Any) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr(storage.filesystem(str(tmp_path))[0], "rm", remove_nothing)
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        storage.remove(str(tmp_path))


def test_unknown_scheme() -> None:
    with pytest.raises(ValueError, match=r"Unknown scheme hfds:// in 'hfds://a/b'\. Known: file, "):
        storage.filesystem("hfds://a/b")


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("photos/") == str(tmp_path / "photos")
    assert storage.absolute("file:///data/photos") == "/data/photos"
    assert storage.absolute("memory://photos/") == "memory://photos"
    assert storage.is_local("photos")
    assert not storage.is_local("memory://photos")


def test_walk(root: str) -> None:
    for path in ("b/2.jpg", "b/1.jpg", "a/deep/er/3.jpg", "c.txt"):
        storage.write_bytes(storage.join(root, path), path.encode())
    found = list(storage.walk(root))
    assert found == [
        Found("c.txt", 5), Found("a/deep/er/3.jpg", 15), Found("b/1.jpg", 7), Found("b/2.jpg", 7),
    ]  # fmt: skip
    assert list(storage.walk(f"{root}/")) == found
    assert list(storage.walk(storage.join(root, "b"))) == [Found("1.jpg", 7), Found("2.jpg", 7)]


def test_a_walk_tells_when_each_file_was_changed(root: str) -> None:
    url, before = storage.join(root, "a/1.jpg"), time.time() - 2  # S3 knows the second
    storage.write_bytes(url, b"1")
    (found,) = storage.walk(root)
    assert found.modified == storage.modified(url)
    assert before <= found.modified / 1e6 <= time.time() + 2


def test_walk_of_nothing(root: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"No such folder: .*/none\."):
        list(storage.walk(storage.join(root, "none")))
    url = storage.join(root, "photo.jpg")
    storage.write_bytes(url, b"x")
    with pytest.raises(NotADirectoryError, match=r"Not a folder: .*/photo\.jpg\."):
        list(storage.walk(url))


def test_an_interrupt_leaves_no_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = files.write_bytes

    def interrupted(url: str, data: bytes) -> None:
        write(url, data)
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        storage.check_writable(str(tmp_path))
    assert [*tmp_path.iterdir()] == []
