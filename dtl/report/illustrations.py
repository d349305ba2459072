"""What a report shows in pictures: confused classes, a map of the features, covered parts."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.palettes import Category20
from numpy.typing import NDArray

from dtl.config.text import printable
from dtl.evaluation.values import Occlusion

_COLORS = Category20[20]
MOST_NAMED = len(_COLORS)
"""Classes that have a colour of their own."""


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes that are taken for each other, and some training images of each.

    Parameters
    ----------
    names : (str, str)
    n_taken : (int, int)
        Images of the first taken for the second, and the other way round.
    paths : (tuple of str, tuple of str)
    """

    names: tuple[str, str]
    n_taken: tuple[int, int]
    paths: tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Images as points of a plane, of which those with like features lie near each other.

    Parameters
    ----------
    way : str
        `projection.TSNE` or `projection.PCA`.
    places : (n, 2) float
        In the unit square.
    label, predicted : (n,) int
    paths : tuple of str
    n_images : int
        Images of the split, of which the map has n.
    """

    way: str
    places: NDArray[np.float64]
    label: NDArray[np.int32]
    predicted: NDArray[np.int32]
    paths: tuple[str, ...]
    n_images: int


@dataclass(frozen=True, eq=False)
class Illustrations:
    """What is shown of a run in pictures; each part may be missing.

    Parameters
    ----------
    pictures : dict of path to bytes
        Small JPEGs of what `confused` and `occlusion` name.
    thumbnails : dict of path to bytes
        Tiny JPEGs of the points of the map.
    resize : {"stretch", "crop"}
        How the network saw the pictures.
    """

    confused: Sequence[ConfusedPair] = ()
    feature_map: FeatureMap | None = None
    occlusion: Occlusion | None = None
    pictures: Mapping[str, bytes] | None = None
    thumbnails: Mapping[str, bytes] | None = None
    resize: str = "stretch"


def list_colors(class_names: Sequence[str]) -> list[str]:
    """Return a colour for each class; of many classes, some share one."""
    return [_COLORS[k % len(_COLORS)] for k in range(len(class_names))]


def list_points(shown: Illustrations, class_names: Sequence[str]) -> list[list[Any]]:
    """List the points of the map, as its script draws them.

    Each has its place, in thousandths; colour, class, predicted class, path and picture.
    """
    found = shown.feature_map
    if found is None:
        return []
    colors, names = list_colors(class_names), [*map(printable, class_names)]
    thumbnails = shown.thumbnails or {}
    return [
        [
            round(1000 * x), round(1000 * y), colors[label], names[label], names[predicted],
            printable(path), b64encode(thumbnails.get(path, b"")).decode(),
        ]
        for (x, y), label, predicted, path in zip(
            found.places.tolist(), found.label.tolist(), found.predicted.tolist(), found.paths,
            strict=True,
        )
    ]  # fmt: skip


def list_cells(drop: Sequence[Sequence[float]]) -> list[tuple[int, int, float]]:
    """List column, row and strength, from -1 to 1, of the cells that a covered part has.

    Strengths are of the picture's own largest change.

    Examples
    --------
    >>> list_cells([[0.5, 0.0], [-0.25, 0.0]])
    [(0, 0, 1.0), (0, 1, -0.5)]
    """
    most = max((abs(value) for row in drop for value in row), default=0)
    return [
        (column, row, value / most)
        for row, values in enumerate(drop)
        for column, value in enumerate(values)
        if value
    ]
