"""Classes that nothing can be learnt of are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dtl.config import SplitConfig
from dtl.features.splitting import list_unlearnt, split_images
from dtl.features.store import FeatureStore
from dtl.images.values import TEST, TRAIN, ImageList


def store_of(url: Path, classes: dict[str, list[tuple[int, str]]]) -> FeatureStore:
    """A finished store; each image of a class has its given split, and why it was skipped."""
    rows = [(k, *row) for k, images in enumerate(classes.values()) for row in images]
    label, given, error = zip(*rows, strict=True)
    listed = ImageList(
        root="/nowhere",
        path=np.array([f"{k}.jpg" for k in range(len(rows))], np.dtypes.StringDType()),
        label=np.array(label, np.int32),
        given_split=np.array(given, np.int8),
        size_bytes=np.ones(len(rows), np.int64),
        class_names=tuple(classes),
    )
    store = FeatureStore.create(
        str(url), listed, {"fc2": 1}, dtype="float32", chunk_images=64, attrs={"settings": {}}
    )
    hashes = np.arange(len(rows), dtype=np.uint64)
    store.write_chunk(0, {"fc2": np.zeros((len(rows), 1), np.float32)}, hashes, list(error))
    return store


def test_classes_that_nothing_is_learnt_of_are_named(tmp_path: Path) -> None:
    good, bad, test = (TRAIN, ""), (TRAIN, "HEIC"), (TEST, "")
    store = store_of(
        tmp_path / "store",
        {"ant": [good, test], "bee": [good, bad], "cat": [bad, bad], "dog": [test], "elk": [test]},
    )
    unread = "No image could be read of the class cat."
    assert list_unlearnt(store) == [unread]
    split_images(store, SplitConfig(), 0)
    assert list_unlearnt(store) == [
        unread, "Without an image to train on, and so never predicted: 2 classes: dog, elk.",
    ]  # fmt: skip


def test_nothing_is_said_of_classes_that_are_learnt(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", {"ant": [(TRAIN, "")], "bee": [(TRAIN, ""), (TEST, "")]})
    split_images(store, SplitConfig(), 0)
    assert list_unlearnt(store) == []
