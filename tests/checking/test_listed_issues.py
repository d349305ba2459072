from __future__ import annotations

import numpy as np

from dtl.checking import listing
from dtl.checking.duplicates import Duplicates, link
from dtl.checking.listing import Rows
from dtl.checking.values import (
    ALL,
    APART,
    BOTH,
    CLEAN,
    DUPLICATE,
    LABEL,
    LEAK,
    PERHAPS,
    Accuracy,
    Issue,
)
from dtl.images.values import TEST, TRAIN, VALIDATION

SPLIT = [TRAIN, TRAIN, VALIDATION, TEST, TEST, TEST, TRAIN, -1]
ROWS = Rows(
    path=np.array([f"{k}.jpg" for k in range(8)], np.dtypes.StringDType()),
    label=np.array([0, 0, 0, 1, 1, 1, 1, -1], np.int32),
    split=np.array(SPLIT, np.int8),
    usable=np.ones(8, bool),
    names=("ant", "bee"),
)


Pair = tuple[int, int, float]


def make_twins(*pairs: Pair, n_identical: int = 0, near: tuple[Pair, ...] = ()) -> Duplicates:
    def columns(pairs: tuple[Pair, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        a, b = (np.array([pair[k] for pair in pairs], np.int64) for k in (0, 1))
        return a, b, np.array([pair[2] for pair in pairs], np.float32)

    a, b, likeness = columns(pairs)
    identical = np.arange(len(a)) < n_identical
    return Duplicates(
        a, b, likeness, likeness, identical, link(a, b, 8), 0.93, *columns(near), 0.5, (), (0, 0),
        0, 0,
    )  # fmt: skip


def test_a_held_out_image_is_listed_once_with_its_likest_twin_in_training() -> None:
    found = listing.list_twins(ROWS, make_twins((0, 3, 0.99), (1, 3, 0.95), (1, 2, 0.94)))
    leaks = [issue for issue in found if issue.kind == LEAK]
    assert [(i.path, i.partner) for i in leaks] == [("3.jpg", "0.jpg"), ("2.jpg", "1.jpg")]
    assert (leaks[0].given, leaks[0].suggested) == ("bee", "ant")
    assert (leaks[1].given, leaks[1].suggested) == ("ant", "")
    assert found[: len(leaks)] == leaks


def test_a_twin_of_a_twin_in_training_is_a_leak_too() -> None:
    found = listing.list_twins(ROWS, make_twins((6, 4, 0.99), (4, 5, 0.96)))
    assert [(i.path, i.kind, i.partner, i.reason) for i in found] == [
        ("4.jpg", LEAK, "6.jpg", ""),
        ("5.jpg", LEAK, "6.jpg", "by way of another twin"),
        ("5.jpg", DUPLICATE, "4.jpg", ""),
    ]


def test_twins_on_one_side_and_of_no_split_are_no_leaks() -> None:
    found = listing.list_twins(ROWS, make_twins((0, 1, 1.0), (1, 7, 0.97), n_identical=1))
    assert [(i.path, i.kind, i.reason) for i in found] == [
        ("1.jpg", DUPLICATE, "identical files"),
        ("7.jpg", DUPLICATE, ""),
    ]
    assert found[1].given == ""
    assert listing.list_twins(ROWS, make_twins()) == []


def test_what_is_perhaps_a_leak_is_listed_after_the_leaks() -> None:
    near = ((0, 4, 0.921), (1, 4, 0.925), (3, 6, 0.922), (0, 1, 0.924), (2, 3, 0.926), (6, 7, 0.92))
    found = listing.list_twins(ROWS, make_twins((0, 3, 0.99), near=near))
    assert [(i.path, i.kind, i.partner) for i in found] == [
        ("3.jpg", LEAK, "0.jpg"),  # so it is not listed again
        ("4.jpg", PERHAPS, "1.jpg"),
    ]


def test_accuracy_beside_its_value_without_what_is_suspected() -> None:
    right = np.array([True, True, False, False, True, True, True, True])
    issues = [Issue("3.jpg", LABEL, 0.9), Issue("4.jpg", LEAK, 0.99, "6.jpg")]
    found = listing.compare_accuracies(right, ROWS, issues)
    assert found == {
        "train": (Accuracy(ALL, 3, 3), Accuracy(CLEAN, 3, 3)),
        "validation": (Accuracy(ALL, 1, 0), Accuracy(CLEAN, 1, 0)),
        "test": (
            Accuracy(ALL, 3, 2), Accuracy(CLEAN, 2, 2), Accuracy(APART, 2, 1), Accuracy(BOTH, 1, 1),
        ),
    }  # fmt: skip
