"""Files and the feature store, wherever fsspec reaches: the only importer of fsspec and Zarr."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import hashlib
import os
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import fsspec
import numpy as np
import zarr
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from numpy.typing import ArrayLike, NDArray
from zarr.codecs import ZstdCodec
from zarr.storage import FsspecStore, LocalStore

from dtl import hdfs, tars
from dtl.hdfs import Hdfs
from dtl.types import DONE, NO_SPLIT, PENDING, SKIPPED, Extent, ImageList

SCHEMES = ("file", "hdfs", "webhdfs", "s3", "gs", "abfs", "http", "https", "memory")
"""What messages offer; any other protocol that fsspec knows works too."""

LEDGER = "_dtl_images.json"
"""Beside images that were packed or fetched: what they are of, and whether all of it is there."""

# Columns that the driver writes at once lie in files of about this many rows: HDFS takes half a
# second to close a file, however small.
_ROWS_A_FILE = 65_536

_LIST_COLUMNS = {"path": "str", "label": "int32", "given_split": "int8", "split": "int8"}
_TASK_COLUMNS = {"content_hash": "uint64", "error": "str", "status": "int8"}
_TAR_COLUMNS = {"shard": "int32", "offset": "int64", "size_bytes": "int64"}

_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")


_SPAN_BYTES = 1 << 20
"""Read at once from a tar: a request takes about as long as half of it."""
_AHEAD_BYTES = 256 << 10
"""Read on for from one header of a tar to the next, where it is not on this machine."""


# --- files ---------------------------------------------------------------------------------------


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
    client: Any = {"native": Hdfs, "pyarrow": "fsspec.implementations.arrow.HadoopFileSystem"}
    fsspec.register_implementation("hdfs", client[name], clobber=True)


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
    """Write a whole file, so that whoever reads it finds all of it or none."""
    fs, path = filesystem(url)
    if isinstance(fs, Hdfs) or (not isinstance(fs, LocalFileSystem) and fs.async_impl):
        # Object stores show an object only once it is whole; `Hdfs` sees to it.
        fs.pipe_file(path, data)
    else:
        _write_whole(fs, path, data)


def _write_whole(fs: Any, path: str, data: bytes) -> None:
    partial = f"{path}.{uuid.uuid4().hex}.partial"
    fs.makedirs(fs._parent(path), exist_ok=True)
    try:
        fs.pipe_file(partial, data)
        if isinstance(fs, LocalFileSystem):
            os.replace(partial, path)
        else:
            if fs.exists(path):
                fs.rm_file(path)
            fs.mv(partial, path)
    except BaseException:
        if fs.exists(partial):
            fs.rm_file(partial)
        raise


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
    """Of a file's bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    fs, path = filesystem(url)
    if not fs.exists(path):
        raise FileNotFoundError(f"No such file: {url}.")
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


# --- the feature store ---------------------------------------------------------------------------


class FeatureStore:
    """Rows of images: features, labels, and the ledger of what is done.

    A Zarr v3 group. Every array has one row an image, along the dimension ``image``, in chunks of
    `chunk_images` rows:

    ================  ==========================  =================================================
    a layer's name    (n_images, n_features)      float32 or float16
    ``path``          (n_images,) str             relative to the listed root
    ``label``         (n_images,) int32           index into ``class_names``
    ``given_split``   (n_images,) int8            what the source's folders say of the split
    ``split``         (n_images,) int8            0 train, 1 validation, 2 test, -1 none
    ``content_hash``  (n_images,) uint64          of the file's bytes; 0 if they could not be read
    ``error``         (n_images,) str             why a row was skipped
    ``status``        (n_images,) int8            0 pending, 1 done, 2 skipped
    ================  ==========================  =================================================

    Where images lie in tars, there are ``shard``, ``offset`` and ``size_bytes``, too, and the
    attribute ``shards``, as in `ImageList`.

    A chunk's ``status`` is written after all else of the chunk: it says that the chunk is whole.
    The attributes hold ``class_names``, ``settings`` (all that the features depend on) and what
    made them. The object pickles without its data, so tasks carry it.
    """

    def __init__(self, url: str, group: zarr.Group) -> None:
        self.url = url
        self._group = group
        self.attrs: dict[str, Any] = dict(group.attrs)

    @classmethod
    def create(
        cls,
        url: str,
        images: ImageList,
        layers: Mapping[str, int],
        *,
        dtype: str,
        chunk_images: int,
        attrs: Mapping[str, Any],
    ) -> FeatureStore:
        """Make an empty store, over whatever lies there.

        Parameters
        ----------
        layers : mapping of layer name to n_features
        attrs : mapping
            The attributes; ``class_names`` is added. Written last: without them, a store was
            interrupted while it was made, and `open` says so.
        """
        remove(url)
        n_images = len(images)
        group = zarr.create_group(_zarr_store(url), zarr_format=3, attributes={"dtl": "unfinished"})
        for name, kind in (_LIST_COLUMNS | _TASK_COLUMNS).items():
            _create_column(group, name, kind, n_images, chunk_images)
        for name, n_features in layers.items():
            group.create_array(
                name,
                shape=(n_images, n_features),
                dtype=dtype,
                chunks=(chunk_images, n_features),
                compressors=ZstdCodec(level=1),
                fill_value=0,
                dimension_names=("image", f"{name}_feature" if len(layers) > 1 else "feature"),
            )
        store = cls(url, group)
        for name in ("path", "label", "given_split"):
            store._array(name)[:] = getattr(images, name)
        store.write_places(images)
        tar_attrs = {"shards": list(images.shards)} if images.shards else {}
        class_names = list(images.class_names)
        group.attrs.put({**attrs, **tar_attrs, "class_names": class_names, "dtl": "features"})
        store.attrs = dict(group.attrs)
        return store

    @classmethod
    def open(cls, url: str) -> FeatureStore:
        """Open a store.

        Raises
        ------
        FileNotFoundError
            If nothing is there, or a store whose making was interrupted (no work is in it yet).
        ValueError
            If something else is there.
        """
        if not exists(url):
            raise FileNotFoundError(f"No feature store at {url}. Run the featurize stage first.")
        try:
            group = zarr.open_group(_zarr_store(url), mode="r+", zarr_format=3)
        except FileNotFoundError:
            fs, path = filesystem(url)
            if fs.isdir(path) and not fs.ls(path):
                raise FileNotFoundError(f"The feature store at {url} is empty.") from None
            raise ValueError(
                f"{url} is no feature store: it has no zarr.json. "
                "Choose another --out, or --overwrite to replace it."
            ) from None
        except (ValueError, FileExistsError, NotADirectoryError) as error:
            raise ValueError(
                f"{url} is no feature store: {error} "
                "Choose another --out, or --overwrite to replace it."
            ) from error
        made_by = group.attrs.get("dtl")
        if made_by == "unfinished":
            raise FileNotFoundError(f"The feature store at {url} was interrupted while made.")
        if made_by != "features":
            raise ValueError(
                f"{url} is a Zarr group that dtl did not make. "
                "Choose another --out, or --overwrite to replace it."
            )
        return cls(url, group)

    @property
    def settings(self) -> dict[str, Any]:
        """All that the features depend on."""
        return dict(self.attrs["settings"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the labels."""
        return tuple(self.attrs["class_names"])

    @property
    def n_images(self) -> int:
        """Rows."""
        return int(self._array("status").shape[0])

    @property
    def chunk_images(self) -> int:
        """Rows of a chunk; the last may have fewer."""
        return int(self._array("status").chunks[0])

    @property
    def n_chunks(self) -> int:
        """Chunks along ``image``."""
        return -(-self.n_images // self.chunk_images)

    def n_features(self, layer: str) -> int:
        """Columns of a layer's array."""
        columns = {*_LIST_COLUMNS, *_TASK_COLUMNS, *_TAR_COLUMNS}
        if layer not in self._group or layer in columns:
            known = sorted(set(self._group) - columns)
            raise ValueError(f"No features of layer {layer!r} in {self.url}. It has: {known}.")
        return int(self._array(layer).shape[1])

    def dtype(self, name: str) -> np.dtype[Any]:
        """An array's type."""
        return np.dtype(self._array(name).dtype)

    def rows(self, chunk: int) -> slice:
        """The rows of a chunk."""
        start = chunk * self.chunk_images
        return slice(start, min(start + self.chunk_images, self.n_images))

    def read(self, name: str, chunk: int | None = None) -> NDArray[Any]:
        """An array's rows of one chunk, or all of them."""
        rows = slice(None) if chunk is None else self.rows(chunk)
        return np.asarray(self._array(name)[rows])

    def files(self, root: str, chunk: int | None = None) -> list[str | Extent]:
        """Where the images of a chunk, or all, are below a root."""
        shards = self.attrs.get("shards", [])
        places = [self.read(name, chunk) for name in _TAR_COLUMNS] if shards else []
        return tars.locate(root, map(str, self.read("path", chunk)), shards, *places)

    def write_places(self, images: ImageList) -> None:
        """Keep in which tars the images lie, and where; these may have been packed again."""
        shards = list(images.shards)
        if shards == self.attrs.get("shards", []) and all(
            np.array_equal(self.read(name), getattr(images, name))
            for name in (_TAR_COLUMNS if shards else ())
        ):
            return
        for name, kind in (_TAR_COLUMNS if shards else {}).items():
            if name not in self._group:
                _create_column(self._group, name, kind, self.n_images, self.chunk_images)
            self._array(name)[:] = getattr(images, name)
        self._group.attrs.update({"shards": shards, "root": images.root})
        self.attrs = dict(self._group.attrs)

    def write_chunk(
        self,
        chunk: int,
        features: Mapping[str, NDArray[Any]],
        content_hash: NDArray[np.uint64],
        error: ArrayLike,
    ) -> None:
        """Store all of a chunk and then, last, that it is done."""
        rows = self.rows(chunk)
        error = np.asarray(error, dtype=np.dtypes.StringDType())
        for layer, values in features.items():
            self._array(layer)[rows] = values
        self._array("content_hash")[rows] = content_hash
        self._array("error")[rows] = error
        self._array("status")[rows] = np.where(error == "", DONE, SKIPPED).astype(np.int8)

    @property
    def n_done(self) -> int:
        """Rows that are done or skipped."""
        return int((self.read("status") != PENDING).sum())

    def pending_chunks(self) -> list[int]:
        """The chunks that are not done."""
        status = self.read("status")
        return [int(c) for c in np.unique(np.flatnonzero(status == PENDING) // self.chunk_images)]

    def clean(self) -> None:
        """Remove the half-written files that a killed process left."""
        fs, path = filesystem(self.url)
        if isinstance(fs, LocalFileSystem | Hdfs):
            for partial in fs.glob(f"{path}/**/*.partial"):
                fs.rm_file(partial)

    def write_split(self, split: NDArray[np.int8], settings: Mapping[str, Any]) -> None:
        """Store the split of every row and what it follows from."""
        array = self._array("split")
        array.attrs.put({})  # no settings stand beside rows that they did not make
        array[:] = split
        array.attrs.put({"settings": dict(settings)})

    @property
    def split_settings(self) -> dict[str, Any] | None:
        """What the stored split follows from; None before there is one."""
        settings = zarr.open_array(self._array("split").store_path, mode="r").attrs.get("settings")
        return None if settings is None else dict(settings)  # type: ignore[arg-type]

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self._group[name]
        assert isinstance(array, zarr.Array)
        return array


def _create_column(
    group: zarr.Group, name: str, kind: str, n_images: int, chunk_images: int
) -> None:
    file_rows = chunk_images * max(1, _ROWS_A_FILE // chunk_images)
    group.create_array(
        name,
        shape=(n_images,),
        dtype=kind,
        chunks=(chunk_images,),
        shards=None if name in _TASK_COLUMNS else (file_rows,),
        compressors=ZstdCodec(level=1),
        fill_value=NO_SPLIT if name.endswith("split") else "" if kind == "str" else 0,
        dimension_names=("image",),
    )


def differences(asked: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """What differs between two settings, one text each.

    Examples
    --------
    >>> differences({"layer": "fc2", "seed": 0}, {"layer": "fc1", "seed": 0})
    ["layer: asked for 'fc2', stored 'fc1'"]
    >>> differences({"train": {"l2": 0.0}}, {"train": {"l2": 0.1}})
    ['train.l2: asked for 0.0, stored 0.1']
    """
    asked, stored = _flat(asked), _flat(stored)
    return [
        f"{name}: asked for {asked.get(name)!r}, stored {stored.get(name)!r}"
        for name in sorted({*asked, *stored})
        if asked.get(name) != stored.get(name)
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def _zarr_store(url: str) -> LocalStore | FsspecStore:
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        return LocalStore(path)
    if fs.async_impl:
        # Zarr runs coroutines on a loop of its own, which needs an instance made for that.
        fs = fsspec.filesystem(url.split("://", 1)[0], asynchronous=True, **fs.storage_options)
    elif isinstance(fs, Hdfs | MemoryFileSystem):
        fs = AsyncFileSystemWrapper(fs, asynchronous=True)
    else:
        fs = _Whole(fs, asynchronous=True)
    return FsspecStore(fs, path=path)
