"""The feature store: a row per image, in files of which none is read if it is not whole."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtl.cluster import processors
from dtl.config.errors import UserError
from dtl.config.provenance import Claim, check_same, claim
from dtl.config.secrets import hide, hide_options
from dtl.config.text import printable
from dtl.features.arrays import Arrays
from dtl.features.columns import (
    COLUMNS,
    FORMAT,
    GROWING,
    TAR_COLUMNS,
    Attributes,
    Opened,
    lay_out,
    list_columns,
    list_extents,
    open_store,
    remove_store,
)  # fmt: skip
from dtl.features.stored_split import StoredSplit
from dtl.features.values import DONE, PENDING, REMOVED, SKIPPED, ExtractionSpec
from dtl.images import tars
from dtl.images.decoding.figures import FIGURES
from dtl.images.values import ImageList
from dtl.storage import Extent


class FeatureStore(StoredSplit):
    """A Zarr group with a row per image: features, labels, and which rows are done.

    Zarr v3. Every array lies along the dimension ``image``, in chunks of `chunk_images` rows:

    ================  ==========================  =================================================
    a layer's name    (n_images, n_features)      float32 or float16
    ``path``          (n_images,) str             relative to the listed root
    ``label``         (n_images,) int32           index into ``class_names``; -1: `UNLABELLED`;
                                                  -2: `REMOVED`
    ``given_split``   (n_images,) int8            the split that the source's folders give
    ``size_bytes``    (n_images,) int64           of the file
    ``modified``      (n_images,) int64           its last change, microseconds since 1970, or 0
    ``split``         (n_images,) int8            0 train, 1 validation, 2 test, -1 none, -2 not yet
    ``content_hash``  (n_images,) uint64          of the file's bytes; 0 if they could not be read
    ``error``         (n_images,) str             why a row was skipped
    ``status``        (n_images,) int8            0 pending, 1 done, 2 skipped
    ``figures``       (n_images, 5) float32       `FIGURES`; NaN where the image was not read
    ================  ==========================  =================================================

    ``instruction_set``, (n_images,) int8, is that of the processor that computed the row, as an
    index into `processors.INSTRUCTION_SETS`; no fingerprint has it.

    Where images lie in tars, ``shard`` and ``offset`` give the place, and the attribute ``shards``
    the tars: `ImageList`'s ``tar``, ``offset`` and ``tar_names``.

    A chunk's ``status`` is written last: it says that the chunk is whole. The attributes hold
    ``class_names``, ``settings`` (the fingerprint of the features) and versions. Whoever reads a
    file that is missing or damaged gets a `DamagedError`. The object pickles as its URL, so that
    tasks carry it, and a process opens it once.
    """

    def __init__(self, url: str, opening: str = "") -> None:
        self.url = url
        self._opening = opening or uuid.uuid4().hex

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureStore, (self.url, self._opening)

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
        """Make an empty store for layers of n_features each.

        It takes the place of one whose making was interrupted, and of nothing else. The attributes
        are written last: `open` tells a store that was interrupted by their absence.
        """
        with contextlib.suppress(FileNotFoundError):
            cls.open(url)
            raise _appeared(url)
        remove_store(url)
        arrays = Arrays.create(url, {"dtl": "unfinished"})
        tar_attrs = {"shards": list(images.tar_names)} if images.tar_names else {}
        class_names = list(images.class_names)
        for name, layout in lay_out(images, layers, dtype, chunk_images).items():
            arrays.create_array(name, layout)
        for name, column in list_columns(images).items():
            arrays.write(name, slice(None), column)
        made = hide_options({**attrs, **tar_attrs}) | {"class_names": class_names, "format": FORMAT}
        arrays.group.attrs.put({**made, "dtl": "features"})
        return cls.open(url)

    @classmethod
    def open(cls, url: str) -> FeatureStore:
        """Open a store.

        Raises
        ------
        FileNotFoundError
            If there is nothing, or a store whose making was interrupted: no work is in it yet.
        UserError
            If something else is there, a damaged store, or one that is growing.
        """
        store = cls(url)
        if store.is_growing:
            raise UserError(
                f"{url} was interrupted while it took in a longer list of images. Run the "
                "featurize stage first, which goes on with that."
            )
        return store

    @classmethod
    def reuse(
        cls,
        url: str,
        fingerprint: Mapping[str, Any],
        *,
        overwrite: bool = False,
        other_images: bool = False,
    ) -> FeatureStore | None:
        """Open the store of this fingerprint, whole or not; None where one is to be made.

        What only workers know is not compared where it is not in the fingerprint: ``precision``,
        if it is automatic, and ``source_sha256``; nor is how it has ``grown``. With `other_images`
        it may be of other images, and growing.

        Raises
        ------
        DifferentSettingsError
            If a store has another fingerprint, unless `overwrite` is set.
        UserError
            As `open`, whatever `overwrite` says.
        """
        try:
            store = cls(url) if other_images else cls.open(url)
            stored = dict(store.fingerprint)
        except FileNotFoundError:
            return None
        for name in {"precision", "source_sha256", "grown"} - fingerprint.keys():
            stored.pop(name, None)
        if other_images:
            stored["images"] = fingerprint["images"]
        found = claim(fingerprint, stored, url, overwrite=overwrite)
        return None if found is Claim.REPLACE else store

    @classmethod
    def remove_other(cls, url: str, attrs: Mapping[str, Any]) -> None:
        """Remove a store, but not one of the same fingerprint and weights as `attrs` have."""
        with contextlib.suppress(FileNotFoundError):
            store = cls.open(url)
            if all(store.attrs[name] == attrs[name] for name in ("settings", "weights_sha256")):
                raise _appeared(url)
            remove_store(url)

    @property
    def _opened(self) -> Opened:
        return open_store(self.url, self._opening)

    @property
    def attrs(self) -> dict[str, Any]:
        """The attributes; one that is not there is a `DamagedError`."""
        return self._opened.attrs

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that the features follow from."""
        return Attributes(self.attrs["settings"], self.url)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return tuple(self.attrs["class_names"])

    @property
    def n_images(self) -> int:
        """Number of rows."""
        return int(self._array("status").shape[0])

    @property
    def n_present(self) -> int:
        """Number of images that are there: the rows without those that are gone."""
        return int((self.read("label") != REMOVED).sum())

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
        # By the fingerprint, or a layer whose description is lost would be called unknown.
        layers = {*(self.fingerprint.get("layers") or self.arrays.list_names())} - COLUMNS.keys()
        if layer not in layers:
            shown = sorted(layers)
            raise UserError(f"No features of layer {layer!r} in {self.url}. It has: {shown}.")
        return int(self._array(layer).shape[1])

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return an array's type."""
        found: np.dtype[Any] = self._array(name).dtype
        return found

    def rows(self, chunk: int) -> slice:
        """Return the rows of a chunk."""
        start = chunk * self.chunk_images
        return slice(start, min(start + self.chunk_images, self.n_images))

    def by_chunk(
        self, rows: NDArray[np.integer[Any]]
    ) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.integer[Any]]]]:
        """Yield each chunk that has some rows (n,), their places in `rows`, and in the chunk."""
        chunk_of = rows // self.chunk_images
        order = np.argsort(chunk_of, kind="stable")
        chunks, first = np.unique(chunk_of[order], return_index=True)
        for chunk, at in zip(chunks.tolist(), np.split(order, first)[1:], strict=True):
            yield chunk, at, rows[at] - self.rows(chunk).start

    def read(self, name: str, chunk: int | None = None) -> NDArray[Any]:
        """Read an array's rows of one chunk, or all of them.

        Raises
        ------
        DamagedError
            If a file of theirs is missing or damaged, or the chunk is not computed yet.
        """
        return self._read(name, None if chunk is None else self.rows(chunk))

    def read_rows(self, layer: str, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Read features (n, n_features) of some rows (n,), in their order; see `read`."""
        features = np.empty((len(rows), self.n_features(layer)), np.float32)
        for chunk, at, within in self.by_chunk(rows):
            features[at] = self.read(layer, chunk)[within]
        return features

    def read_usable(self) -> NDArray[np.bool_]:
        """Return which rows have features of an image that is there, with a label or without."""
        usable: NDArray[np.bool_] = (self.read("status") == DONE) & (self.read("label") != REMOVED)
        return usable

    def read_labelled(self) -> NDArray[np.bool_]:
        """Return which rows have features of an image that is there, and a label."""
        labelled: NDArray[np.bool_] = (self.read("status") == DONE) & (self.read("label") >= 0)
        return labelled

    def _read(self, name: str, rows: slice | None) -> NDArray[Any]:
        return self.arrays.read(name, rows, _is_pending if name == "status" else None)

    def files(self, root: str, chunk: int | None = None) -> list[str | Extent]:
        """Locate the images of a chunk, or all of them, below a root."""
        tar_names = self.attrs.get("shards", [])
        names = (*TAR_COLUMNS, "size_bytes") if tar_names else ()
        extents = [self.read(name, chunk) for name in names]
        return tars.locate(root, map(str, self.read("path", chunk)), tar_names, *extents)

    def images(self) -> ImageList:
        """Return the rows as a list of images, with those that are gone: see `REMOVED`."""
        tar_names = tuple(self.attrs.get("shards", ()))
        names = ("path", "label", "given_split", "size_bytes", "modified")
        columns: dict[str, Any] = {name: self.read(name) for name in names}
        if tar_names:
            columns |= {"tar": self.read("shard"), "offset": self.read("offset")}
        return ImageList(
            root=str(self.attrs.get("root", "")),
            class_names=self.class_names,
            tar_names=tar_names,
            **columns,
        )

    def write_places(self, images: ImageList) -> None:
        """Store in which tars the images lie, and where: they may have been packed again."""
        tar_names = list(images.tar_names)
        columns = list_extents(images) if tar_names else {}
        if tar_names == self.attrs.get("shards", []) and all(
            np.array_equal(self.read(name), column) for name, column in columns.items()
        ):
            return
        self.write_columns(images, columns)
        self.arrays.group.attrs.update({"shards": tar_names, "root": hide(images.root)})
        self.reopen()

    def write_columns(self, images: ImageList, columns: Mapping[str, NDArray[Any]]) -> None:
        """Write whole columns; one that is not there yet is made."""
        layouts = lay_out(images, {}, "", self.chunk_images)
        for name, column in columns.items():
            if name not in self.arrays:
                self.arrays.create_array(name, layouts[name])
            self.arrays.replace(name, column)

    def reopen(self) -> None:
        """Forget what was read of the descriptions, which have changed; other processes do, too."""
        self._opening = uuid.uuid4().hex

    @property
    def is_growing(self) -> bool:
        """Whether taking in a longer list was begun, and not finished."""
        return bool(self.attrs["dtl"] == GROWING)

    @property
    def generations(self) -> tuple[int, ...]:
        """Number of rows after each list of images that was taken in."""
        return tuple(self.attrs.get("generations", (self.n_images,)))

    def write_chunk(
        self,
        chunk: int,
        features: Mapping[str, NDArray[Any]],
        content_hash: NDArray[np.uint64],
        error: ArrayLike,
        instruction_set: NDArray[np.int8] | None = None,
        figures: NDArray[np.float32] | None = None,
    ) -> None:
        """Store all rows of a chunk, last of all that they are done.

        Without `instruction_set` this process's processor has computed them; without `figures`
        they are not known.
        """
        rows = self.rows(chunk)
        error = np.asarray(error, dtype=np.dtypes.StringDType())
        if instruction_set is None:
            instruction_set = np.full(len(error), processors.find_instruction_set(), np.int8)
        if figures is None:
            figures = np.full((len(error), len(FIGURES)), np.nan, np.float32)
        arrays: dict[str, NDArray[Any]] = {
            **features, "content_hash": content_hash, "error": error,
            "instruction_set": instruction_set, "figures": figures,
        }  # fmt: skip
        with ThreadPoolExecutor() as pool:  # HDFS takes half a second for each file

            def write(name: str, values: NDArray[Any]) -> None:
                self.arrays.write(name, rows, values)

            list(pool.map(write, arrays.keys(), arrays.values()))
        status = np.where(error == "", DONE, SKIPPED).astype(np.int8)
        self.arrays.write("status", rows, status)

    def forget_chunk(self, chunk: int) -> None:
        """Make a chunk pending, to compute it again: remove what says that it is done."""
        self.arrays.remove_file("status", chunk)
        self.arrays.remove_file("instruction_set", chunk)

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
        skipped = self.read("status") == SKIPPED
        if not skipped.any():
            return []
        rows = np.flatnonzero(skipped & (self.read("label") != REMOVED))
        path = self.read("path")
        found: list[tuple[str, str]] = []
        for chunk, at, within in self.by_chunk(rows):
            error = self.read("error", chunk)[within]
            found += zip(map(str, path[rows[at]]), map(str, error), strict=True)
        return sorted(found)

    def list_instruction_sets(self) -> list[str]:
        """List the instruction sets that computed the features, as far as that is known."""
        pending = {*self.pending_chunks()}
        found = self.arrays.read("instruction_set", None, pending.__contains__)
        return sorted(processors.INSTRUCTION_SETS[i] for i in np.unique(found) if i)

    def check_skipped(self, max_skipped: float) -> None:
        """Refuse a store in which too many images could not be read; name the first ones."""
        skipped = self.list_skipped()
        if len(skipped) > int(max_skipped * self.n_present):
            shown = "\n  ".join(f"{printable(path)}: {reason}" for path, reason in skipped[:5])
            raise UserError(
                f"{len(skipped)} of {self.n_present} images could not be read, more than "
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

    @property
    def arrays(self) -> Arrays:
        """The files themselves."""
        return self._opened.arrays

    def _array(self, name: str) -> Any:
        return self.arrays.array(name)


def _is_pending(_file: int) -> bool:
    """Return whether a file of ``status`` may be missing: then the chunk is pending."""
    return True


def _appeared(url: str) -> OSError:
    return FileExistsError(
        f"{url} holds a feature store, which was not there a moment ago. Nothing was changed. "
        "Check the storage, then start again."
    )
