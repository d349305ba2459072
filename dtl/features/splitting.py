"""The split of a store's rows into training, validation and test."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.config import SplitConfig
from dtl.config.text import printable
from dtl.features.store import FeatureStore
from dtl.features.values import SKIPPED
from dtl.images import split
from dtl.images.values import NO_SPLIT, TRAIN, UNLABELLED, UNSPLIT

log = logging.getLogger(__name__)

_MOST_SHOWN = 10


def fingerprint_split(config: SplitConfig, seed: int) -> dict[str, Any]:
    """Return all that the split of given features follows from."""
    names = ("method", "duplicates", "train", "validation", "test", "train_per_class")
    return {name: getattr(config, name) for name in names} | {"seed": seed}


def fingerprint_grown(fingerprint: Mapping[str, Any], split: NDArray[np.int8]) -> dict[str, Any]:
    """Return the fingerprint of a split that does not follow from its options alone."""
    digest = hashlib.sha256(split.tobytes()).hexdigest()
    return without_growth(fingerprint) | {"grown": f"SHA-256 {digest}"}


def without_growth(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a split, without what tells one that has grown from a fresh one."""
    return {name: value for name, value in fingerprint.items() if name != "grown"}


def repeat_split(store: FeatureStore, fingerprint: Mapping[str, Any] | None) -> None:
    """Split as a fingerprint says, if the store has lost its split."""
    if fingerprint is None or store.split_fingerprint is not None:
        return
    options = dict(fingerprint)
    seed = options.pop("seed")
    split_images(store, SplitConfig(**options), seed)


def split_images(store: FeatureStore, config: SplitConfig, seed: int) -> None:
    """Assign every row of a finished store to a split, and store that.

    The features come first because the bytes of all files have then been seen: identical files stay
    together, and unreadable ones are not counted.

    Raises
    ------
    UserError
        If the classes have too few readable images for the splits.
    """
    fingerprint = fingerprint_split(config, seed)
    stored, n_before = store.split_before
    is_same = stored is not None and without_growth(stored) == fingerprint
    waiting = store.list_waiting() if is_same else np.empty(0, np.intp)
    if is_same and n_before == store.n_images and not len(waiting):
        return
    images, content_hash, usable = store.images(), store.read("content_hash"), store.read_labelled()
    before = None
    if is_same:
        before = np.maximum(store.read("split")[:n_before], NO_SPLIT)
        before[waiting[waiting < n_before]] = NO_SPLIT
    rows = split.assign_splits(
        images, config, seed, content_hash=content_hash, usable=usable, before=before
    )
    if before is not None:
        rows[:n_before] = np.where(before == NO_SPLIT, rows[:n_before], before)
    rows[(images.label == UNLABELLED) & (rows == NO_SPLIT)] = UNSPLIT
    if before is not None:
        store.extend_split(rows, fingerprint_grown(fingerprint, rows), waiting)
    elif "grown" in store.fingerprint:
        # Only the rows tell it from one that was made before the store grew.
        store.write_split(rows, fingerprint_grown(fingerprint, rows))
    else:
        store.write_split(rows, fingerprint)
    rows = store.read_split()
    log.info("split: %s", split.describe(rows))
    n_duplicates, n_conflicting = split.count_duplicates(content_hash[usable], images.label[usable])
    if n_duplicates:
        log.info(
            "%d images repeat another's bytes (%d of them in another class): %s",
            n_duplicates,
            n_conflicting,
            "kept on one side" if config.duplicates == "together" else "dropped",
        )


def list_unlearnt(store: FeatureStore) -> list[str]:
    """List a warning for the classes that no image could be read of, and for those not trained on.

    The second needs the split, and is left out before there is one.
    """
    label, status = store.read("label"), store.read("status")
    n_classes = len(store.class_names)
    is_there = label >= 0
    n_read = np.bincount(label[(status != SKIPPED) & is_there], minlength=n_classes)
    unread = n_read == 0
    untrained = np.zeros(n_classes, bool)
    if store.split_fingerprint is not None:
        n_trained = np.bincount(label[store.read_split() == TRAIN], minlength=n_classes)
        untrained = (n_trained == 0) & ~unread
    said = {
        "No image could be read of": unread,
        "Without an image to train on, and so never predicted:": untrained,
    }
    return [
        f"{begin} {name_classes(store.class_names, classes)}."
        for begin, classes in said.items()
        if classes.any()
    ]


def name_classes(class_names: Sequence[str], chosen: NDArray[np.bool_]) -> str:
    """Name the first classes of some, and their number.

    Examples
    --------
    >>> name_classes(["ant", "bee"], np.array([True, False]))
    'the class ant'
    """
    names = [class_names[k] for k in np.flatnonzero(chosen).tolist()]
    shown = ", ".join(map(printable, names[:_MOST_SHOWN]))
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return f"the class {shown}" if len(names) == 1 else f"{len(names)} classes: {shown}{more}"
