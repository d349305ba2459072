"""Files on any filesystem that fsspec reaches: its only importer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import getpass
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from typing import IO, Any

import fsspec
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from dtl.config.errors import UserError
from dtl.storage.hdfs import Hdfs

__all__ = [
    "absolute", "asynchronous", "base_name", "check_writable", "empty_folder", "exists",
    "filesystem", "is_file", "is_local", "join", "local_copy", "open_at", "put", "read_bytes",
    "read_start", "remove", "remove_partials", "replaces_atomically", "sha256", "size",
    "use_hdfs_client", "walk",
    "write_bytes",
]  # fmt: skip

SCHEMES = ("file", "hdfs", "webhdfs", "s3", "gs", "abfs", "http", "https", "memory")
"""Schemes that messages offer; any other that fsspec knows works too."""

_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")


def filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URL, and the path on it.

    Raises `UserError` for an unknown scheme, and `ImportError`, which names the package, for one
    whose package is not installed.
    """
    scheme = url.split("://", 1)[0] if "://" in url else "file"
    if scheme not in fsspec.available_protocols():
        raise UserError(f"Unknown scheme {scheme}:// in {url!r}. Known: {', '.join(SCHEMES)}.")
    options: dict[str, Any] = {"auto_mkdir": True} if scheme in ("file", "local") else {}
    if scheme in _OBJECT_STORES:
        options["use_listings_cache"] = False  # other processes write to them, too
    if scheme == "webhdfs" and "@" not in url:
        # Hadoop's own clients do the same where Kerberos is off.
        options["user"] = os.environ.get("HADOOP_USER_NAME") or getpass.getuser()
    fs, path = fsspec.core.url_to_fs(url, **options)
    return fs, path


def use_hdfs_client(name: str) -> None:
    """Choose this process's client for ``hdfs://``: "native", or libhdfs through "pyarrow"."""
    client: type = Hdfs
    if name == "pyarrow":
        from fsspec.implementations.arrow import HadoopFileSystem  # imports pyarrow's, too

        client = HadoopFileSystem
    fsspec.register_implementation("hdfs", client, clobber=True)


use_hdfs_client("native")


def absolute(url: str) -> str:
    """Return a URL that means the same place in every process, whatever its working directory.

    Examples
    --------
    >>> absolute("/data/photos/")
    '/data/photos'
    >>> absolute("memory://photos")
    'memory://photos'
    """
    fs, path = filesystem(url)
    return path if isinstance(fs, LocalFileSystem) else url.rstrip("/")


def join(url: str, name: str) -> str:
    """Return the URL of a name in a folder."""
    return f"{url.rstrip('/')}/{name}"


def base_name(url: str) -> str:
    """Return the last part of a URL: the name of a file or folder.

    Examples
    --------
    >>> base_name("hdfs:///data/photos/")
    'photos'
    """
    return url.rstrip("/").rsplit("/", 1)[-1]


def is_local(url: str) -> bool:
    """Return whether a URL is a path of this machine, which other machines may not have."""
    return isinstance(filesystem(url)[0], LocalFileSystem)


def exists(url: str) -> bool:
    """Return whether a file or folder exists."""
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def read_bytes(url: str) -> bytes:
    """Read a whole file."""
    fs, path = filesystem(url)
    return bytes(fs.cat_file(path))


def read_start(url: str, n_bytes: int) -> bytes:
    """Read the first bytes of a file."""
    fs, path = filesystem(url)
    try:
        return bytes(fs.cat_file(path, start=0, end=n_bytes))
    except OSError:
        if fs.exists(path) and fs.size(path) == 0:  # S3 refuses any range of an empty object
            return b""
        raise


def open_at(url: str, offset: int) -> IO[bytes]:
    """Open a file for reading from an offset on."""
    fs, path = filesystem(url)
    file: IO[bytes] = fs.open(path, "rb")
    file.seek(offset)
    return file


def size(url: str) -> int:
    """Return how many bytes a file has."""
    fs, path = filesystem(url)
    return int(fs.size(path))


def is_file(url: str) -> bool:
    """Return whether a URL is a file, and no folder."""
    fs, path = filesystem(url)
    return bool(fs.isfile(path))


def write_bytes(url: str, data: bytes) -> None:
    """Write a whole file; a reader finds all of it or none.

    The old file stays until the new one takes its place (see `replaces_atomically`). Three
    filesystems have no rename that overwrites: pyarrow's client for ``hdfs://``, an HttpFS behind
    ``webhdfs://``, and those that only fsspec knows. On them the old file goes a moment before the
    new one comes, and a process that is killed in between leaves only a ``.partial``.
    """
    fs, path = filesystem(url)
    if _shows_whole_files(fs):
        fs.pipe_file(path, data)
    else:
        _write_whole(fs, path, data)


def replaces_atomically(url: str) -> bool:
    """Return whether a file that is written again can be read at every moment, for certain."""
    fs, _ = filesystem(url)
    return isinstance(fs, LocalFileSystem) or _shows_whole_files(fs)


def _shows_whole_files(fs: Any) -> bool:
    # Object stores show an object only once it is whole; `Hdfs.pipe_file` renames.
    return isinstance(fs, Hdfs) or bool(fs.async_impl)


def put(source: str, url: str) -> None:
    """Copy a file of this machine, piece by piece; a reader finds all of it or none."""
    fs, path = filesystem(url)
    with (
        open(source, "rb") as local,
        _write_beside(fs, path) as partial,
        fs.open(partial, "wb") as file,
    ):
        shutil.copyfileobj(local, file, 1 << 22)


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
        if fs.exists(partial):
            fs.rm(partial)
        raise


def _replace(fs: Any, partial: str, path: str) -> None:
    if isinstance(fs, LocalFileSystem):
        os.replace(partial, path)
        return
    if "webhdfs" in fs.protocol:
        # A NameNode renames over a file if asked, which fsspec's `mv` does not; HttpFS never does.
        fs._call("RENAME", "put", path=partial, destination=path, renameoptions="OVERWRITE")
        if not fs.exists(partial):
            return
    if fs.exists(path):
        fs.rm(path)
    fs.mv(partial, path)


class _WholeFiles(AsyncFileSystemWrapper):  # type: ignore[misc]
    """Filesystem for Zarr on which a file appears whole."""

    async def _pipe_file(self, path: str, value: bytes, *_: Any, **__: Any) -> None:
        await asyncio.to_thread(_write_whole, self.sync_fs, path, value)


@contextlib.contextmanager
def local_copy(url: str) -> Iterator[str]:
    """Yield the path of a file on this machine: the file itself, or a copy for the context."""
    fs, path = filesystem(url)
    if not fs.exists(path):
        raise FileNotFoundError(f"No such file: {url}.")
    if isinstance(fs, LocalFileSystem):
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="dtl-") as copy:
        fs.get_file(path, copy.name)
        yield copy.name


def sha256(url: str) -> str:
    """Return the SHA-256 of a file in hexadecimal digits; reads it again only if it changed."""
    fs, path = filesystem(url)
    if not fs.exists(path):
        raise FileNotFoundError(f"No such file: {url}.")
    return _sha256(url, repr(fs.info(path)))


@functools.lru_cache(maxsize=16)
def _sha256(url: str, version: str) -> str:
    digest = hashlib.sha256()
    fs, path = filesystem(url)
    with fs.open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def remove(url: str) -> None:
    """Remove a file, or a folder with all that is in it, if it exists."""
    fs, path = filesystem(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def empty_folder(url: str, keep: str) -> None:
    """Empty a folder, but keep one file, and hidden files such as a lock."""
    fs, path = filesystem(url)
    for inside in fs.ls(path, detail=False):
        name = base_name(inside)
        if name != keep and not name.startswith("."):
            fs.rm(inside, recursive=True)


def check_writable(url: str) -> None:
    """Write and remove a small file in a folder, made where missing, or raise `PermissionError`."""
    probe = join(url, f".dtl-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"dtl")
        remove(probe)
    except Exception as error:
        raise PermissionError(
            f"Cannot write to {url}: {error}. Choose another `out`, or ask for write permission."
        ) from error


def walk(url: str) -> Iterator[tuple[str, int]]:
    """Yield all files below a folder: path relative to it, size in bytes; sorted within a folder.

    Links to folders are followed; one to a folder above itself is a `UserError`. Raises
    `FileNotFoundError` or `NotADirectoryError` where there is no such folder.
    """
    fs, root = filesystem(url)
    root = root.rstrip("/") or root
    if not fs.exists(root):
        raise FileNotFoundError(f"No such folder: {url}.")
    if not fs.isdir(root):
        raise NotADirectoryError(f"Not a folder: {url}.")
    prefix = len(fs._strip_protocol(root).rstrip("/")) + 1
    for path, size in _walk(fs, root, ()):
        yield path[prefix:], size


def _walk(fs: Any, root: str, above: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    # One folder at a time: details of all files at once would be the driver's largest value.
    for folder, _, files in fs.walk(root, detail=True):
        for name in sorted(files):
            path = f"{folder}/{name}"
            if files[name].get("islink") and fs.isdir(path):  # which fsspec gives as a file
                target = os.path.realpath(path)
                places = (*above, os.path.realpath(folder))
                if any(f"{place}/".startswith(f"{target}/") for place in places):
                    raise UserError(f"{path} links to a folder above itself. Remove the link.")
                yield from _walk(fs, path, places)
            else:
                yield path, int(files[name]["size"])


def remove_partials(url: str) -> None:
    """Remove half-written files that a killed process left below a folder."""
    fs, path = filesystem(url)
    if not fs.async_impl:  # object stores have none, and would take long to list
        for partial in fs.glob(f"{path}/**/*.partial"):
            fs.rm_file(partial)


def asynchronous(url: str) -> tuple[Any, str]:
    """Return the filesystem and path for Zarr, which runs coroutines on a loop of its own."""
    fs, path = filesystem(url)
    if fs.async_impl:
        scheme = url.split("://", 1)[0]
        return fsspec.filesystem(scheme, asynchronous=True, **fs.storage_options), path
    if isinstance(fs, Hdfs | MemoryFileSystem):
        return AsyncFileSystemWrapper(fs, asynchronous=True), path
    return _WholeFiles(fs, asynchronous=True), path
