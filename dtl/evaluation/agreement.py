"""How far the probabilities of a copy of a classifier are from those of the original."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LIMIT = 1e-4
"""Difference of a probability up to which a copy is the same classifier."""


@dataclass(frozen=True)
class Agreement:
    """Differences of probabilities, over the same images and all classes."""

    n_images: int
    max_difference: float
    mean_difference: float
    """Mean over the images of the largest of each."""
    n_same_class: int
    """Images with the same likeliest class."""


def compare(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> Agreement:
    """Compare probabilities (n_images, n_classes); NaN or infinity is as far as can be.

    Examples
    --------
    >>> compare(np.array([[0.75, 0.25], [0.5, 0.5]]), np.array([[0.5, 0.5], [0.5, 0.5]]))
    Agreement(n_images=2, max_difference=0.25, mean_difference=0.125, n_same_class=2)
    """
    largest = measure(found, wanted)
    same = found.argmax(axis=1) == wanted.argmax(axis=1)
    return Agreement(len(found), float(largest.max()), float(largest.mean()), int(same.sum()))


def measure(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the largest difference (n_images,) of each image's probabilities."""
    if found.shape != wanted.shape:
        raise ValueError(f"Probabilities of {found.shape} are no copy of those of {wanted.shape}.")
    difference = np.abs(found.astype(np.float64) - wanted)
    largest: NDArray[np.float64] = np.where(np.isfinite(difference), difference, 1.0).max(axis=1)
    return largest
