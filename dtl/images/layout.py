"""Layout of a source: the split and class that the folders of an image's path name."""

from __future__ import annotations

import re
from collections.abc import Iterable

from dtl.images.values import NO_SPLIT, SPLITS

_SPLIT_NAMES = {
    "train": 0, "training": 0, "valid": 1, "validation": 1, "val": 1, "test": 2, "testing": 2,
}  # fmt: skip
_CALTECH_FILE = re.compile(r"(\d{3})_\d{4}")


def read_split_and_class(path: str, with_splits: bool) -> tuple[int, str | None]:
    """Read the split and class of an image from its path, relative to the source.

    Parameters
    ----------
    with_splits : bool
        The first folder is a split. The class is then the second, or the number that begins a
        Caltech file name.

    Returns
    -------
    int, str or None
        Index into `SPLITS` or -1; None where the path names no class.

    Examples
    --------
    >>> read_split_and_class("003.backpack/003_0001.jpg", with_splits=False)
    (-1, '003.backpack')
    >>> read_split_and_class("valid/003_0001.jpg", with_splits=True)
    (1, '003')
    >>> read_split_and_class("loose.jpg", with_splits=False)
    (-1, None)
    """
    *folders, name = path.split("/")
    split = NO_SPLIT
    if with_splits:
        if not folders or folders[0].lower() not in _SPLIT_NAMES:
            return NO_SPLIT, None
        split = _SPLIT_NAMES[folders.pop(0).lower()]
        if not folders:
            caltech = _CALTECH_FILE.match(name)
            return split, caltech[1] if caltech else None
    return split, folders[0] if folders else None


def folders_are_splits(top_folders: Iterable[str]) -> bool:
    """Return whether a source's folders are splits rather than classes.

    Examples
    --------
    >>> folders_are_splits(["train", "val"]), folders_are_splits(["train", "plane"])
    (True, False)
    """
    names = {name.lower() for name in top_folders}
    return {SPLITS[0], "training"} & names != set() and names <= set(_SPLIT_NAMES)
