"""The feature store, rows of images in a Zarr group; no other module imports Zarr."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray
from zarr.codecs import ZstdCodec
from zarr.storage import FsspecStore, LocalStore

from dtl import storage
from dtl.config.errors import UserError
from dtl.config.provenance import Claim, check_same, claim
from dtl.features.values import DONE, PENDING, SKIPPED, ExtractionSpec
from dtl.images import tars
from dtl.images.values import NO_SPLIT, ImageList
from dtl.storage import Extent

# Columns that the driver writes at once lie in files of about this many rows: HDFS takes half a
# second to close a file, however small.
_ROWS_PER_FILE = 65_536

_LIST_COLUMNS = {"path": "str", "label": "int32", "given_split": "int8", "split": "int8"}
_TASK_COLUMNS = {"content_hash": "uint64", "error": "str", "status": "int8"}
_TAR_COLUMNS = {"shard": "int32", "offset": "int64", "size_bytes": "int64"}
_COLUMNS = _LIST_COLUMNS | _TASK_COLUMNS | _TAR_COLUMNS


class FeatureStore:
    """A Zarr group with a row per image: features, labels, and which rows are done.

    Zarr v3. Every array lies along the dimension ``image``, in chunks of `chunk_images` rows:

    ================  ==========================  =================================================
    a layer's name    (n_images, n_features)      float32 or float16
    ``path``          (n_images,) str             relative to the listed root
    ``label``         (n_images,) int32           index into ``class_names``
    ``given_split``   (n_images,) int8            the split that the source's folders give
    ``split``         (n_images,) int8            0 train, 1 validation, 2 test, -1 none
    ``content_hash``  (n_images,) uint64          of the file's bytes; 0 if they could not be read
    ``error``         (n_images,) str             why a row was skipped
    ``status``        (n_images,) int8            0 pending, 1 done, 2 skipped
    ================  ==========================  =================================================

    Where images lie in tars, ``shard``, ``offset`` and ``size_bytes`` give the place, and the
    attribute ``shards`` the tars: `ImageList`'s ``tar``, ``offset``, ``size_bytes``, ``tar_names``.

    A chunk's ``status`` is written last: it says that the chunk is whole. The attributes hold
    ``class_names``, ``settings`` (the fingerprint of the features) and versions. The object pickles
    without its data, so tasks carry it.
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
        """Make an empty store for layers of n_features each, in place of whatever lies there.

        The attributes are written last: `open` tells a store that was interrupted by their absence.
        """
        storage.remove(url)
        n_images = len(images)
        group = zarr.create_group(_backing(url), zarr_format=3, attributes={"dtl": "unfinished"})
        for name in _LIST_COLUMNS | _TASK_COLUMNS:
            _create_column(group, name, n_images, chunk_images)
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
        tar_attrs = {"shards": list(images.tar_names)} if images.tar_names else {}
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
            If there is nothing, or a store whose making was interrupted: no work is in it yet.
        UserError
            If something else is there, or a damaged store.
        """
        if not storage.exists(url):
            raise FileNotFoundError(f"No feature store at {url}. Run the featurize stage first.")
        advice = "Choose another `out`, or remove it yourself: it is never replaced."
        try:
            group = zarr.open_group(_backing(url), mode="r+", zarr_format=3)
        except FileNotFoundError:
            fs, path = storage.filesystem(url)
            if fs.isdir(path) and not fs.ls(path):
                raise FileNotFoundError(f"The feature store at {url} is empty.") from None
            raise UserError(f"{url} is no feature store: it has no zarr.json. {advice}") from None
        except (ValueError, FileExistsError, NotADirectoryError) as error:
            raise UserError(f"{url} is no feature store: {error} {advice}") from error
        made_by = group.attrs.get("dtl")
        if made_by == "unfinished":
            raise FileNotFoundError(f"The feature store at {url} was interrupted while made.")
        if made_by != "features":
            raise UserError(f"{url} is a Zarr group that dtl did not make. {advice}")
        return cls(url, group)

    @classmethod
    def reuse(
        cls, url: str, fingerprint: Mapping[str, Any], *, overwrite: bool = False
    ) -> FeatureStore | None:
        """Open the store of this fingerprint, whole or not; None where one is to be made.

        Without ``precision`` in the fingerprint, a store of any precision is used.

        Raises
        ------
        DifferentSettingsError
            If a store has another fingerprint, unless `overwrite` is set.
        UserError
            As `open`, whatever `overwrite` says.
        """
        try:
            store = cls.open(url)
        except FileNotFoundError:
            return None
        stored = store.fingerprint
        if "precision" not in fingerprint:
            stored.pop("precision", None)
        found = claim(fingerprint, stored, url, overwrite=overwrite)
        return None if found is Claim.REPLACE else store

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that the features follow from."""
        return dict(self.attrs["settings"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return tuple(self.attrs["class_names"])

    @property
    def n_images(self) -> int:
        """Number of rows."""
        return int(self._array("status").shape[0])

    @property
    def chunk_images(self) -> int:
        """Rows per chunk; the last chunk may have fewer."""
        return int(self._array("status").chunks[0])

    @property
    def n_chunks(self) -> int:
        """Number of chunks along ``image``."""
        return -(-self.n_images // self.chunk_images)

    def n_features(self, layer: str) -> int:
        """Return the number of features of a layer."""
        if layer not in self._group or layer in _COLUMNS:
            known = sorted({*self._group} - _COLUMNS.keys())
            raise UserError(f"No features of layer {layer!r} in {self.url}. It has: {known}.")
        return int(self._array(layer).shape[1])

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return an array's type."""
        return np.dtype(self._array(name).dtype)

    def rows(self, chunk: int) -> slice:
        """Return the rows of a chunk."""
        start = chunk * self.chunk_images
        return slice(start, min(start + self.chunk_images, self.n_images))

    def read(self, name: str, chunk: int | None = None) -> NDArray[Any]:
        """Read an array's rows of one chunk, or all of them."""
        rows = slice(None) if chunk is None else self.rows(chunk)
        return np.asarray(self._array(name)[rows])

    def files(self, root: str, chunk: int | None = None) -> list[str | Extent]:
        """Locate the images of a chunk, or all of them, below a root."""
        tar_names = self.attrs.get("shards", [])
        places = [self.read(name, chunk) for name in _TAR_COLUMNS] if tar_names else []
        return tars.locate(root, map(str, self.read("path", chunk)), tar_names, *places)

    def images(self) -> ImageList:
        """Return the rows as a list of images; sizes are 0 where none lies in a tar."""
        tar_names = tuple(self.attrs.get("shards", ()))

        def read(name: str, n_images: int = 0) -> NDArray[Any]:
            return self.read(name) if tar_names else np.zeros(n_images, _TAR_COLUMNS[name])

        return ImageList(
            root=str(self.attrs.get("root", "")),
            path=self.read("path"),
            label=self.read("label"),
            given_split=self.read("given_split"),
            size_bytes=read("size_bytes", self.n_images),
            class_names=self.class_names,
            tar_names=tar_names,
            tar=read("shard"),
            offset=read("offset"),
        )

    def write_places(self, images: ImageList) -> None:
        """Store in which tars the images lie, and where: they may have been packed again."""
        tar_names = list(images.tar_names)
        places: dict[str, NDArray[Any]] = {}
        if tar_names:
            places = {"shard": images.tar, "offset": images.offset, "size_bytes": images.size_bytes}
        if tar_names == self.attrs.get("shards", []) and all(
            np.array_equal(self.read(name), column) for name, column in places.items()
        ):
            return
        for name, column in places.items():
            if name not in self._group:
                _create_column(self._group, name, self.n_images, self.chunk_images)
            self._array(name)[:] = column
        self._group.attrs.update({"shards": tar_names, "root": images.root})
        self.attrs = dict(self._group.attrs)

    def write_chunk(
        self,
        chunk: int,
        features: Mapping[str, NDArray[Any]],
        content_hash: NDArray[np.uint64],
        error: ArrayLike,
    ) -> None:
        """Store a chunk, last of all that it is done."""
        rows = self.rows(chunk)
        error = np.asarray(error, dtype=np.dtypes.StringDType())
        for layer, values in features.items():
            self._array(layer)[rows] = values
        self._array("content_hash")[rows] = content_hash
        self._array("error")[rows] = error
        self._array("status")[rows] = np.where(error == "", DONE, SKIPPED).astype(np.int8)

    @property
    def n_done(self) -> int:
        """Number of rows that are done or skipped."""
        return int((self.read("status") != PENDING).sum())

    def pending_chunks(self) -> list[int]:
        """List the chunks that are not done."""
        status = self.read("status")
        return [int(c) for c in np.unique(np.flatnonzero(status == PENDING) // self.chunk_images)]

    def list_skipped(self) -> list[tuple[str, str]]:
        """List path and reason of every skipped image, sorted."""
        rows = np.flatnonzero(self.read("status") == SKIPPED)
        if not len(rows):
            return []
        columns = (map(str, self.read(name)[rows]) for name in ("path", "error"))
        return sorted(zip(*columns, strict=True))

    def check_skipped(self, max_skipped: float) -> None:
        """Refuse a store in which too many images could not be read; name the first ones."""
        skipped = self.list_skipped()
        if len(skipped) > int(max_skipped * self.n_images):
            shown = "\n  ".join(f"{path}: {reason}" for path, reason in skipped[:5])
            raise UserError(
                f"{len(skipped)} of {self.n_images} images could not be read, more than "
                f"images.max_skipped = {max_skipped:g} allows:\n  {shown}\n"
                "Mend or remove them, or raise `images.max_skipped`; what is done stays done."
            )

    def check_options(self, spec: ExtractionSpec) -> None:
        """Refuse options that the store was not made with: they would change nothing of it."""
        stored = self.fingerprint
        wanted = {name: value for name, value in spec.options.items() if name in stored}
        check_same(
            wanted, {name: stored[name] for name in wanted},
            f"{self.url} holds features that were made with other options",
            "Give these options as they were, or run the featurize stage with them.",
        )  # fmt: skip

    def write_split(self, split: NDArray[np.int8], fingerprint: Mapping[str, Any]) -> None:
        """Store the split of every row, and the split's fingerprint."""
        array = self._array("split")
        array.attrs.put({})  # so that no fingerprint stands beside rows of another
        array[:] = split
        array.attrs.put({"settings": dict(fingerprint)})

    @property
    def split_fingerprint(self) -> dict[str, Any] | None:
        """All that the stored split follows from; None before there is one."""
        found = zarr.open_array(self._array("split").store_path, mode="r").attrs.get("settings")
        return None if found is None else dict(found)  # type: ignore[arg-type]

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self._group[name]
        assert isinstance(array, zarr.Array)
        return array


def _create_column(group: zarr.Group, name: str, n_images: int, chunk_images: int) -> None:
    kind = _COLUMNS[name]
    file_rows = chunk_images * max(1, _ROWS_PER_FILE // chunk_images)
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


def _backing(url: str) -> LocalStore | FsspecStore:
    if storage.is_local(url):
        return LocalStore(storage.absolute(url))
    fs, path = storage.asynchronous(url)
    return FsspecStore(fs, path=path)
