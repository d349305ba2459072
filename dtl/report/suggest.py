"""The page of images to label next."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping

from dtl.checking.suggested import COVERAGE, FEW_PER_CLASS, Suggestions
from dtl.report.page import fill

_MEASURED = (
    (20, 0.835, 0.530, 0.038),
    (40, 0.881, 0.718, 0.040),
    (80, 0.899, 0.812, 0.028),
    (160, 0.921, 0.885, 0.009),
    (320, 0.938, 0.912, 0.011),
)
"""Labels, accuracy with suggested and with random ones, and the gain's half interval.

From ``tests/bench/test_suggest.py``.
"""


def render_suggestions(found: Suggestions, pictures: Mapping[str, bytes], title: str) -> str:
    """Return a contact sheet of suggestions as one HTML file.

    Parameters
    ----------
    pictures : dict of path to bytes
        Small JPEGs of the first ones; some may be missing.
    title : str
        Name of the photographs.
    """
    encoded = {path: b64encode(jpeg).decode() for path, jpeg in pictures.items()}
    rows = list(zip(found.paths, found.guesses, found.margins, strict=True))
    return fill(
        "suggest.html", {}, found=found, rows=rows[: max(len(pictures), 1)], pictures=encoded,
        title=title, by_coverage=found.way == COVERAGE, few=FEW_PER_CLASS,
        measured=_MEASURED,
    )  # fmt: skip
