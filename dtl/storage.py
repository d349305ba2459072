"""Files, wherever fsspec reaches: its only importer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import getpass
import hashlib
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import IO, Any

import fsspec
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from dtl import hdfs, tars
from dtl.hdfs import Hdfs
from dtl.types import Extent

SCHEMES = ("file", "hdfs", "webhdfs", "s3", "gs", "abfs", "http", "https", "memory")
"""What messages offer; any other protocol that fsspec knows works too."""

LEDGER = "_dtl_images.json"
"""Beside images that were packed or fetched: what they are of, and whether all of it is there."""

_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")


_SPAN_BYTES = 1 << 20
"""Read at once from a tar: a request takes about as long as half of it."""
_AHEAD_BYTES = 256 << 10
"""Read on for from one header of a tar to the next, where it is not on this machine."""


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, and the path on it.

    Raises
    ------
    ValueError
        For a scheme that fsspec does not know.
    ImportError
        For one whose package is not installed; the message names it.
    """
    scheme = url.split("://", 1)[0] if "://" in url else "file"
    if scheme not in fsspec.available_protocols():
        raise ValueError(f"Unknown scheme {scheme}:// in {url!r}. Known: {', '.join(SCHEMES)}.")
    options: dict[str, Any] = {"auto_mkdir": True} if scheme in ("file", "local") else {}
    if scheme in _OBJECT_STORES:
        options["use_listings_cache"] = False  # other processes write there, too
    if scheme == "webhdfs" and "@" not in url:
        # As Hadoop's own clients: without Kerberos, the user is who says so.
        options["user"] = os.environ.get("HADOOP_USER_NAME") or getpass.getuser()
    fs, path = fsspec.core.url_to_fs(url, **options)
    return fs, path


def use_hdfs_client(name: str) -> None:
    """Choose this process's client for ``hdfs://``.

    Parameters
    ----------
    name : {"native", "pyarrow"}
        hdfs-native, or libhdfs with its JVM and class path, which pyarrow loads.
    """
    client: type = Hdfs
    if name == "pyarrow":
        from fsspec.implementations.arrow import HadoopFileSystem  # imports pyarrow's, too

        client = HadoopFileSystem
    fsspec.register_implementation("hdfs", client, clobber=True)


use_hdfs_client("native")


def absolute(url: str) -> str:
    """The same place for every process, whatever its working directory.

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
    """The URL of a name in a folder."""
    return f"{url.rstrip('/')}/{name}"


def is_local(url: str) -> bool:
    """Whether a URL is a path of this machine, which other machines may not have."""
    return isinstance(filesystem(url)[0], LocalFileSystem)


def exists(url: str) -> bool:
    """Whether there is a file or a folder."""
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def read_bytes(url: str) -> bytes:
    """A whole file."""
    fs, path = filesystem(url)
    return bytes(fs.cat_file(path))


def read_start(url: str, n_bytes: int) -> bytes:
    """The first bytes of a file."""
    fs, path = filesystem(url)
    try:
        return bytes(fs.cat_file(path, start=0, end=n_bytes))
    except OSError:
        if fs.exists(path) and fs.size(path) == 0:  # S3 refuses any range of an empty object
            return b""
        raise


class Ranges:
    """Byte ranges of one file: one open handle, which threads share."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._path = filesystem(url)
        self._file = None
        if isinstance(self._fs, LocalFileSystem | Hdfs):
            with self._translated():
                self._file = self._fs.open(self._path, "rb")

    def __enter__(self) -> Ranges:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Read from an offset; fewer bytes at the end of the file."""
        if self._file is None:  # what is a request each in any case
            return bytes(self._fs.cat_file(self._path, start=offset, end=offset + n_bytes))
        if isinstance(self._fs, LocalFileSystem):
            return os.pread(self._file.fileno(), n_bytes, offset)
        with self._translated():
            n_bytes = max(min(n_bytes, len(self._file) - offset), 0)
            return bytes(self._file.read_range(offset, n_bytes))

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise hdfs.translate(error, self.url) from error

    def window(self) -> tars.Window:
        """What reads the headers of a tar."""
        local = isinstance(self._fs, LocalFileSystem)
        return tars.Window(self.read, size(self.url), 0 if local else _AHEAD_BYTES)


class Reader:
    """Files and extents of tars, each read once, by several threads.

    Every tar is opened once, and neighbours in it are one request.

    Parameters
    ----------
    files : sequence of str or Extent
        In the order in which they are read, more or less: what is read at once is kept until the
        last of it is asked for.
    """

    def __init__(self, files: Sequence[str | Extent]) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._tars: dict[str, Ranges] = {}
        self._spans: dict[int, _Span] = {}
        for rows in tars.spans(files, _SPAN_BYTES):
            if isinstance(files[rows.start], Extent):
                self._spans |= dict.fromkeys(rows, _Span(rows))

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in self._tars.values():
            opened.__exit__()

    def read(self, row: int) -> bytes:
        """Read one file's bytes.

        Raises
        ------
        OSError
            As the storage does; and if a tar is shorter than it was.
        """
        file = self._files[row]
        if isinstance(file, str):
            return read_bytes(file)
        span = self._spans.pop(row)
        with span.lock:
            last = self._files[span.rows.stop - 1]
            first = self._files[span.rows.start]
            assert isinstance(first, Extent)
            assert isinstance(last, Extent)
            if span.data is None:
                end = last.offset + last.n_bytes
                span.data = self._open(file.url).read(first.offset, end - first.offset)
            start = file.offset - first.offset
            data = span.data[start : start + file.n_bytes]
        if len(data) < file.n_bytes:
            raise OSError(
                f"{file.url} has {len(data)} of {file.n_bytes} bytes at {file.offset}. It was "
                "changed since it was listed: start again."
            )
        return data

    def _open(self, url: str) -> Ranges:
        with self._lock:
            if url not in self._tars:
                self._tars[url] = Ranges(url)
            return self._tars[url]


class _Span:
    """Rows of one request, and its bytes as long as one of them is to be taken."""

    def __init__(self, rows: range) -> None:
        self.rows = rows
        self.lock = threading.Lock()
        self.data: bytes | None = None


def read_file(file: str | Extent) -> bytes:
    """A file's bytes, or a tar member's."""
    with Reader([file]) as reader:
        return reader.read(0)


def open_at(url: str, offset: int) -> IO[bytes]:
    """Open a file to be read from an offset on."""
    fs, path = filesystem(url)
    file: IO[bytes] = fs.open(path, "rb")
    file.seek(offset)
    return file


def size(url: str) -> int:
    """A file's bytes."""
    fs, path = filesystem(url)
    return int(fs.size(path))


def is_file(url: str) -> bool:
    """Whether there is a file, and no folder."""
    fs, path = filesystem(url)
    return bool(fs.isfile(path))


def write_bytes(url: str, data: bytes) -> None:
    """Write a whole file, so that whoever reads it finds all of it or none.

    Notes
    -----
    What was there before stays until the new file takes its place (`replaces_at_once`), but where a
    filesystem has no rename that overwrites: with pyarrow's client for ``hdfs://``, with an HttpFS
    behind ``webhdfs://``, and in filesystems that only fsspec knows. There the old file goes a
    moment before the new one comes, and a process that is killed in between leaves only a
    ``.partial``.
    """
    fs, path = filesystem(url)
    if _shows_whole_files(fs):
        fs.pipe_file(path, data)
    else:
        _write_whole(fs, path, data)


def replaces_at_once(url: str) -> bool:
    """Whether a file that is written anew is there at every moment, for certain."""
    fs, _ = filesystem(url)
    return isinstance(fs, LocalFileSystem) or _shows_whole_files(fs)


def _shows_whole_files(fs: Any) -> bool:
    # Object stores show an object only once it is whole; `Hdfs` sees to it.
    return isinstance(fs, Hdfs) or bool(fs.async_impl)


def put(source: str, url: str) -> None:
    """Copy a file of this machine, piece by piece; whoever reads it finds all of it or none."""
    fs, path = filesystem(url)
    with (
        _partial(fs, path) as partial, open(source, "rb") as local, fs.open(partial, "wb") as file
    ):  # fmt: skip
        shutil.copyfileobj(local, file, 1 << 22)


def _write_whole(fs: Any, path: str, data: bytes) -> None:
    with _partial(fs, path) as partial:
        fs.pipe_file(partial, data)


@contextlib.contextmanager
def _partial(fs: Any, path: str) -> Iterator[str]:
    """A path to write to, that takes the place of `path` if all goes well, and else goes."""
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


class _Whole(AsyncFileSystemWrapper):  # type: ignore[misc]
    """For Zarr: a filesystem whose files are whole or not there."""

    async def _pipe_file(self, path: str, value: bytes, *_: Any, **__: Any) -> None:
        await asyncio.to_thread(_write_whole, self.sync_fs, path, value)


@contextlib.contextmanager
def local_copy(url: str) -> Iterator[str]:
    """The path of a file on this machine: the file itself, or a copy that goes afterwards."""
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
    """Of a file's bytes, as hexadecimal digits; read again only where it has changed."""
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
    """Remove a file or a folder with all in it, if it is there."""
    fs, path = filesystem(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def clear(url: str) -> None:
    """Remove all that is in a folder, but hidden files, such as a lock."""
    fs, path = filesystem(url)
    for inside in fs.ls(path, detail=False):
        if not inside.rstrip("/").rsplit("/", 1)[-1].startswith("."):
            fs.rm(inside, recursive=True)


def check_writable(url: str) -> None:
    """Write and remove a small file in a folder, making it where it is missing.

    Raises
    ------
    PermissionError
        With the folder's name and the filesystem's own reason.
    """
    probe = join(url, f".dtl-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"dtl")
        remove(probe)
    except Exception as error:
        raise PermissionError(
            f"Cannot write to {url}: {error}. Choose another --out, or ask for write permission."
        ) from error


def walk(url: str) -> Iterator[tuple[str, int]]:
    """All files below a folder: path relative to it, size in bytes; sorted within a folder.

    Links to folders are followed.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder.
    ValueError
        If a link leads to a folder above itself.
    """
    fs, root = filesystem(url)
    root = root.rstrip("/") or root
    if not fs.exists(root):
        raise FileNotFoundError(f"No such folder: {url}. Check --images.")
    if not fs.isdir(root):
        raise NotADirectoryError(f"Not a folder: {url}. --images takes the folder of the classes.")
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
                    raise ValueError(f"{path} links to a folder above itself. Remove the link.")
                yield from _walk(fs, path, places)
            else:
                yield path, int(files[name]["size"])


def clean(url: str) -> None:
    """Remove the half-written files that a killed process left below a folder."""
    fs, path = filesystem(url)
    if not fs.async_impl:  # object stores have none, and listing them all takes long
        for partial in fs.glob(f"{path}/**/*.partial"):
            fs.rm_file(partial)


def asynchronous(url: str) -> tuple[Any, str]:
    """The filesystem and path for Zarr, which runs coroutines on a loop of its own."""
    fs, path = filesystem(url)
    if fs.async_impl:
        scheme = url.split("://", 1)[0]
        return fsspec.filesystem(scheme, asynchronous=True, **fs.storage_options), path
    if isinstance(fs, Hdfs | MemoryFileSystem):
        return AsyncFileSystemWrapper(fs, asynchronous=True), path
    return _Whole(fs, asynchronous=True), path
