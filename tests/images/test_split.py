"""The split is disjoint, complete and stratified, and follows from seed and paths alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from dtl.config import SplitConfig
from dtl.images.split import (
    apportion,
    assign_splits,
    count_duplicates,
    count_rows,
    hash_keys,
)
from dtl.images.values import ImageList

DATA = Path(os.environ.get("DTL_DATA", Path(__file__).parents[2] / "../shared/data"))
NAMES = DATA / "caltech256_all_30607_files.txt"
Caltech: TypeAlias = tuple[np.ndarray, np.ndarray]


def assign(
    path: Sequence[str] | np.ndarray,
    label: ArrayLike,
    config: SplitConfig,
    *,
    seed: int = 0,
    given_split: ArrayLike | None = None,
    content: ArrayLike | None = None,
    usable: np.ndarray | None = None,
) -> np.ndarray:
    n = len(path)
    label = np.asarray(label, np.int32)
    images = ImageList(
        root="/photos",
        path=np.asarray(path, np.dtypes.StringDType()),
        label=label,
        given_split=np.full(n, -1, np.int8)
        if given_split is None
        else np.asarray(given_split, np.int8),
        size_bytes=np.zeros(n, np.int64),
        class_names=tuple(f"class {k}" for k in range(label.max() + 1)) if n else (),
    )
    return assign_splits(
        images,
        config,
        seed,
        content_hash=None if content is None else np.asarray(content, np.uint64),
        usable=usable,
    )


def rows_of(sizes: Sequence[int]) -> tuple[list[str], np.ndarray]:
    label = np.repeat(np.arange(len(sizes)), sizes)
    return [f"{k}/{row}.jpg" for row, k in enumerate(label)], label


def table(split: np.ndarray, label: ArrayLike) -> np.ndarray:
    """Images of each class (rows) in no split, train, validation and test (columns)."""
    counts = np.zeros((max(label) + 1, 4), int)
    np.add.at(counts, (np.asarray(label), split + 1), 1)
    return counts


# --- all of Caltech-256 --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def caltech() -> Caltech:
    if not NAMES.exists():
        pytest.skip(f"no {NAMES}: set DTL_DATA to the folder of the development data")
    path = np.array(NAMES.read_text().split())
    classes, label = np.unique([p.split("/")[0] for p in path.tolist()], return_inverse=True)
    assert (len(path), len(classes)) == (30_607, 257)
    # The number of a class is in the file's name too: an independent label.
    assert [int(p.split("/")[1][:3]) - 1 for p in path.tolist()] == label.tolist()
    return path, label


def test_caltech_stratified(caltech: Caltech) -> None:
    path, label = caltech
    counts = table(assign(path, label, SplitConfig()), label)
    sizes = np.bincount(label)
    assert not counts[:, 0].any()  # complete
    assert (counts[:, 1:] > 0).all()
    np.testing.assert_allclose(counts[:, 2], 0.15 * sizes, atol=1)
    np.testing.assert_allclose(counts[:, 3], 0.2 * sizes, atol=1)
    assert counts.sum(axis=0).tolist() == [0, 30_607 - 4591 - 6121, 4591, 6121]


@pytest.mark.parametrize("train", ["rest", 0.6])
def test_caltech_fractions_that_add_up_leave_no_image_out(caltech: Caltech, train: Any) -> None:
    path, label = caltech
    counts = table(assign(path, label, SplitConfig(train=train, validation=0.15, test=0.25)), label)
    assert not counts[:, 0].any()
    np.testing.assert_allclose(counts[:, 1], 0.6 * np.bincount(label), atol=2)


def test_caltech_random_as_the_original(caltech: Caltech) -> None:
    path, label = caltech
    config = SplitConfig(method="random", train="rest", validation=5000, test=6000)
    split = assign(path, label, config)
    assert np.bincount(split + 1).tolist() == [0, 19_607, 5000, 6000]
    # By chance, so some class is off by more than stratification would ever be.
    counts = table(split, label)
    assert np.abs(counts[:, 3] - np.bincount(label) * 6000 / 30_607).max() > 2


@pytest.mark.parametrize("n", [30, 60])
def test_caltech_train_per_class(caltech: Caltech, n: int) -> None:
    path, label = caltech
    counts = table(assign(path, label, SplitConfig(train_per_class=n)), label)
    left = np.bincount(label) - n
    assert not counts[:, 0].any()
    assert (counts[:, 1] == n).all()
    np.testing.assert_allclose(counts[:, 2], left * 0.15 / 0.35, atol=1)
    assert (counts[:, 3] == left - counts[:, 2]).all()


def test_caltech_train_per_class_and_the_rest_for_test(caltech: Caltech) -> None:
    path, label = caltech
    config = SplitConfig(train_per_class=30, validation=0.1, test="rest")
    n_each = table(assign(path, label, config), label).sum(axis=0)
    assert n_each.tolist() == [0, 30 * 257, 3061, 30_607 - 30 * 257 - 3061]


def test_caltech_order_does_not_matter_but_seed_does(caltech: Caltech) -> None:
    path, label = caltech
    order = np.random.default_rng(0).permutation(len(path))
    for config in (SplitConfig(), SplitConfig(method="random"), SplitConfig(train_per_class=30)):
        split = assign(path, label, config)
        again = assign(path[order], label[order], config, content=order)
        np.testing.assert_array_equal(again, split[order])
        other = assign(path, label, config, seed=1)
        assert 0.3 < (other != split).mean() < 0.8


def test_caltech_one_image_more_moves_few(caltech: Caltech) -> None:
    path, label = caltech
    split = assign(path, label, SplitConfig())
    more = assign([*path, "001.ak47/001_9999.jpg"], [*label, 0], SplitConfig())
    assert (more[:-1] != split).sum() < 20


# --- shares and apportion ------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 0.5), st.floats(0, 0.5), st.integers(0, 2))
def test_shares_add_up(n: int, a: float, b: float, place: int) -> None:
    wanted = [a, b]
    wanted.insert(place, "rest")
    found = count_rows(n, wanted)
    assert sum(found) == n
    assert min(found) >= 0
    for w, count in zip(wanted, found, strict=True):
        if w != "rest":
            assert abs(count - w * n) <= 1


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 98), st.integers(0, 98))
def test_fractions_of_the_whole_take_every_row(n: int, a: float, b: float) -> None:
    assume(a + b < 100)
    found = count_rows(n, (a / 100, b / 100, (100 - a - b) / 100))
    assert sum(found) == n
    np.testing.assert_allclose(found, np.array([a, b, 100 - a - b]) * n / 100, atol=2)


def test_shares_by_hand() -> None:
    assert count_rows(4, (0.34, 0.33, 0.33)) == [2, 1, 1]
    assert count_rows(3, (0.5, 0.5, 0.0)) == [1, 2, 0]
    assert count_rows(100, (50, 0.1, 0.2)) == [50, 10, 20]
    assert count_rows(100, (50, "rest", 20)) == [50, 30, 20]


@settings(deadline=None)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=30), st.data())
def test_apportion(sizes: list[int], data: st.DataObject) -> None:
    sizes = np.array(sizes)
    total = data.draw(st.integers(0, int(sizes.sum())))
    counts = apportion(sizes, total)
    assert counts.sum() == total
    assert (counts >= 0).all()
    assert (counts <= sizes).all()
    if total >= len(sizes):
        assert (counts >= np.minimum(sizes, 1)).all()
    exact = sizes * total / max(sizes.sum(), 1)
    if (exact >= 1).all():  # nothing but proportion decides
        assert (np.abs(counts - exact) < 1).all()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1), st.data())
def test_apportion_with_a_limit(sizes_and_most: list[tuple[int, int]], data: st.DataObject) -> None:
    sizes, most = np.array(sizes_and_most).T
    most = np.minimum(sizes, most)
    total = data.draw(st.integers(0, int(most.sum())))
    counts = apportion(sizes, total, most)
    assert counts.sum() == total
    assert ((counts >= 0) & (counts <= most)).all()
    assert total < len(sizes) or counts.min() >= 1


# --- assign_splits -------------------------------------------------------------------------------

SIZES = st.lists(st.integers(3, 40), min_size=1, max_size=12)


@settings(deadline=None, max_examples=200)
@given(SIZES, st.integers(0, 9), st.integers(5, 33), st.integers(5, 33), st.booleans())
def test_stratified(
    sizes: list[int], seed: int, validation: int, test: int, explicit: bool
) -> None:
    path, label = rows_of(sizes)
    train = (100 - validation - test) / 100 if explicit else "rest"
    config = SplitConfig(train=train, validation=validation / 100, test=test / 100)
    counts = table(assign(path, label, config, seed=seed), label)
    assert not counts[:, 0].any()
    totals = counts.sum(axis=0)[1:]
    wanted = np.array([100 - validation - test, validation, test]) * sum(sizes) / 100
    np.testing.assert_allclose(totals, wanted, atol=2)
    for split, total in enumerate(totals):
        if total >= len(sizes):
            assert (counts[:, split + 1] > 0).all()


@settings(deadline=None)
@given(st.lists(st.integers(3, 40), min_size=1, max_size=12), st.integers(5, 30))
def test_parts_of_the_images(sizes: list[int], percent: int) -> None:
    path, label = rows_of(sizes)
    part = percent / 100
    assume(round(part * sum(sizes)) > 0)
    counts = table(assign(path, label, SplitConfig(train=part, validation=part, test=part)), label)
    assert counts.sum(axis=0)[1:].tolist() == [round(part * sum(sizes))] * 3


def test_small_classes_beside_a_large_one_are_in_every_split() -> None:
    # Each part rounded by itself, these took four of a class of three for validation and test.
    path, label = rows_of([3] * 10 + [100])
    counts = table(assign(path, label, SplitConfig(validation=0.4, test=0.4)), label)
    assert counts[:10].tolist() == [[0, 1, 1, 1]] * 10
    assert counts.sum(axis=0).tolist() == [0, 26, 52, 52]


@pytest.mark.parametrize("method", ["stratified", "random"])
@pytest.mark.parametrize("duplicates", ["together", "drop"])
@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 99))
def test_identical_files_are_never_on_two_sides(method: str, duplicates: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path, label = rows_of([30, 30, 40])
    content = rng.integers(0, 80, 100) + 1000 * label  # many of the same bytes
    content[rng.integers(0, 100, 3)] = 5  # and some of them across classes
    usable = rng.random(100) > 0.1
    config = SplitConfig(method=method, duplicates=duplicates)
    split = assign(path, label, config, seed=seed, content=content, usable=usable)
    assert (split[~usable] == -1).all()
    for same in np.unique(content[usable]):
        rows = np.flatnonzero((content == same) & usable)
        if duplicates == "together":
            assert len(set(split[rows])) == 1
            assert split[rows[0]] >= 0
        else:
            assert (split[rows] >= 0).sum() == 1
            first = min(rows, key=lambda row: path[row])
            assert split[first] >= 0


def test_identical_files_in_another_order() -> None:
    path, label = rows_of([10, 10])
    content = np.arange(20) // 2
    order = np.random.default_rng(0).permutation(20)
    config = SplitConfig(duplicates="drop")
    split = assign(path, label, config, content=content)
    again = assign(np.array(path)[order], label[order], config, content=content[order])
    np.testing.assert_array_equal(again, split[order])


@pytest.mark.parametrize("rest", ["validation", "test"])
def test_train_per_class_beside_the_rest(rest: str) -> None:
    path, label = rows_of([60, 40])
    other = "test" if rest == "validation" else "validation"
    config = SplitConfig(train_per_class=30, **{other: 0.1, rest: "rest"})
    counts = table(assign(path, label, config), label)
    assert counts[:, :2].tolist() == [[0, 30], [0, 30]]
    held_out = dict(zip(("validation", "test"), counts[:, 2:].sum(axis=0), strict=True))
    assert held_out == {other: 10, rest: 30}


def test_folders_that_say_the_split() -> None:
    path, label = rows_of([4, 4])
    given_split = [0, 0, 1, 2] * 2
    for method in ("auto", "folders"):
        split = assign(path, label, SplitConfig(method=method), given_split=given_split)
        assert split.tolist() == given_split
    stratified = SplitConfig(method="stratified", validation=0.25, test=0.25)
    assert (
        table(assign(path, label, stratified, given_split=given_split), label).tolist()
        == [[0, 2, 1, 1]] * 2
    )


def test_an_unreadable_file_takes_no_part_in_folders() -> None:
    path, label = rows_of([4, 4])
    given_split = np.array([0, 0, 1, 2] * 2)
    usable = np.arange(8) != 3
    split = assign(path, label, SplitConfig(), given_split=given_split, usable=usable)
    assert split.tolist() == [0, 0, 1, -1, 0, 0, 1, 2]


@pytest.mark.parametrize(
    ("sizes", "config", "message"),
    [
        ([9, 2], SplitConfig(), r"Class class 1 has 2 different images for 3 splits\. Add images"),
        ([9, 0, 9], SplitConfig(), r"Class class 1 has 0 different images for 3 splits"),
        (
            [40, 30],
            SplitConfig(train_per_class=30),
            r"class 1 has 30 .*train_per_class` = 30 leaves too",
        ),
        ([40, 31], SplitConfig(train_per_class=30), r"class 1 has 31 .* too few for validation"),
        ([9, 9], SplitConfig(method="folders"), r"needs train/, .* Not so: 0/0\.jpg\."),
        ([9, 9], SplitConfig(train="rest", test="rest"), r"Only one split can be the rest\. Recei"),
        ([9, 9], SplitConfig(validation=15, test=15), r"ask for 30 of 18 images: .* smaller\."),
        ([9, 9], SplitConfig(train=0.5, validation=0.4), r"ask for 20 of 18 images"),
        ([90, 90], SplitConfig(train_per_class=30, test=200), r"ask for 227 of 180 images"),
        ([9, 9], SplitConfig(train=0), r"No image is left to train on\. Change \[split\]"),
    ],
)
def test_a_split_that_cannot_be(sizes: list[int], config: SplitConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assign(*rows_of(sizes), config)


def test_no_readable_image() -> None:
    path, label = rows_of([5, 5])
    with pytest.raises(ValueError, match=r"No image is left to train on"):
        assign(path, label, SplitConfig(method="random"), usable=np.zeros(10, bool))


def test_duplicates_count_once_for_a_class() -> None:
    path, label = rows_of([9, 9])
    content = np.where(label == 0, np.arange(18), 99)
    with pytest.raises(ValueError, match="Class class 1 has 1 different images"):
        assign(path, label, SplitConfig(), content=content)


def test_a_class_of_three_will_do() -> None:
    path, label = rows_of([3, 50])
    counts = table(assign(path, label, SplitConfig()), label)
    assert counts[0].tolist() == [0, 1, 1, 1]


def test_no_validation_or_test_asked() -> None:
    path, label = rows_of([2, 5])
    split = assign(path, label, SplitConfig(validation=0, test=0))
    assert (split == 0).all()


def test_fractions_of_exactly_one_pass_the_check() -> None:
    path, label = rows_of([500, 500])
    for config in (
        SplitConfig(train=0.7, validation=0.1, test=0.2),
        SplitConfig(train_per_class=30, train=0.9),
    ):
        assert (assign(path, label, config) >= 0).all()


def test_hash_keys_are_the_same_for_ever() -> None:
    # From blake2b(b"0\0order\0a.jpg"), so that a list made today is the list made tomorrow.
    assert hash_keys(["a.jpg"], seed=0, use="order").tolist() == [1_798_948_592_294_547_972]
    assert hash_keys([], seed=0, use="order").shape == (0,)
    keys = {hash_keys(["a"], seed, use)[0] for seed in (0, 1) for use in ("order", "split")}
    assert len(keys) == 4


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), max_size=30))
def test_count_duplicates(rows: list[tuple[int, int]]) -> None:
    content = np.array([c for c, _ in rows], np.uint64)
    label = np.array([k for _, k in rows], np.int32)
    first = {}
    for c, k in rows:
        first.setdefault(c, k)
    expected = len(rows) - len(first), sum(first[c] != k for c, k in rows)
    assert count_duplicates(content, label) == expected
