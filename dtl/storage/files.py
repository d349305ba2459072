"""Whole files and folders on any filesystem that fsspec reaches."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import glob
import hashlib
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import IO, Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from dtl.config.errors import UserError
from dtl.storage.guards import check_guards
from dtl.storage.hdfs import Hdfs
from dtl.storage.local import Local, read_regular, write_whole
from dtl.storage.places import base_name, filesystem, join
from dtl.storage.retries import ask, naming_full

__all__ = [
    "TooLargeError", "asynchronous", "check_place", "check_writable", "empty_folder", "exists",
    "find_type", "is_file", "local_copy", "modified", "open_at", "put", "read_bytes", "read_start",
    "remove", "replaces_atomically", "sha256", "size", "write_bytes",
]  # fmt: skip

_BLOCK_BYTES = 1 << 22
_MOST_TRIES = 1000
"""Of removing a folder in which somebody else removes files, too."""


class TooLargeError(UserError):
    """A file of more bytes than are to be read."""

    @classmethod
    def of(cls, place: str, n_bytes: int | str, most_bytes: int) -> TooLargeError:
        """Make the error of a place."""
        return cls(f"{place} has {n_bytes} bytes. At most {most_bytes} are read.")


# --- what is there -------------------------------------------------------------------------------


def exists(url: str) -> bool:
    """Return whether a file or folder exists.

    False only if the storage says so: an error is tried again if it may pass, and raised if not.
    """
    return _read_info(url) is not None


def is_file(url: str) -> bool:
    """Return whether a URL is a file, and no folder; raises as `exists`."""
    return find_type(url) == "file"


def find_type(url: str) -> str | None:
    """Return ``file``, ``directory`` or another kind; None if there is nothing."""
    info = _read_info(url)
    return None if info is None else str(info["type"])


def size(url: str) -> int:
    """Return how many bytes a file has."""
    n_bytes = _need_info(url)["size"]
    if n_bytes is None:
        raise OSError(f"{url}: the server does not say how large it is. Download it first.")
    return int(n_bytes)


def modified(url: str) -> int:
    """Return when a file was last changed, in microseconds since 1970; 0 if that is not known."""
    return read_time(_need_info(url))


def read_time(entry: Mapping[str, Any]) -> int:
    """Return of a file's entry when it was last changed, as `modified` does."""
    for name in ("mtime", "LastModified", "modification_time", "modificationTime", "created"):
        match entry.get(name):
            case datetime() as time:
                return round(time.timestamp() * 1e6)
            case int() as milliseconds:  # HDFS's
                return 1000 * milliseconds
            case float() as seconds:
                return round(seconds * 1e6)
    return 0


def sha256(url: str) -> str:
    """Return the SHA-256 of a file in hexadecimal digits; reads it again only if it changed."""
    return _sha256(url, repr(_need_info(url)))


@functools.lru_cache(maxsize=16)
def _sha256(url: str, version: str) -> str:
    fs, path = filesystem(url)

    def read() -> str:
        digest = hashlib.sha256()
        with fs.open(path, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    return ask(fs, url, read)


def _read_info(url: str) -> Mapping[str, Any] | None:
    fs, path = filesystem(url)
    try:
        info: Mapping[str, Any] = ask(fs, url, fs.info, path)
    except NotADirectoryError:  # a file is where its folder would be
        return None
    except FileNotFoundError as error:
        # fsspec's HTTP says so of every error: a server that fails, or none.
        if url.startswith("http") and getattr(error.__cause__, "status", 0) not in (404, 410):
            raise OSError(f"{url}: {error.__cause__}") from error
        return None
    return info


def _need_info(url: str) -> Mapping[str, Any]:
    if (info := _read_info(url)) is None:
        raise FileNotFoundError(f"No such file: {url}.")
    return info


# --- reading -------------------------------------------------------------------------------------


def read_bytes(url: str, most_bytes: int | None = None) -> bytes:
    """Read a whole file; one of more than `most_bytes` is a `TooLargeError`.

    Raises `OSError` for a pipe or a device, which could wait for ever.
    """
    fs, path = filesystem(url)
    if most_bytes is None:
        if isinstance(fs, Local):
            return ask(fs, url, read_regular, path, sys.maxsize)
        return bytes(ask(fs, url, fs.cat_file, path))
    # To an object store, the size is a request of its own.
    if not fs.async_impl and (n_bytes := size(url)) > most_bytes:
        raise TooLargeError.of(url, n_bytes, most_bytes)
    data = read_start(url, most_bytes + 1)
    if len(data) > most_bytes:
        raise TooLargeError.of(url, f"over {most_bytes}", most_bytes)
    return data


def read_start(url: str, n_bytes: int) -> bytes:
    """Read the first bytes of a file; raises as `read_bytes`."""
    fs, path = filesystem(url)
    if isinstance(fs, Local):
        return ask(fs, url, read_regular, path, n_bytes)
    try:
        return bytes(ask(fs, url, cat_range, fs, path, start=0, end=n_bytes))
    except OSError:
        if (_read_info(url) or {}).get("size") == 0:  # S3 refuses any range of an empty object
            return b""
        raise


def cat_range(
    fs: Any, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
) -> Any:
    """Call `cat_file` of a filesystem for a range; of pyarrow's, too."""
    if isinstance(fs, ArrowFSWrapper) and (start, end) != (None, None):
        kwargs["seekable"] = True  # or it opens what cannot seek to 0, and seeks
        if end is not None and end >= 0:  # it takes as much memory as it is asked for
            end = max(min(end, fs.info(path)["size"]), start or 0)
    return fs.cat_file(path, start=start, end=end, **kwargs)


def open_at(url: str, offset: int) -> IO[bytes]:
    """Open a file for reading from an offset on."""
    fs, path = filesystem(url)
    file: IO[bytes] = ask(fs, url, fs.open, path, "rb")
    file.seek(offset)
    return file


@contextlib.contextmanager
def local_copy(url: str) -> Iterator[str]:
    """Yield the path of a file on this machine: the file itself, or a copy for the context."""
    fs, path = filesystem(url)
    _need_info(url)
    if isinstance(fs, LocalFileSystem):
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="dtl-") as copy:
        with naming_full(tempfile.gettempdir()):
            ask(fs, url, fs.get_file, path, copy.name)
        yield copy.name


# --- writing -------------------------------------------------------------------------------------


def write_bytes(url: str, data: bytes) -> None:
    """Write a whole file; a reader finds all of it or none.

    The old file stays until the new one takes its place (see `replaces_atomically`). On a path of
    this machine, file and folder are on disk before this returns.

    Three filesystems have no rename that overwrites: pyarrow's client for ``hdfs://``, an HttpFS
    behind ``webhdfs://``, and those that only fsspec knows. On them the old file goes a moment
    before the new one comes, and a process that is killed in between leaves only a ``.partial``.

    Raises `OSError`, which names the place, if that is full.
    """
    fs, path = filesystem(url)
    check_guards(url)
    with naming_full(url):
        if _shows_whole_files(fs):
            ask(fs, url, fs.pipe_file, path, data)
        else:
            ask(fs, url, _write_whole, fs, path, data)


def replaces_atomically(url: str) -> bool:
    """Return whether a file that is written again can be read at every moment, for certain."""
    return _shows_whole_files(filesystem(url)[0])


def _shows_whole_files(fs: Any) -> bool:
    # Object stores show an object only once it is whole; the others' `pipe_file` renames.
    return isinstance(fs, Local | Hdfs) or bool(fs.async_impl)


def put(source: str, url: str) -> None:
    """Copy a file of this machine, piece by piece; a reader finds all of it or none."""
    fs, path = filesystem(url)
    check_guards(url)

    def copy() -> None:
        with open(source, "rb") as local, _open_whole(fs, path) as file:
            shutil.copyfileobj(local, file, _BLOCK_BYTES)

    with naming_full(url):
        ask(fs, url, copy)


@contextlib.contextmanager
def _open_whole(fs: Any, path: str) -> Iterator[IO[bytes]]:
    if isinstance(fs, Local):
        with write_whole(path) as file:
            yield file
    else:
        with _write_beside(fs, path) as partial, fs.open(partial, "wb") as file:
            yield file


def _write_whole(fs: Any, path: str, data: bytes) -> None:
    with _write_beside(fs, path) as partial:
        fs.pipe_file(partial, data)


@contextlib.contextmanager
def _write_beside(fs: Any, path: str) -> Iterator[str]:
    """Yield a path to write to; it replaces `path` on success and is removed on failure."""
    partial = f"{path}.{uuid.uuid4().hex}.partial"
    fs.makedirs(fs._parent(path), exist_ok=True)
    try:
        yield partial
        _replace(fs, partial, path)
    except BaseException:
        with contextlib.suppress(Exception):
            fs.rm_file(partial)
        raise


def _replace(fs: Any, partial: str, path: str) -> None:
    if isinstance(fs, LocalFileSystem):
        os.replace(partial, path)
        return
    if "webhdfs" in fs.protocol:
        # A NameNode renames over a file if asked, which fsspec's `mv` does not; HttpFS never does.
        fs._call("RENAME", "put", path=partial, destination=path, renameoptions="OVERWRITE")
        if not _is_at(fs, partial):
            return
    if _is_at(fs, path):
        fs.rm_file(path)
    if type(fs).mv is AbstractFileSystem.mv:  # which takes names for patterns
        fs.cp_file(partial, path)
        fs.rm_file(partial)
    else:
        fs.mv(partial, path)


def _is_at(fs: Any, path: str) -> bool:
    try:
        fs.info(path)
    except FileNotFoundError:
        return False
    return True


def check_writable(url: str, option: str = "`out`") -> None:
    """Write and remove a small file in a folder, made where missing, or raise `PermissionError`.

    `option` is what the folder was given as.
    """
    probe = join(url, f".dtl-{uuid.uuid4().hex}.partial")
    try:
        write_bytes(probe, b"dtl")
        remove(probe)
    except KeyboardInterrupt:
        remove(probe)
        raise
    except Exception as error:
        raise PermissionError(
            f"Cannot write to {url}: {str(error).rstrip('.')}. Choose another {option}, or ask for "
            "write permission."
        ) from error


def check_place(url: str, option: str = "`out`") -> None:
    """Raise `PermissionError` if a file cannot be written at a URL; nothing is asked of a root."""
    folder = url.rpartition("/")[0]
    if not folder.rstrip("/").endswith(":"):
        check_writable(folder or "/", option)


# --- removing ------------------------------------------------------------------------------------


def remove(url: str) -> None:
    """Remove a file, or a folder with all that is in it, if it exists."""
    check_guards(url)
    if exists(url):
        _remove(*filesystem(url), url)


def empty_folder(url: str, keep: str) -> None:
    """Empty a folder, but keep one file, and hidden files such as a lock."""
    fs, path = filesystem(url)
    check_guards(url)
    for inside in ask(fs, url, fs.ls, path, detail=False):
        name = base_name(inside)
        if inside.rstrip("/") != path.rstrip("/") and name != keep and not name.startswith("."):
            _remove(fs, inside, join(url, name))


def _remove(fs: Any, path: str, url: str) -> None:
    # These two kinds take a path for a pattern, and would remove others that match it.
    if fs.async_impl or type(fs).rm in (AbstractFileSystem.rm, MemoryFileSystem.rm):
        path = glob.escape(path)
    n_tries = 0
    while True:
        try:
            ask(fs, url, fs.rm, path, recursive=True)
            return
        except FileNotFoundError:
            # Removed by a try that failed; or a file in a folder is gone, and all others stay.
            n_tries += 1
            if not exists(url):
                return
            if n_tries >= _MOST_TRIES:
                raise


# --- for Zarr ------------------------------------------------------------------------------------


def asynchronous(url: str) -> tuple[Any, str]:
    """Return the filesystem and path for Zarr, which runs coroutines on a loop of its own.

    Files on it appear whole; those on paths of this machine are on disk once they are written.
    """
    fs, path = filesystem(url)
    if fs.async_impl:
        scheme = url.split("://", 1)[0]
        return fsspec.filesystem(scheme, asynchronous=True, **fs.storage_options), path
    return _ForZarr(fs, asynchronous=True), path


class _ForZarr(AsyncFileSystemWrapper):  # type: ignore[misc]
    """Filesystem whose files appear whole, and whose transient errors are tried again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        fs = self.sync_fs
        cat_file = functools.partial(cat_range, fs)
        methods = {"cat_file": cat_file, "info": fs.info, "ls": fs.ls, "pipe_file": fs.pipe_file}
        if not isinstance(fs, Local | Hdfs | MemoryFileSystem):
            methods["pipe_file"] = functools.partial(_write_whole, fs)
        for name, method in methods.items():
            # On the object, where the wrapper has put its own.
            setattr(self, f"_{name}", functools.partial(self._call, method))
        self._exists = self._exists_for_certain

    async def _call(self, method: Callable[..., Any], path: str, *args: Any, **kwargs: Any) -> Any:
        fs = self.sync_fs
        place = path if isinstance(fs, Local) else fs.unstrip_protocol(path)
        return await asyncio.to_thread(ask, fs, place, method, path, *args, **kwargs)

    async def _exists_for_certain(self, path: str, **_: Any) -> bool:
        try:
            await self._info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True
