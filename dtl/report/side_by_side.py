"""The page of several runs beside each other."""

from __future__ import annotations

import itertools
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bokeh.palettes import Category10

from dtl.evaluation.pairing import Pairing, list_changes
from dtl.evaluation.values import Evaluation
from dtl.report import plots
from dtl.report.page import fill

MOST_RUNS = 20
_MOST_PICTURES = 24
"""Images on which two runs differ, of each kind; fewer of each pair where there are many."""
_MOST_CHANGES = 20


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Everything that the page of several runs shows.

    Parameters
    ----------
    title : str
        Name of the first run's photographs.
    names : sequence of str
        Names of the runs; all but the first are held against it.
    split : str
        The one that all runs were scored on, and whose images are compared; empty if there is none.
    options : sequence of (key, a text for each run)
        Options that differ.
    pairings : sequence of Pairing
        Of the first run with each other one; empty without a split.
    pictures : dict of path to bytes
        Small JPEGs of what `list_pictures` lists; some may be missing.
    warnings : sequence of str
        Facts that a reader must know before any number.
    """

    title: str
    names: Sequence[str]
    split: str
    evaluations: Sequence[Evaluation]
    options: Sequence[tuple[str, Sequence[str]]]
    pairings: Sequence[Pairing]
    pictures: Mapping[str, bytes]
    warnings: Sequence[str] = ()


def list_pictures(pairings: Sequence[Pairing]) -> list[str]:
    """List the paths of the pictures on the page."""
    shown = {p.path[k]: None for p in pairings for w in (0, 1) for k in _select(p, w, pairings)}
    return [*shown]


def _select(pairing: Pairing, winner: int, pairings: Sequence[Pairing]) -> list[int]:
    return pairing.select(winner, max(_MOST_PICTURES // len(pairings), 4))


def list_unfairness(pairing: Pairing, first: str, second: str) -> list[str]:
    """Say what of two runs cannot be compared, and why."""
    said = []
    for n, total, own, other in zip(
        pairing.n_trained_on, pairing.n_scored, (first, second), (second, first), strict=True
    ):
        if n:
            said.append(
                f"{n:,} of the {total:,} {pairing.split} images of {own} were training images of "
                f"{other}, which knows their labels: the scores of the two must not be compared. "
                "Only images that neither was trained on are compared one by one."
            )
    if not pairing.n_common:
        said.append(
            f"{first} and {second} have no {pairing.split} image in common that neither was "
            "trained on, so nothing tells which is better. Images are the same if they have the "
            "same path below `images.url`, and the same bytes."
        )
    if pairing.n_changed:
        said.append(
            f"{pairing.n_changed:,} {pairing.split} images have other bytes in {second} than in "
            f"{first}, and are left out."
        )
    if pairing.n_relabelled:
        said.append(
            f"{pairing.n_relabelled:,} {pairing.split} images are of another class in {second} "
            f"than in {first}, and are left out."
        )
    return said


def render_side_by_side(shown: SideBySide) -> str:
    """Return runs side by side as one HTML file; the same input gives the same text."""
    colors: Sequence[str] = (plots.COLORS["test"], plots.COLORS["wrong"])
    if len(shown.names) > 2:
        colors = [*itertools.islice(itertools.cycle(Category10[10]), len(shown.names))]
    compared = []
    for pairing, name, color in zip(
        shown.pairings, shown.names[1:], colors[1:], strict=bool(shown.pairings)
    ):
        changes = list_changes(pairing)
        won = [c for c in changes if c.gain > 0][:_MOST_CHANGES]
        lost = [c for c in reversed(changes) if c.gain < 0][:_MOST_CHANGES]
        compared.append(
            {
                "name": name,
                "color": color,
                "pairing": pairing,
                "changes": won + lost[::-1],
                "n_changes": len(changes),
                "most": max((abs(c.gain) for c in changes), default=1),
                "images": {w: _select(pairing, w, shown.pairings) for w in (1, 0)},
            }
        )
    return fill(
        "side_by_side.html",
        {},
        shown=shown,
        runs=list(zip(shown.names, shown.evaluations, colors, strict=True)),
        compared=compared,
        pictures={path: b64encode(jpeg).decode() for path, jpeg in shown.pictures.items()},
    )
