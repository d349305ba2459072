"""Likeness of two small pictures, of which one may be a part or the mirror image of the other.

A coarse search over scales, shifts and mirror images by normalised correlation, then Gauss-Newton
steps to the best scales and shifts between pixels. What is compared is grey, without its blurred
self: so neither brightness and contrast count, nor large areas such as a white background. What a
brighter copy has lost in white areas is cut off in the other picture, too.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

SIDE = 64
"""Pixels of a picture's sides, whatever its shape."""

_COARSE = SIDE // 2
_LEAST_COARSE = 25
"""Sides of the coarse search's parts: 78 % of the other picture are the smallest part."""
_COARSE_BLUR, _BLUR = 2.0, 4.0
"""Deviations in pixels of the blur that is taken away."""

_LEAST_BRIGHTER, _MOST_BRIGHTER, _BRIGHTER_STEPS = 1.02, 2.0, 5
"""Factors of brightness that are made up for, and steps in which one is found."""

_FLAT = 1.0
"""Length of a picture with nothing in it: a deviation of 1/64 of a grey value."""
_STEPS = 8
_SMALLEST_GAIN = 1e-4

Grey = NDArray[np.floating[Any]]


def make_grey(pixels: NDArray[np.uint8]) -> Grey:
    """Return grey values (height, width) of pixels (height, width, 3), as JPEG has them."""
    grey: Grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return grey


def measure_likeness(a: Grey, b: Grey) -> float:
    """Return how alike two pictures are: 1 for the same, about 0 for two that have nothing alike.

    Parameters
    ----------
    a, b : (SIDE, SIDE) float32
        Grey values. The result hardly depends on their order, and not on how often it is asked.

    Examples
    --------
    >>> grey = np.kron(np.random.default_rng(0).normal(128, 40, (12, 12)), np.ones((8, 8)))
    >>> shrink = resample(96, SIDE)
    >>> whole = shrink @ grey.astype(np.float32) @ shrink.T
    >>> shrink = resample(96, SIDE, scale=0.9, shift=5)
    >>> part = (1.3 * shrink @ grey.astype(np.float32) @ shrink.T)[:, ::-1]
    >>> bool(measure_likeness(whole, part) > 0.95), bool(measure_likeness(whole, whole.T) < 0.5)
    (True, True)
    """
    a, b = _cut_highlights(a, b), _cut_highlights(b, a)
    shrink = resample(SIDE, _COARSE)
    small_a, small_b = shrink @ a @ shrink.T, shrink @ b @ shrink.T
    best, found = -np.inf, (a, b, (1.0, 0.0, 1.0, 0.0))
    for mirrored, small in ((b, small_b), (b[:, ::-1], small_b[:, ::-1])):
        for whole, part, small_whole, small_part in (
            (a, mirrored, small_a, small), (mirrored, a, small, small_a)
        ):  # fmt: skip
            likeness, side, y, x = _find_part(small_whole, small_part)
            if likeness > best:
                scale, per_pixel = side / _COARSE, SIDE / _COARSE
                best, found = likeness, (whole, part, (scale, y * per_pixel, scale, x * per_pixel))
    return _refine(*found)


def _cut_highlights(grey: Grey, brighter: Grey) -> Grey:
    """Return a picture as bright as another, and with what that makes white cut off.

    That is how a copy which was made brighter looks: its white areas have lost what was in them. A
    picture that is as bright, or brighter, is returned as it is.
    """
    wanted, factor = float(brighter.mean()), 1.0
    for _ in range(_BRIGHTER_STEPS):
        factor *= wanted / max(float(np.minimum(grey * factor, 255).mean()), 1.0)
    if not _LEAST_BRIGHTER < factor < _MOST_BRIGHTER:
        return grey
    cut: Grey = np.minimum(grey * np.float32(factor), np.float32(255))
    return cut


@functools.cache
def _cached_resample(n: int, m: int) -> Grey:
    return _make_resample(n, m, 1.0, 0.0)


def resample(n: int, m: int, scale: float = 1.0, shift: float = 0.0) -> Grey:
    """Return the matrix (m, n) that resamples n pixels to m, linearly with antialiasing.

    The m pixels lie over a part of the n: `scale` of them, from `shift` on.
    """
    if scale == 1.0 and shift == 0.0:
        return _cached_resample(n, m)
    return _make_resample(n, m, scale, shift)


def _make_resample(n: int, m: int, scale: float, shift: float) -> Grey:
    step = scale * n / m
    centres = (np.arange(m) + 0.5) * step - 0.5 + shift
    weights = np.maximum(0, 1 - np.abs(np.arange(n) - centres[:, None]) / max(step, 1))
    # A pixel beyond the edge is grey, not an error: the refinement may look there.
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1e-6)
    matrix: Grey = (weights / total).astype(np.float32)
    return matrix


@functools.cache
def _make_blur(n: int, deviation: float) -> Grey:
    distance = np.arange(n)[:, None] - np.arange(n)
    weights = np.exp(-0.5 * (distance / deviation) ** 2)
    matrix: Grey = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


def _sharpen(grey: Grey, deviation: float) -> Grey:
    blur = _make_blur(len(grey), deviation)
    sharp: Grey = grey - blur @ grey @ blur.T
    return sharp


def _normalise(grey: Grey) -> Grey:
    flat = (grey - grey.mean()).ravel()
    normal: Grey = flat / max(float(np.linalg.norm(flat)), _FLAT)
    return normal


def _find_part(whole: Grey, part: Grey) -> tuple[float, int, int, int]:
    """Return likeness, side, row and column of the place in a picture that is most like another."""
    best = (-np.inf, _COARSE, 0, 0)
    sharp = _sharpen(whole, _COARSE_BLUR)
    for side in range(_LEAST_COARSE, _COARSE + 1):
        shrink = resample(_COARSE, side)
        wanted = _normalise(_sharpen(shrink @ part @ shrink.T, _COARSE_BLUR))
        windows = sliding_window_view(sharp, (side, side)).reshape(-1, side * side)
        squares = np.einsum("ij,ij->i", windows, windows) - windows.sum(axis=1) ** 2 / side**2
        likeness = windows @ wanted / np.sqrt(np.maximum(squares, _FLAT))
        at = int(likeness.argmax())
        if likeness[at] > best[0]:
            best = (float(likeness[at]), side, *divmod(at, _COARSE - side + 1))
    return best


def _refine(whole: Grey, part: Grey, place: tuple[float, float, float, float]) -> float:
    """Move and scale a part to where it is most like the whole; return how much.

    Levenberg-Marquardt steps over vertical scale and shift, horizontal scale and shift.
    """
    wanted = _normalise(_sharpen(part, _BLUR))

    def cut(at: NDArray[np.float64]) -> Grey:
        rows, columns = resample(SIDE, SIDE, at[0], at[1]), resample(SIDE, SIDE, at[2], at[3])
        return _normalise(_sharpen(rows @ whole @ columns.T, _BLUR))

    unit = np.array([0.004, 0.25, 0.004, 0.25])  # each a quarter of a pixel at the edge
    at, damping = np.array(place), 1e-3
    now = cut(at)
    likeness = float(now @ wanted)
    for _ in range(_STEPS):
        slopes = np.stack(
            [(cut(at + unit * way) - cut(at - unit * way)) / 2 for way in np.eye(4)], axis=1
        ).astype(np.float64)
        curvature = slopes.T @ slopes
        curvature += damping * np.diag(np.diag(curvature) + 1e-9)
        step = np.linalg.solve(curvature, slopes.T @ (wanted - now))
        moved = at + unit * np.clip(step, -6, 6)
        further = cut(moved)
        gain = float(further @ wanted) - likeness
        if gain > 0:
            at, now, likeness, damping = moved, further, likeness + gain, damping / 3
        else:
            damping *= 10
        if 0 <= gain < _SMALLEST_GAIN or damping > 100:
            break
    return likeness
