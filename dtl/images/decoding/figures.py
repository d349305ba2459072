"""Figures of a picture that tell odd ones apart: its size, and how bright and sharp it is.

They cost a fraction of a millisecond, of the pixels that the network sees. All sums are of whole
numbers, so that they have the same bits on any machine.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class Figures(NamedTuple):
    """Figures of a picture; NaN where it could not be read."""

    width: float  # pixels in the file, upright
    height: float
    brightness: float  # mean grey value of the resized picture, 0 (black) to 255 (white)
    contrast: float  # standard deviation of its grey values, 0 to 127.5
    sharpness: float  # root mean square of its Laplacian, per contrast


FIGURES = Figures._fields
"""Names of the figures, in the order of the column of a feature store."""

UNKNOWN = Figures(*[math.nan] * len(FIGURES))
"""Figures of an image that could not be read."""

_VALUES = np.arange(256)


def compute_figures(picture: Image.Image, size: tuple[int, int]) -> Figures:
    """Compute the figures of a picture.

    The Laplacian is the difference of a pixel from its four neighbours. Of photographs of 224 x 224
    its root mean square is 0.2 to 0.9 of the contrast; a blur over three pixels makes that a third.

    Parameters
    ----------
    picture : Image
        Resized, in any mode.
    size : (width, height)
        Of the picture in the file.

    References
    ----------
    Pech-Pacheco et al. (2000), Diatom autofocusing in brightfield microscopy: the variance of the
    Laplacian as a measure of focus.

    Examples
    --------
    >>> compute_figures(Image.new("RGB", (8, 8), "white"), (640, 480))
    Figures(width=640, height=480, brightness=255.0, contrast=0.0, sharpness=0.0)
    """
    grey = picture if picture.mode == "L" else picture.convert("L")
    counts = np.array(grey.histogram(), np.int64)
    n, total, squares = (int(counts @ _VALUES**power) for power in range(3))
    spread = n * squares - total * total  # n**2 times the variance
    if spread == 0:
        return Figures(*size, total / n, 0.0, 0.0)
    sharpness = math.sqrt(_measure_edges(np.asarray(grey)) * n * n / spread)
    return Figures(*size, total / n, math.sqrt(spread) / n, sharpness)


def _measure_edges(grey: NDArray[np.uint8]) -> float:
    """Return the mean square of the Laplacian, over every other row: all take twice as long."""
    if min(grey.shape) < 3:
        return 0.0
    values = grey.astype(np.int16)
    found = values[1:-1:2, 1:-1] * np.int16(-4)
    for neighbours in (
        values[1:-1:2, :-2], values[1:-1:2, 2:], values[:-2:2, 1:-1], values[2::2, 1:-1],
    ):  # fmt: skip
        found += neighbours
    return int(np.square(found, dtype=np.int32).sum(dtype=np.int64)) / found.size
