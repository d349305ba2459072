"""The feature store: a row per image, in files of which none is read if it is not whole."""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtl import storage
from dtl.cluster import processors
from dtl.config.errors import UserError
from dtl.config.provenance import Claim, check_same, claim
from dtl.config.secrets import hide, hide_options
from dtl.config.text import printable
from dtl.features.arrays import Arrays, DamagedError
from dtl.features.columns import (
    COLUMNS,
    FORMAT,
    TAR_COLUMNS,
    Attributes,
    Opened,
    lay_out,
    list_columns,
    list_extents,
    list_task_columns,
    open_store,
    remove_store,
)  # fmt: skip
from dtl.features.values import DONE, PENDING, SKIPPED, ExtractionSpec
from dtl.images import tars
from dtl.images.layout import folders_are_splits
from dtl.images.values import ImageList
from dtl.storage import Extent


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

    ``instruction_set``, (n_images,) int8, is that of the processor that computed the row, as an
    index into `processors.INSTRUCTION_SETS`; no fingerprint has it.

    Where images lie in tars, ``shard``, ``offset`` and ``size_bytes`` give the place, and the
    attribute ``shards`` the tars: `ImageList`'s ``tar``, ``offset``, ``size_bytes``, ``tar_names``.

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
            If something else is there, or a damaged store.
        """
        store = cls(url)
        store._opened  # noqa: B018  (opens it)
        return store

    @classmethod
    def reuse(
        cls, url: str, fingerprint: Mapping[str, Any], *, overwrite: bool = False
    ) -> FeatureStore | None:
        """Open the store of this fingerprint, whole or not; None where one is to be made.

        What only workers know is not compared where it is not in the fingerprint: ``precision``,
        if it is automatic, and ``source_sha256``.

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
        late = {"precision", "source_sha256"} - fingerprint.keys()
        stored = {name: value for name, value in store.fingerprint.items() if name not in late}
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
        layers = {*(self.fingerprint.get("layers") or self._arrays.list_names())} - COLUMNS.keys()
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

    def read(self, name: str, chunk: int | None = None) -> NDArray[Any]:
        """Read an array's rows of one chunk, or all of them.

        Raises
        ------
        DamagedError
            If a file of theirs is missing or damaged, or the chunk is not computed yet.
        """
        return self._read(name, None if chunk is None else self.rows(chunk))

    def _read(self, name: str, rows: slice | None) -> NDArray[Any]:
        may_be_absent = None
        if name == "status" or self._format == 1:
            may_be_absent = functools.partial(self._may_be_absent, name)
        return self._arrays.read(name, rows, may_be_absent)

    def _may_be_absent(self, name: str, file: int) -> bool:
        """Return whether a file that is missing was never written, for it had only fill values."""
        if name == "status":
            return True  # the chunk is pending
        rows = self._arrays.files(name)[file]
        if name == "given_split":
            folders = {str(path).partition("/")[0] for path in self.read("path")}
            return not folders_are_splits(folders)
        if name == "label":
            first = self.class_names[0]
            return all(first in str(path).split("/") for path in self._read("path", rows))
        if name == "shard":
            return len(self.attrs["shards"]) == 1
        if name in ("path", "offset", "size_bytes"):
            return False
        if name == "split" and self.split_fingerprint is None:
            return True
        skipped = self._read("status", rows) == SKIPPED
        return not skipped.any() if name == "error" else bool(skipped.all())

    def files(self, root: str, chunk: int | None = None) -> list[str | Extent]:
        """Locate the images of a chunk, or all of them, below a root."""
        tar_names = self.attrs.get("shards", [])
        extents = [self.read(name, chunk) for name in TAR_COLUMNS] if tar_names else []
        return tars.locate(root, map(str, self.read("path", chunk)), tar_names, *extents)

    def images(self) -> ImageList:
        """Return the rows as a list of images; sizes are 0 where none lies in a tar."""
        tar_names = tuple(self.attrs.get("shards", ()))

        def read(name: str, n_images: int = 0) -> NDArray[Any]:
            return self.read(name) if tar_names else np.zeros(n_images, TAR_COLUMNS[name])

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
        columns = list_extents(images) if tar_names else {}
        if tar_names == self.attrs.get("shards", []) and all(
            np.array_equal(self.read(name), column) for name, column in columns.items()
        ):
            return
        layouts = lay_out(images, {}, "", self.chunk_images, self._format)
        for name, column in columns.items():
            if name not in self._arrays:
                self._arrays.create_array(name, layouts[name])
            self._arrays.write(name, slice(None), column)
        self._group.attrs.update({"shards": tar_names, "root": hide(images.root)})
        self._opening = uuid.uuid4().hex  # for other processes, too

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
        columns = {"content_hash": content_hash, "error": error}
        if self._format > 1:
            columns["instruction_set"] = np.full(len(error), processors.find_instruction_set())
        with ThreadPoolExecutor() as pool:  # HDFS takes half a second for each file

            def write(name: str, values: NDArray[Any]) -> None:
                self._arrays.write(name, rows, values)

            arrays: dict[str, NDArray[Any]] = {**features, **columns}
            list(pool.map(write, arrays.keys(), arrays.values()))
        status = np.where(error == "", DONE, SKIPPED).astype(np.int8)
        self._arrays.write("status", rows, status)

    def forget_chunk(self, chunk: int) -> None:
        """Make a chunk pending, to compute it again: remove what says that it is done."""
        self._arrays.remove_file("status", chunk)
        if self._format > 1:
            self._arrays.remove_file("instruction_set", chunk)

    def list_begun(self) -> list[int]:
        """List the chunks of which there is a ``status``, whole or damaged."""
        return sorted(self._arrays.list_files("status"))

    def list_damaged(self, chunk: int, layers: Iterable[str]) -> list[str]:
        """Name what cannot be read of a done chunk, as the messages of `DamagedError`."""
        found = []
        for name in (*layers, *list_task_columns(self._format)):
            try:
                self.read(name, chunk)
            except DamagedError as error:
                found.append(str(error))
        return found

    def mend_columns(self, images: ImageList, layers: Mapping[str, int]) -> list[str]:
        """Write again what is missing or damaged of the columns that follow from the list.

        `layers` are of n_features each. Returns what was damaged. A split that was is forgotten.
        """
        found = []
        dtype, chunk_images = self.fingerprint["dtype"], self.fingerprint["chunk_images"]
        layouts = lay_out(images, layers, dtype, chunk_images, self._format)
        for name, layout in layouts.items():
            if not self._arrays.fits(name, layout):
                found.append(storage.join(self.url, f"{name}/zarr.json"))
                self._arrays.remove_array(name)
                self._arrays.create_array(name, layout)
        for name, column in list_columns(images).items():
            for file, rows in enumerate(self._arrays.files(name)):
                try:
                    stored = self._read(name, rows)
                    if name == "split" or np.array_equal(stored, column[rows]):
                        continue
                except DamagedError:
                    pass
                found.append(self._arrays.file_url(name, file))
                if name == "split":
                    self.forget_split()
                self._arrays.remove_file(name, file)
                self._arrays.write(name, rows, column[rows], empty=True)
        return found

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
        path = self.read("path")
        found = []
        for chunk in np.unique(rows // self.chunk_images).tolist():
            error, first = self.read("error", chunk), self.rows(chunk).start
            found += [(str(path[first + i]), str(error[i])) for i in np.flatnonzero(error != "")]
        return sorted(found)

    def list_instruction_sets(self) -> list[str]:
        """List the instruction sets that computed the features, as far as that is known."""
        if self._format == 1:
            return []
        pending = {*self.pending_chunks()}
        found = self._arrays.read("instruction_set", None, pending.__contains__)
        return sorted(processors.INSTRUCTION_SETS[i] for i in np.unique(found) if i)

    def check_skipped(self, max_skipped: float) -> None:
        """Refuse a store in which too many images could not be read; name the first ones."""
        skipped = self.list_skipped()
        if len(skipped) > int(max_skipped * self.n_images):
            shown = "\n  ".join(f"{printable(path)}: {reason}" for path, reason in skipped[:5])
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
        self.forget_split()  # so that no fingerprint stands beside rows of another
        if len(split) == self.n_images:
            for file in range(len(self._arrays.files("split"))):
                self._arrays.remove_file("split", file)  # Zarr would read it to write it
        self._arrays.write("split", slice(None), split, empty=True)
        array.attrs.put({"settings": dict(fingerprint)})

    def forget_split(self) -> None:
        """Remove the split's fingerprint: images are split again before a head is trained."""
        self._array("split").attrs.put({})

    @property
    def split_fingerprint(self) -> dict[str, Any] | None:
        """All that the stored split follows from; None before there is one."""
        found = self._arrays.read_attributes("split").get("settings")
        return None if found is None else dict(found)

    @property
    def _arrays(self) -> Arrays:
        return self._opened.arrays

    @property
    def _group(self) -> Any:
        return self._arrays.group

    @property
    def _format(self) -> int:
        return int(self.attrs.get("format", 1))

    def _array(self, name: str) -> Any:
        return self._arrays.array(name)


def _appeared(url: str) -> OSError:
    return FileExistsError(
        f"{url} holds a feature store, which was not there a moment ago. Nothing was changed. "
        "Check the storage, then start again."
    )
