"""The page of a check."""

from __future__ import annotations

import html
import re

import pytest

from dtl.checking.values import (
    DUPLICATE,
    LABEL,
    LEAK,
    Accuracy,
    Check,
    DoubleClass,
    Issue,
    Neighbour,
    Overlap,
    SmallClass,
)
from dtl.report import checkup
from dtl.report.checkup import CheckInput

HOSTILE = "<script>pwned = 1</script>{{ 7 * 7 }}\"'"
PROVENANCE = {"check": {"folds": 5}, "layer": "fc2"}


def make_check(**changes: object) -> Check:
    made = {
        "n_images": 90, "n_labelled": 80, "n_judged": 70, "n_issues": {}, "n_wrong": 0.0,
        "held_out": (), "overlaps": (), "small": (), "provenance": PROVENANCE,
    }  # fmt: skip
    return Check(**{**made, **changes})  # type: ignore[arg-type]


def render(check: Check, issues: list[Issue] | None = None, **more: object) -> str:
    shown = checkup.select_issues(issues or [])
    paths = checkup.list_pictures(shown, check)
    made = {"pictures": dict.fromkeys(paths, b"jpeg"), "split_of": {}, "warnings": ()} | more
    return checkup.render(CheckInput("photos", check, shown, **made))  # type: ignore[arg-type]


def test_everything_is_shown_whatever_its_name() -> None:
    issues = [
        Issue(HOSTILE, LABEL, 0.99, given=HOSTILE, suggested="bee"),
        Issue("test.jpg", LEAK, 0.97, "train.jpg", "ant", "bee"),
        Issue("a.jpg", DUPLICATE, 1.0, "b.jpg", "ant", reason="identical files"),
        Issue("c.jpg", "blurred", 2.0, given="ant", reason=HOSTILE),
    ]
    check = make_check(
        n_issues={LABEL: 1, LEAK: 1, DUPLICATE: 1, "blurred": 1},
        held_out=(Accuracy("all", 70, 60), Accuracy("clean", 69, 60)),
        overlaps=(Overlap(HOSTILE, "bee", 3.5, 0.2),),
        small=(SmallClass(HOSTILE, 1, False),),
        double=(DoubleClass(HOSTILE, (20, 30), 0.01, (HOSTILE,), ("d.jpg",)),),
        neighbours={HOSTILE: (Neighbour("e.jpg", HOSTILE, 0.9),)},
        accuracies={"test": (Accuracy("all", 20, 15), Accuracy("clean", 19, 15))},
        relabel="relabel.csv",
    )
    page = render(check, issues, split_of={"test.jpg": "test"})
    assert "pwned = 1</script>" not in page
    assert page.count(html.escape(HOSTILE, quote=False).split("{")[0]) >= 7
    for text in ("test: test.jpg", "identical files", "ant and bee", "75.0\u202f%", "relabel.csv"):
        assert text in page, text
    assert not re.search(r"(?:src|href)=[\"']?https?:", page)
    assert len(page) < 60_000  # without a plotting library
    assert render(check, issues, split_of={"test.jpg": "test"}) == page
    assert "no picture" in render(check, issues, pictures={})


def test_a_check_that_found_nothing() -> None:
    page = render(make_check())
    assert "every label agrees" in page
    assert "No two classes overlap" in page
    for section in ("leaks", "duplicates", "odd", "accuracy"):
        assert f'id="{section}"' not in page


def test_a_check_without_labels() -> None:
    page = render(make_check(n_judged=0, n_labelled=0))
    assert "Labels are not judged" in page


@pytest.mark.parametrize("n", [61, 200])
def test_only_the_first_issues_of_a_kind_are_shown(n: int) -> None:
    issues = [Issue(f"{k}.jpg", LABEL, 0.9, given="ant", suggested="bee") for k in range(n)]
    page = render(make_check(n_issues={LABEL: n}), issues)
    assert f"the first 60 of {n}" in page
    assert "59.jpg" in page
    assert "60.jpg" not in page
