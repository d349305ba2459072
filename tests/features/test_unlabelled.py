"""Images without a label in a store: never trained on, and split once they have one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import contents

from dtl.config import ImagesConfig, SplitConfig
from dtl.config.errors import UserError
from dtl.features import growth, splitting
from dtl.features.converted import choose_held_out
from dtl.features.store import FeatureStore
from dtl.images.values import NO_SPLIT, TRAIN, UNLABELLED, UNSPLIT, ImageList
from dtl.storage.guards import guard
from dtl.storage.lock import LostLockError

N, CHUNK = 60, 16
SPLIT = SplitConfig(train=0.5, validation=0.25, test=0.25)


def make_images(label: np.ndarray) -> ImageList:
    n = len(label)
    return ImageList(
        root="/photos", path=np.array([f"{k}.jpg" for k in range(n)], np.dtypes.StringDType()),
        label=label.astype(np.int32), given_split=np.full(n, NO_SPLIT, np.int8),
        size_bytes=np.arange(n), class_names=("ant", "bee", "cat"), modified=np.zeros(n, np.int64),
    )  # fmt: skip


def make_store(folder: Path, images: ImageList) -> FeatureStore:
    attrs = {
        "settings": {"layers": ["fc2"], "dtype": "float32", "images": images.description},
        "weights_sha256": "", "weights": "", "seed": 0, "root": "/photos", "left_out": [],
    }  # fmt: skip
    store = FeatureStore.create(
        str(folder), images, {"fc2": 2}, dtype="float32", chunk_images=CHUNK, attrs=attrs
    )
    for chunk in range(store.n_chunks):
        rows = np.arange(N)[store.rows(chunk)]
        features = {"fc2": np.stack([rows, rows], axis=1).astype(np.float32)}
        store.write_chunk(chunk, features, rows.astype(np.uint64), [""] * len(rows))
    return store


def label_of(n_labelled: int) -> np.ndarray:
    label = np.arange(N) % 3
    label[n_labelled:] = UNLABELLED
    return label


def grow(store: FeatureStore, images: ImageList) -> FeatureStore:
    return growth.take_in(store, images, {"root": "/photos"}, ImagesConfig(), pytest.fail)


def test_they_are_in_no_split_and_count_as_no_class(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", make_images(label_of(30)))
    splitting.split_images(store, SPLIT, 0)
    split = store.read_split()
    assert (split[30:] == NO_SPLIT).all()
    assert (store.read("split")[30:] == UNSPLIT).all()
    assert np.bincount(split[:30]).tolist() == [14, 8, 8]
    assert store.read_usable().sum() == N
    assert store.read_labelled().sum() == 30
    assert store.n_present == N
    assert splitting.list_unlearnt(store) == []
    for chunk in range(store.n_chunks):
        np.testing.assert_array_equal(store.read_split(chunk), split[store.rows(chunk)])


def test_a_label_that_comes_later_brings_a_split_and_moves_no_other(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", make_images(label_of(30)))
    splitting.split_images(store, SPLIT, 0)
    before, fingerprint = store.read_split(), store.split_fingerprint
    files = contents(tmp_path / "s")
    store = grow(store, make_images(label_of(42)))
    after = contents(tmp_path / "s")
    for name in files:
        if name.startswith(("fc2/", "status/", "content_hash/", "figures/")):
            assert after[name] == files[name]
    # Until it is split again, the former split holds, and a head of it can be scored.
    assert store.split_fingerprint == fingerprint
    np.testing.assert_array_equal(store.read_split(), before)
    assert store.list_waiting().tolist() == [*range(30, 42)]
    splitting.split_images(store, SPLIT, 0)
    split = store.read_split()
    np.testing.assert_array_equal(split[:30], before[:30])
    assert np.bincount(split[:42]).tolist() == [22, 10, 10]
    assert (split[42:] == NO_SPLIT).all()
    assert store.split_fingerprint is not None
    assert store.split_fingerprint["grown"].startswith("SHA-256")
    assert store.earlier_splits == [fingerprint]
    done = contents(tmp_path / "s")
    splitting.split_images(store, SPLIT, 0)
    assert contents(tmp_path / "s") == done
    # New rows and labels for old ones, in one list.
    longer = make_images(np.r_[label_of(N), [0, 1, 2, UNLABELLED]])
    store = grow(store, longer)
    store.write_chunk(
        3, {"fc2": np.zeros((16, 2), np.float32)}, np.arange(48, 64).astype(np.uint64), [""] * 16
    )
    splitting.split_images(store, SPLIT, 0)
    np.testing.assert_array_equal(store.read_split()[:42], split[:42])
    assert (store.read_split()[:63] >= 0).all()
    assert store.read("split")[63] == UNSPLIT


def test_a_label_that_is_taken_back_takes_the_image_out(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", make_images(label_of(N)))
    splitting.split_images(store, SPLIT, 0)
    before = store.read_split()
    label = label_of(N)
    label[:3] = UNLABELLED
    store = grow(store, make_images(label))
    assert (store.read_split()[:3] == NO_SPLIT).all()
    store = grow(store, make_images(label_of(N)))
    splitting.split_images(store, SPLIT, 0)
    np.testing.assert_array_equal(store.read_split(), before)


def test_a_split_of_new_labels_that_is_killed_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    def make(name: str) -> FeatureStore:
        store = make_store(tmp_path / name, make_images(label_of(30)))
        splitting.split_images(store, SPLIT, 0)
        return grow(store, make_images(label_of(45)))

    def divide(store: FeatureStore, most_changes: int) -> bool:
        left = [most_changes]

        def count() -> None:
            left[0] -= 1
            if left[0] < 0:
                raise LostLockError("killed")

        with guard(store.url, count):
            try:
                splitting.split_images(FeatureStore.open(store.url), SPLIT, 0)
            except LostLockError:
                return False
        return True

    assert divide(make("whole"), 1000)
    expected, n_killed = contents(tmp_path / "whole"), 0
    for most in range(20):
        store = make(f"killed-{most}")
        if divide(store, most):
            break
        n_killed += 1
        # Nobody takes half of it for a split.
        opened = FeatureStore.open(store.url)
        assert opened.split_fingerprint is None or (opened.read_split()[30:] == NO_SPLIT).all()
        assert divide(store, 1000)
        assert contents(Path(store.url)) == expected
    assert n_killed >= 3


def test_only_unlabelled_images(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", make_images(np.full(N, UNLABELLED)))
    with pytest.raises(UserError, match="No image is left to train on"):
        splitting.split_images(store, SPLIT, 0)


def test_they_are_no_class_that_int8_is_compared_on() -> None:
    label = np.array([0, 1, UNLABELLED, UNLABELLED, 1, UNLABELLED, 0, 1, 0])
    assert choose_held_out(label, 2).tolist() == [4, 6, 7, 8]
    assert len(choose_held_out(np.full(9, UNLABELLED), 2)) == 7


def test_a_changed_file_without_a_label_is_a_row_anew(tmp_path: Path) -> None:
    images = make_images(label_of(30))
    store = make_store(tmp_path / "s", images)
    splitting.split_images(store, SPLIT, 0)
    sizes = images.size_bytes.copy()
    sizes[50] += 1
    store = grow(store, replace(images, size_bytes=sizes))
    assert store.n_images == N + 1
    assert store.read("label")[[50, N]].tolist() == [-2, UNLABELLED]
    assert (store.read_split()[:30] >= TRAIN).all()
