"""Files and the feature store, wherever fsspec reaches: the only importer of fsspec and Zarr."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec
import numpy as np
import zarr
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import ArrayLike, NDArray
from zarr.codecs import ZstdCodec
from zarr.storage import FsspecStore, LocalStore

from dtl.types import DONE, NO_SPLIT, PENDING, SKIPPED, ImageList

SCHEMES = ("file", "hdfs", "webhdfs", "s3", "gs", "abfs", "http", "https", "memory")
"""What messages offer; any other protocol that fsspec knows works too."""

# Columns that the driver writes at once lie in files of about this many rows: HDFS takes half a
# second to close a file, however small.
_ROWS_A_FILE = 65_536

_LIST_COLUMNS = {"path": "str", "label": "int32", "given_split": "int8", "split": "int8"}
_TASK_COLUMNS = {"content_hash": "uint64", "error": "str", "status": "int8"}


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
    options = {"auto_mkdir": True} if scheme in ("file", "local") else {}
    fs, path = fsspec.core.url_to_fs(url, **options)
    return fs, path


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
    return bytes(fs.cat_file(path, start=0, end=n_bytes))


def write_bytes(url: str, data: bytes) -> None:
    """Write a whole file, so that whoever reads it finds all of it or none."""
    fs, path = filesystem(url)
    if not isinstance(fs, LocalFileSystem) and fs.async_impl:
        fs.pipe_file(path, data)  # object stores show an object only once it is whole
        return
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
        file_rows = chunk_images * max(1, _ROWS_A_FILE // chunk_images)
        for name, kind in (_LIST_COLUMNS | _TASK_COLUMNS).items():
            group.create_array(
                name,
                shape=(n_images,),
                dtype=kind,
                chunks=(chunk_images,),
                shards=(file_rows,) if name in _LIST_COLUMNS else None,
                compressors=ZstdCodec(level=1),
                fill_value=NO_SPLIT if name.endswith("split") else "" if kind == "str" else 0,
                dimension_names=("image",),
            )
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
        group.attrs.put({**attrs, "class_names": list(images.class_names), "dtl": "features"})
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
        if layer not in self._group or layer in _LIST_COLUMNS or layer in _TASK_COLUMNS:
            known = sorted(set(self._group) - set(_LIST_COLUMNS) - set(_TASK_COLUMNS))
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
        """Remove the half-written files that a killed process left on a local disk."""
        fs, path = filesystem(self.url)
        if isinstance(fs, LocalFileSystem):
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
    else:
        fs = AsyncFileSystemWrapper(fs, asynchronous=True)
    return FsspecStore(fs, path=path)
