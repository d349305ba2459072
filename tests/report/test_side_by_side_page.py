"""The page of runs beside each other."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from dtl.evaluation.metrics import count, score
from dtl.evaluation.pairing import Outcomes, Pairing, pair
from dtl.evaluation.values import Evaluation
from dtl.report.side_by_side import SideBySide, list_pictures, list_unfairness, render_side_by_side

HOSTILE = "<script>pwned = 1</script>{{ 7 * 7 }}\"'\nline" + "x" * 4000


def make_pairing(n_images: int, names: tuple[str, ...], path: str = "{}.jpg") -> Pairing:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(names), n_images).astype(np.int32)

    def classify(share: float) -> Outcomes:
        guesses = rng.integers(0, len(names), n_images).astype(np.int32)
        right = rng.random(n_images) < share
        return Outcomes(
            tuple(path.format(k) for k in range(n_images)), np.arange(n_images, dtype=np.uint64),
            np.full(n_images, 2, np.int8), labels, np.where(right, labels, guesses),
            rng.random(n_images).astype(np.float32), names,
        )  # fmt: skip

    return pair(classify(0.7), classify(0.75), "test")


def show(pairings: list[Pairing], names: tuple[str, ...], picture: bytes = b"jpeg") -> SideBySide:
    scores = score(count(np.eye(len(names))[:2], np.arange(2)), names)
    runs = [f"run {k}" for k in range(len(pairings) + 1)]
    return SideBySide(
        "photos", runs, "test", [Evaluation({"test": scores}, (), names)] * len(runs),
        [("train.l2", [f"{k}" for k in range(len(runs))])], pairings,
        dict.fromkeys(list_pictures(pairings), picture),
    )  # fmt: skip


@pytest.mark.parametrize("n_others", [1, 19])
def test_runs_of_30_000_images_are_a_small_page(n_others: int) -> None:
    names = tuple(f"{k:03d}.class-{k}" for k in range(257))
    shown = show([make_pairing(7_600, names)] * n_others, names, b"\xff" * 12_000)
    page = render_side_by_side(shown)
    assert len(page.encode()) < (1.5e6 if n_others == 1 else 5e6)
    assert page.count("data:image/jpeg") == (48 if n_others == 1 else 8 * 19)
    found = shown.pairings[0]
    assert f"{found.n_only[0]:,}</b>only run 0 is right" in page
    assert f"{100 * found.difference:+.1f}" in page
    assert page == render_side_by_side(shown)


def test_everything_is_shown_whatever_its_name() -> None:
    shown = show([make_pairing(40, (HOSTILE, "bee"), HOSTILE.replace("{", "{{").replace("}", "}}")
                               + "{}")], (HOSTILE, "bee"))  # fmt: skip
    shown = replace(
        shown, title=HOSTILE, names=[HOSTILE, "b"], options=[("x", [HOSTILE, "1"])],
        warnings=[HOSTILE],
    )  # fmt: skip
    page = render_side_by_side(shown)
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.S)
    assert len(scripts) == 2
    assert not any("pwned" in script for script in scripts)
    assert "{{ 7 * 7 }}" in page
    assert "&lt;script&gt;" in page
    assert "\\nlinexxx" in page


def test_nothing_to_compare() -> None:
    names = ("ant", "bee")
    none = make_pairing(0, names)
    page = render_side_by_side(show([none], names))
    assert "They have no test image in common" in page
    assert "have no test image in common" in list_unfairness(none, "a", "b")[0]
    page = render_side_by_side(replace(show([none], names), split="", pairings=[], options=[]))
    assert "made with the same options" in page
    same = make_pairing(9, names)
    same.predicted[:] = same.true
    page = render_side_by_side(show([same], names))
    assert "may well be chance" in page
    assert "Classes won and lost" not in page
