"""The split of a store's rows into training, validation and test."""

from __future__ import annotations

import logging
from typing import Any

from dtl.config import SplitConfig
from dtl.features.store import FeatureStore
from dtl.features.values import DONE
from dtl.images import split

log = logging.getLogger(__name__)


def fingerprint_split(config: SplitConfig, seed: int) -> dict[str, Any]:
    """Return all that the split of given features follows from."""
    names = ("method", "duplicates", "train", "validation", "test", "train_per_class")
    return {name: getattr(config, name) for name in names} | {"seed": seed}


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
    if store.split_fingerprint == fingerprint:
        return
    images, content_hash = store.images(), store.read("content_hash")
    usable = store.read("status") == DONE
    rows = split.assign_splits(images, config, seed, content_hash=content_hash, usable=usable)
    store.write_split(rows, fingerprint)
    log.info("split: %s", split.describe(rows))
    n_duplicates, n_conflicting = split.count_duplicates(content_hash[usable], images.label[usable])
    if n_duplicates:
        log.info(
            "%d images repeat another's bytes (%d of them in another class): %s",
            n_duplicates,
            n_conflicting,
            "kept on one side" if config.duplicates == "together" else "dropped",
        )
