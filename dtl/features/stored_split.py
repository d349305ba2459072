"""The split of a store's rows, as it lies in its files, and what it follows from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.features.arrays import Arrays
from dtl.images.values import NO_SPLIT, UNSPLIT


class StoredSplit(ABC):
    """The column ``split`` of a store, whose attributes hold its fingerprint."""

    @property
    @abstractmethod
    def arrays(self) -> Arrays:
        """The files themselves."""

    @property
    @abstractmethod
    def n_images(self) -> int:
        """Number of rows."""

    @abstractmethod
    def read(self, name: str, chunk: int | None = None) -> NDArray[Any]:
        """Read an array's rows of one chunk, or all of them."""

    def read_split(self, chunk: int | None = None) -> NDArray[np.int8]:
        """Read the split of one chunk's rows, or of all.

        It is `NO_SPLIT` for images that are gone or have no label.
        """
        split, label = self.read("split", chunk), self.read("label", chunk)
        return np.where(label < 0, NO_SPLIT, np.maximum(split, NO_SPLIT)).astype(np.int8)

    def write_split(self, split: NDArray[np.int8], fingerprint: Mapping[str, Any]) -> None:
        """Store the split of every row, and the split's fingerprint."""
        array = self.arrays.array("split")
        self.forget_split()  # so that no fingerprint stands beside rows of another
        self.arrays.replace("split", split)
        array.attrs.put({"settings": dict(fingerprint), "n_rows": len(split)})

    def extend_split(
        self,
        split: NDArray[np.int8],
        fingerprint: Mapping[str, Any],
        waiting: NDArray[np.intp],
    ) -> None:
        """Store the split of every row, of which the first ones stay as they are.

        But `waiting` ones, which have got a label since, get a split, too. Until the fingerprint is
        written, last, the stored split is that of the others: no kill loses it, and so holds out an
        image that a head was trained on.
        """
        before, _ = self.split_before
        earlier = [*self.earlier_splits, before]
        if len(waiting):
            self.arrays.array("split").attrs.update({"waiting": waiting.tolist()})
        self.arrays.write("split", slice(None), split)
        made: dict[str, Any] = {"settings": dict(fingerprint), "n_rows": len(split)}
        self.arrays.array("split").attrs.put(made | {"earlier": earlier})

    def forget_split(self) -> None:
        """Remove the split's fingerprint: images are split again before a head is trained."""
        self.arrays.array("split").attrs.put({})

    @property
    def split_fingerprint(self) -> dict[str, Any] | None:
        """All that the stored split follows from; None before there is one of all rows."""
        fingerprint, n_rows = self.split_before
        is_whole = n_rows == self.n_images and "waiting" not in self.arrays.read_attributes("split")
        return fingerprint if is_whole else None

    def list_waiting(self) -> NDArray[np.intp]:
        """List the rows that got a label after the others were split."""
        found = self.arrays.read_attributes("split").get("waiting")
        if found is not None:  # an extension was interrupted, and may have split some of them
            return np.array(found, np.intp)
        return np.flatnonzero((self.read("split") == UNSPLIT) & (self.read("label") >= 0))

    @property
    def earlier_splits(self) -> list[dict[str, Any]]:
        """Fingerprints of the splits that the stored one was extended from, the first one first."""
        return list(self.arrays.read_attributes("split").get("earlier", ()))

    @property
    def split_before(self) -> tuple[dict[str, Any] | None, int]:
        """The fingerprint of the split that is stored, and of how many rows it is."""
        found = self.arrays.read_attributes("split")
        fingerprint = found.get("settings")
        return (None, 0) if fingerprint is None else (dict(fingerprint), int(found["n_rows"]))
