"""The distance of a quantized network's features from those of the network that it was made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST_IMAGES = 100
"""Below, there is no k-NN: an image more or less would be a point or more."""

LEAST_COSINE = 0.98
"""Least mean cosine that is not refused."""

MOST_LOST = 0.003
"""Accuracy that int8 may cost: 0.3 points."""

_Z = 1.96
"""Standard deviations on each side of a 95 % interval."""


def measure_distance(
    exact: Mapping[str, NDArray[np.floating[Any]]],
    quantized: Mapping[str, NDArray[np.floating[Any]]],
    label: NDArray[np.integer[Any]],
) -> dict[str, Any]:
    """Compare features of the same images, (n_images, n_features) by layer.

    Returns, of JSON's types, ``n_images``, ``n_classes``, and by layer the ``cosine`` (mean and
    least), and where images suffice the accuracy of 1-NN with either, leave-one-out, by cosine; the
    change, and its 95 % interval.
    """
    return {
        "n_images": len(label),
        "n_classes": len(np.unique(label)),
        "layers": {
            layer: _compare(exact[layer].astype(float), quantized[layer].astype(float), label)
            for layer in exact
        },
    }


def _compare(
    exact: NDArray[np.float64], quantized: NDArray[np.float64], label: NDArray[np.integer[Any]]
) -> dict[str, Any]:
    ours, its = _unit_rows(exact), _unit_rows(quantized)
    # Two rows of zeros are the same; a row of zeros and another are as far as can be.
    cosine = np.where((ours == its).all(1), 1.0, (ours * its).sum(1))
    found = {"cosine_mean": float(cosine.mean()), "cosine_least": float(cosine.min())}
    _, counts = np.unique(label, return_counts=True)
    if (n_images := int(counts[counts > 1].sum())) < FEWEST_IMAGES:
        return found
    # The only image of a class has no neighbour of its own.
    judged = np.isin(label, np.unique(label)[counts > 1])
    right = [_find_nearest(rows[judged], label[judged]) == label[judged] for rows in (ours, its)]
    n_lost, n_won = (int((a & ~b).sum()) for a, b in (right, right[::-1]))
    change, interval = interval_of_change(n_lost, n_won, n_images)
    return found | {
        "accuracy_exact": float(right[0].mean()),
        "accuracy_int8": float(right[1].mean()),
        "change": change,
        "interval": list(interval),
    }


def interval_of_change(n_lost: int, n_won: int, n: int) -> tuple[float, tuple[float, float]]:
    """Return the change of a share of `n`, and its 95 % interval.

    `n_lost` became wrong and `n_won` right. Half of one is added to each, so that where nothing
    changed the interval still says how little so few images can tell.

    Examples
    --------
    >>> change, (low, high) = interval_of_change(0, 0, 300)
    >>> change, round(low, 4), round(high, 4)
    (0.0, -0.0065, 0.0065)

    References
    ----------
    Agresti and Min (2005), Simple improved confidence intervals for comparing matched proportions.
    """
    lost, won, total = n_lost + 0.5, n_won + 0.5, n + 2
    middle = (won - lost) / total
    half = _Z * math.sqrt(won + lost - (won - lost) ** 2 / total) / total
    return (n_won - n_lost) / n, (middle - half, middle + half)


def find_refusal(distance: Mapping[str, Any]) -> str:
    """Say why a network is too far from the one that it was made of; empty if it is not.

    On a few hundred images one decision is more than 0.3 points. So a loss beyond that counts where
    its interval excludes that there is none. Smaller ones only the cosine tells.
    """
    for layer, found in distance["layers"].items():
        if found["cosine_mean"] < LEAST_COSINE:
            return (
                f"features of {layer} have a mean cosine of {found['cosine_mean']:.4f} with those "
                f"in float32, less than {LEAST_COSINE}"
            )
        if "change" in found and found["change"] < -MOST_LOST and found["interval"][1] < 0:
            low, high = (100 * bound for bound in found["interval"])
            return (
                f"the accuracy of 1-NN on {layer} changes by {100 * found['change']:.2f} points "
                f"({low:.2f} to {high:.2f} with 95 %), and may lose {100 * MOST_LOST:.1f}"
            )
    return ""


def describe(distance: Mapping[str, Any]) -> str:
    """Say what was measured."""
    texts = []
    for layer, found in distance["layers"].items():
        text = f"{layer}: cosine {found['cosine_mean']:.4f}, least {found['cosine_least']:.4f}"
        if "change" in found:
            low, high = (100 * bound for bound in found["interval"])
            text += f", 1-NN {100 * found['change']:+.2f} points ({low:+.2f} to {high:+.2f})"
        texts.append(text)
    return f"On {distance['n_images']} images held out, against float32: {'; '.join(texts)}"


def _unit_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.sqrt((rows**2).sum(1, keepdims=True))
    scaled: NDArray[np.float64] = rows / np.where(length > 0, length, 1)
    return scaled


def _find_nearest(
    rows: NDArray[np.float64], label: NDArray[np.integer[Any]]
) -> NDArray[np.integer[Any]]:
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    nearest: NDArray[np.integer[Any]] = label[similarity.argmax(1)]
    return nearest
