"""Two heads on the same images, against tests of others and examples of the literature."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, false_discovery_control

from dtl.evaluation.pairing import (
    Outcomes,
    adjust,
    find_difference_interval,
    list_changes,
    mcnemar,
    pair,
)

NAMES = ("ant", "bee", "cat")


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert mcnemar(first, second) == mcnemar(second, first)


def test_an_example_of_the_literature() -> None:
    """Airway reactivity of 21 children before and after transplantation, Bentur et al. (2009).

    As in Fagerland, Lydersen, Laake (2014), Statistics in Medicine 33: 1 and 7 differ. The test is
    9 / 128; the interval is that of 2 / 23 and 8 / 23.
    """
    assert mcnemar(1, 7) == pytest.approx(9 / 128)
    half = 1.959964 * math.sqrt((10 / 23 - (6 / 23) ** 2) / 23)
    expected = (-6 / 23 - half, -6 / 23 + half)
    assert find_difference_interval(7, 1, 21) == pytest.approx(expected, abs=1e-6)


def test_intervals_hold() -> None:
    """About 95 % of made-up pairs of classifiers have their difference within the interval."""
    rng = np.random.default_rng(0)
    shares = (0.08, 0.05)  # that only the first, and only the second gets right
    drawn = rng.multinomial(200, [*shares, 1 - sum(shares)], 4000)
    ends = np.array([find_difference_interval(a, b, 200) for a, b, _ in drawn])
    holds = (ends[:, 0] <= -0.03) & (ends[:, 1] >= -0.03)
    assert 0.94 < holds.mean() < 0.97
    assert find_difference_interval(0, 0, 10)[0] < 0 < find_difference_interval(0, 0, 10)[1]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_is_between_one_test_and_bonferroni(p_values: list[float]) -> None:
    found = np.array(adjust(p_values))
    assert (found >= p_values).all()
    assert (found <= np.minimum(1, len(p_values) * np.array(p_values))).all()
    # Benjamini and Hochberg's promise less.
    assert (found >= false_discovery_control(p_values) - 1e-12).all()


def outcomes(paths: list[str], split: list[int], predicted: str, true: str = "") -> Outcomes:
    """Answers for images; the first letter of a path is that of its class, unless given."""
    letters = "abc"
    return Outcomes(
        tuple(paths),
        np.array([zlib.crc32(path.encode()) for path in paths], np.uint64),
        np.array(split, np.int8),
        np.array([letters.index(t) for t in true or [path[0] for path in paths]], np.int32),
        np.array([letters.index(p) for p in predicted], np.int32),
        np.linspace(0.9, 0.5, len(paths)).astype(np.float32),
        NAMES,
    )


PATHS = ["a1", "a2", "b1", "b2", "b3", "c1"]


def test_the_same_images_are_found_in_any_order() -> None:
    first = outcomes(PATHS, [2] * 6, "aaabbc")
    order = [5, 3, 1, 0, 2, 4]
    shuffled = outcomes([PATHS[k] for k in order], [2] * 6, "".join("abbbbc"[k] for k in order))
    found = pair(first, shuffled, "test")
    assert found.path == tuple(PATHS)
    assert found.right.tolist() == [[1, 1, 0, 1, 1, 1], [1, 0, 1, 1, 1, 1]]
    assert (found.n_common, found.n_both, found.n_only) == (6, 4, (1, 1))
    assert found.difference == 0
    assert found.p_value == 1
    assert [found.path[k] for k in found.select(0, 9)] == ["a2"]
    assert [found.path[k] for k in found.select(1, 9)] == ["b1"]
    assert [(c.name, c.gain, c.n_right, c.n_images) for c in list_changes(found)] == [
        ("bee", 1, (2, 3), 3), ("ant", -1, (2, 1), 2),
    ]  # fmt: skip


def test_images_that_the_other_was_trained_on_are_told_and_left_out() -> None:
    first = outcomes(PATHS, [2, 2, 2, 0, 0, 1], "aabbbc")
    second = outcomes(PATHS, [2, 0, 2, 2, 1, 2], "aabbbc")
    found = pair(first, second, "test")
    assert found.path == ("a1", "b1")
    assert found.n_scored == (3, 4)
    assert found.n_trained_on == (1, 1)
    # A copy of a test image under another name is one, too.
    copy = replace(second, content_hash=second.content_hash.copy())
    copy.content_hash[1] = first.content_hash[0]
    assert pair(first, copy, "test").n_trained_on == (1, 1)
    assert pair(first, copy, "test").path == ("b1",)


def test_nothing_in_common() -> None:
    first, second = (outcomes([f"a{k}{n}" for n in range(3)], [2] * 3, "aab") for k in range(2))
    found = pair(first, second, "test")
    assert (found.n_common, found.n_trained_on, found.p_value) == (0, (0, 0), 1)
    assert list_changes(found) == []
    with pytest.raises(ZeroDivisionError):
        _ = found.difference


def test_other_bytes_and_other_classes_are_left_out() -> None:
    first = outcomes(PATHS, [2] * 6, "aabbbc")
    second = outcomes(PATHS, [2] * 6, "aabbbc", true="abbbbc")
    second.content_hash[5] += 1
    found = pair(first, second, "test")
    assert found.path == ("a1", "b1", "b2", "b3")
    assert (found.n_changed, found.n_relabelled) == (1, 1)
