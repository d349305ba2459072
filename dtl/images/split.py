"""Split of the images into training, validation and test, and their random order.

Both follow from hashes of (seed, path), not from a generator's stream. So they are the same on any
machine and with any version of NumPy, and an image that is added moves few others.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.config import SplitConfig
from dtl.config.errors import UserError
from dtl.images.values import NO_SPLIT, SPLITS, TRAIN, ImageList


def hash_keys(names: Sequence[str] | NDArray[Any], seed: int, use: str) -> NDArray[np.uint64]:
    """Return a pseudo-random uint64 for every name; sorting by it shuffles.

    Examples
    --------
    >>> hash_keys(["a.jpg", "b.jpg"], seed=0, use="order").argsort().tolist()
    [0, 1]
    """
    prefix = f"{seed}\0{use}\0".encode()
    digests = b"".join(
        hashlib.blake2b(prefix + str(name).encode(), digest_size=8).digest() for name in names
    )
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def shuffle(path: NDArray[Any], seed: int) -> NDArray[np.intp]:
    """Return the rows in a random order that is the same on any machine: ties go by the path."""
    by_path = path.astype(object).argsort().argsort()
    return np.lexsort((by_path, hash_keys(path, seed, "order")))


def count_rows(n: int, parts: Sequence[float | int | str]) -> list[int]:
    """Return how many of n rows each split takes.

    A part is a fraction of all rows, a number of rows, or "rest", what the others leave.

    Examples
    --------
    >>> count_rows(10, ("rest", 0.15, 0.2))
    [6, 2, 2]
    >>> count_rows(30607, ("rest", 5000, 6000))
    [19607, 5000, 6000]
    """
    counts = [0 if p == "rest" else round(p * n) if isinstance(p, float) else int(p) for p in parts]
    excess = sum(counts) - n
    covers = all(isinstance(p, float) for p in parts) and math.isclose(sum(map(float, parts)), 1)
    if excess > 0 or covers:
        counts[int(np.argmax(counts))] -= excess  # rounding took a row too many, or left one
    return [n - sum(counts) if p == "rest" else c for p, c in zip(parts, counts, strict=True)]


def apportion(
    sizes: NDArray[np.int64], total: int, most: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Divide a total over classes in proportion to their sizes, by largest remainders.

    Every class gets one or more, where the total allows, and at most `most`, or else its size.

    Examples
    --------
    >>> apportion(np.array([100, 50, 3]), 15).tolist()
    [9, 5, 1]
    """
    most = sizes if most is None else most
    exact = sizes * (total / max(sizes.sum(), 1))
    least = 1 if total >= len(sizes) else 0
    counts: NDArray[np.int64] = np.clip(np.floor(exact).astype(np.int64), least, most)
    while (missing := total - counts.sum()) != 0:
        if missing > 0:
            counts[np.argmin(np.where(counts < most, counts - exact, np.inf))] += 1
        else:
            counts[np.argmax(np.where(counts > least, counts - exact, -np.inf))] -= 1
    return counts


def _check_parts(config: SplitConfig, n_images: int) -> None:
    parts = {"validation": config.validation, "test": config.test}
    if not config.train_per_class:  # which stands in place of `train`
        parts = {"train": config.train} | parts
    if list(parts.values()).count("rest") > 1:
        raise UserError(f"Only one split can be the rest. Received: {parts}.")
    numbers = [p for p in parts.values() if not isinstance(p, str)]
    taken = sum(p * n_images if isinstance(p, float) else p for p in numbers)
    if taken > n_images * (1 + 1e-9):
        raise UserError(
            f"The splits ask for {taken:.0f} of {n_images} images: {parts}. Make them smaller."
        )


def describe(split: NDArray[np.int8]) -> str:
    """Name how many rows each split has.

    Examples
    --------
    >>> describe(np.array([0, 0, 2, -1], np.int8))
    '2 train, 0 validation, 1 test'
    """
    return ", ".join(f"{(split == k).sum()} {name}" for k, name in enumerate(SPLITS))


def assign_splits(
    images: ImageList,
    config: SplitConfig,
    seed: int,
    *,
    content_hash: NDArray[np.uint64] | None = None,
    usable: NDArray[np.bool_] | None = None,
    before: NDArray[np.int8] | None = None,
) -> NDArray[np.int8]:
    """Assign every row to a split: its index in `SPLITS`, or -1.

    Rows with the same bytes are one unit: they stay together, or all but the first are dropped.
    Units are ordered by a seeded hash, within a class, or among all for ``method="random"``. In
    that order they fill one split after the other.

    Parameters
    ----------
    content_hash : (n_images,) uint64, optional
        Equal where files have the same bytes; all different unless given.
    usable : (n_images,) bool, optional
        False for rows without features, which take no part; nor do those without a label.
    before : (n_before,) int8, optional
        The split of the first rows, which stays, unless folders give another. Rows that have come
        since go where a unit has rows already, usable or not, or its path was; the others where the
        splits lack most of what they are to have.

    Raises
    ------
    UserError
        If a class has too few images for the splits, or the folders give no split.
    """
    path, label, class_names, n_images = images.path, images.label, images.class_names, len(images)
    if content_hash is None:
        content_hash = np.arange(n_images, dtype=np.uint64)
    labelled = label >= 0
    usable_rows = np.flatnonzero(labelled if usable is None else usable & labelled)
    _check_parts(config, len(usable_rows))
    # Sorted by path, so that the first of identical files does not depend on their rows.
    usable_rows = usable_rows[np.argsort(path[usable_rows].astype(object), kind="stable")]
    if before is not None:  # those that have a split come first, and lead their unit
        has_split = np.r_[before != NO_SPLIT, np.zeros(n_images - len(before), bool)]
        usable_rows = usable_rows[np.argsort(~has_split[usable_rows], kind="stable")]
    hashes = content_hash[usable_rows]
    _, first, unit_of_row = np.unique(hashes, return_index=True, return_inverse=True)
    leader = usable_rows[first]
    split = np.full(n_images, NO_SPLIT, np.int8)
    method, unit_split = config.method, images.given_split[leader]
    if method == "auto":
        method = "folders" if (unit_split >= 0).all() else "stratified"
    if method == "folders":
        if (unit_split < 0).any():
            raise UserError(
                "`split.method` = folders needs train/, validation/ or test/ above the class "
                f"folders. Not so: {path[leader[unit_split < 0][0]]}."
            )
    else:
        unit_split = np.full(len(leader), NO_SPLIT, np.int8)
        if before is not None:
            unit_split = _keep_splits(images, content_hash, before, usable_rows, unit_of_row)
        order = np.argsort(hash_keys(path[leader], seed, "split"), kind="stable")
        by_class = method == "stratified" or bool(config.train_per_class)
        groups = [order]
        if by_class:
            by_label = order[np.argsort(label[leader[order]], kind="stable")]
            ends = np.searchsorted(label[leader[by_label]], np.arange(len(class_names)), "right")
            groups = np.split(by_label, ends)[:-1]
        sizes = _divide_units([len(g) for g in groups], config, class_names if by_class else None)
        for group, size in zip(groups, sizes, strict=True):
            is_new = unit_split[group] == NO_SPLIT
            have = np.bincount(unit_split[group[~is_new]], minlength=len(SPLITS))
            lacking = _divide_rest(size - have, int(is_new.sum()))
            chosen = group[is_new][: lacking.sum()]
            unit_split[chosen] = np.repeat(np.arange(len(SPLITS)), lacking)
    if config.duplicates == "drop":
        split[leader] = unit_split
    else:
        split[usable_rows] = unit_split[unit_of_row]
    if not (split == TRAIN).any():
        raise UserError("No image is left to train on. Change [split], or add images.")
    return split


def _keep_splits(
    images: ImageList,
    content_hash: NDArray[np.uint64],
    before: NDArray[np.int8],
    usable_rows: NDArray[np.intp],
    unit_of_row: NDArray[np.intp],
) -> NDArray[np.int8]:
    """Return the split that each unit has by its first row that had one, or by its path's; or -1.

    Rows that are gone count, too: a head may have been trained on them.
    """
    had = np.flatnonzero(before != NO_SPLIT)
    of_hash = dict(zip(content_hash[had[::-1]].tolist(), before[had[::-1]].tolist(), strict=True))
    of_path = dict(zip(images.path[had].tolist(), before[had].tolist(), strict=True))
    unit_split = np.full(unit_of_row.max(initial=-1) + 1, NO_SPLIT, np.int8)
    for row, unit in zip(usable_rows.tolist(), unit_of_row.tolist(), strict=True):
        if unit_split[unit] == NO_SPLIT:
            by_path = of_path.get(images.path[row], NO_SPLIT)
            unit_split[unit] = of_hash.get(int(content_hash[row]), by_path)
    return unit_split


def _divide_rest(lacking: NDArray[np.int64], n_units: int) -> NDArray[np.int64]:
    """Divide at most `n_units` new units over splits that lack some, or have too many.

    Examples
    --------
    >>> _divide_rest(np.array([6, 2, -2]), 6).tolist()
    [5, 1, 0]
    """
    lacking = np.maximum(lacking, 0)
    n_units = min(n_units, int(lacking.sum()))
    exact = lacking * (n_units / max(int(lacking.sum()), 1))
    counts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    rest = np.argsort(counts - exact, kind="stable")[: n_units - counts.sum()]
    counts[rest] += 1
    return counts


def count_duplicates(content_hash: NDArray[np.uint64], label: NDArray[np.int32]) -> tuple[int, int]:
    """Count the rows that repeat another's bytes, and those of them with another label.

    Examples
    --------
    >>> count_duplicates(np.array([7, 8, 7, 7], "u8"), np.array([0, 0, 0, 1], "i4"))
    (2, 1)
    """
    _, first, unit = np.unique(content_hash, return_index=True, return_inverse=True)
    return len(unit) - len(first), int((label != label[first[unit]]).sum())


def _divide_units(
    n_units: Sequence[int], config: SplitConfig, class_names: Sequence[str] | None
) -> NDArray[np.int64]:
    """Return how many units of each group go into each split, (n_groups, 3)."""
    n = np.asarray(n_units, np.int64)
    parts = [config.train, config.validation, config.test]
    if config.train_per_class and "rest" in parts[1:]:
        parts[0] = config.train_per_class * len(n)
    wanted = count_rows(int(n.sum()), parts)
    if class_names is None:
        return np.array([wanted])
    for name, size in zip(class_names, n, strict=True):
        if size < np.count_nonzero(wanted):
            raise UserError(
                f"Class {name} has {size} different images for {np.count_nonzero(wanted)} splits. "
                "Add images, leave the class out, or set `split.method` to random."
            )
        n_others = max(np.count_nonzero(wanted[1:]), 1)
        if config.train_per_class and size - config.train_per_class < n_others:
            raise UserError(
                f"Class {name} has {size} different images; `split.train_per_class` = "
                f"{config.train_per_class} leaves too few for validation and test. Lower it, or "
                "leave the class out."
            )
    if config.train_per_class:
        left = n - config.train_per_class
        held_out = max(wanted[1] + wanted[2], 1)
        n_validation = round(int(left.sum()) * wanted[1] / held_out)
        least_test = int(left.sum() - n_validation >= len(n))
        validation = apportion(left, n_validation, left - least_test)
        return np.stack([n - left, validation, left - validation], axis=1)
    # Each split leaves the later ones the one image per class that they are to get.
    least_train, _, least_test = (int(count >= len(n)) for count in wanted)
    validation = apportion(n, wanted[1], n - least_train - least_test)
    test = apportion(n, wanted[2], n - validation - least_train)
    return np.stack([apportion(n - validation - test, wanted[0]), validation, test], axis=1)
