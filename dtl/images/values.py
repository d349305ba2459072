"""The list of images, which later stages take."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
NO_SPLIT = -1
"""The split of a row that is not used: skipped, dropped as a duplicate, or left over."""

UNLABELLED = -1
"""The label of an image of no known class, which is not trained on, and not scored."""
UNSPLIT = -2
"""The split, as it is stored, of an image that has no label yet: it gets one with its label."""


@dataclass(frozen=True, eq=False)
class ImageList:
    """The images of one source, in the order of the feature store's rows.

    An image in a tar has the path that it would have unpacked. Both `tar` and `offset` are empty
    where there are no tars.
    """

    root: str  # fsspec URL that `path` and `tar_names` are relative to
    path: NDArray[Any]  # (n_images,) StringDType, with the class folder
    label: NDArray[np.int32]  # (n_images,), index into `class_names`, or `UNLABELLED`
    given_split: NDArray[np.int8]  # (n_images,), index into `SPLITS` where folders give it, else -1
    size_bytes: NDArray[np.int64]  # (n_images,)
    class_names: tuple[str, ...]
    # (n_images,): when each file, or its tar, was last changed, in microseconds since 1970; 0 if
    # that is not known; empty where the list was not made from files
    modified: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    left_out: tuple[tuple[str, str], ...] = ()  # path and reason of files that are no images
    empty_folders: tuple[tuple[str, str], ...] = ()  # without an image, so no classes; and why
    tar_names: tuple[str, ...] = ()  # tars that images lie in
    # (n_images,): index into `tar_names`, -1 for a file of its own; byte at which the image begins
    tar: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    offset: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.path)

    def take(self, rows: NDArray[Any]) -> ImageList:
        """Return some of the images, of these rows."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen = {
            name: column[rows]
            for name, column in columns.items()
            if isinstance(column, np.ndarray) and len(column)  # those that are there
        }
        return replace(self, **chosen)

    def label_names(self) -> NDArray[Any]:
        """Return the class name of each image, (n_images,) StringDType; empty for none."""
        names = np.array([*self.class_names, ""], np.dtypes.StringDType())
        return names[np.where(self.label >= 0, self.label, len(self.class_names))]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all but the place: a copy elsewhere, or in tars, has the same one."""
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for column in (self.label, self.given_split, self.size_bytes):
            digest.update(np.ascontiguousarray(column).tobytes())
        for path in self.path:
            digest.update(path.encode() + b"\0")
        return digest.hexdigest()

    @property
    def description(self) -> str:
        """Number of images and classes, and the fingerprint, as later fingerprints hold them."""
        return f"{len(self)} of {len(self.class_names)} classes, SHA-256 {self.fingerprint}"
