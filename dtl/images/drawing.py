"""A small labelled set of drawn pictures, to try everything without photographs."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from dtl import storage

CLASSES = ("arrow", "cross", "crescent", "heart", "house", "ring", "spiral", "star", "triangle")
N_IMAGES = 36
"""Pictures of each class."""

_SIDE = 256
_HUE_DEVIATION = 0.09
Point = tuple[float, float]
Colour = NDArray[np.integer[Any]]


def draw_pictures(url: str, seed: int, n_images: int = N_IMAGES) -> int:
    """Draw `n_images` JPEG files of every class into class folders; return how many there are.

    A seed gives the same files, and those that exist already stay. Each picture has one large shape
    of its class, anywhere, turned, skewed and in any colour. The background has other colours,
    small shapes and lines as clutter, blur and noise.
    """
    for index, name in enumerate(CLASSES):
        for number in range(n_images):
            picture = storage.join(url, f"{name}/{name}_{number:04d}.jpg")
            if not storage.exists(picture):
                rng = np.random.default_rng([seed, index, number])
                storage.write_bytes(picture, _picture(index, rng))
    return n_images * len(CLASSES)


def _picture(index: int, rng: np.random.Generator) -> bytes:
    background = _colour(rng.uniform(), rng.uniform(0, 0.4), rng.uniform(0.2, 0.9))
    other = _colour(rng.uniform(), rng.uniform(0, 0.4), rng.uniform(0.2, 0.9))
    image = Image.fromarray(_gradient(background, other, rng.uniform(0, 6.3)))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(4, 12)):
        _clutter(draw, rng)
    # Like things in photographs: most of a kind share a colour, and many have another.
    hue = index / len(CLASSES) + rng.normal(0, _HUE_DEVIATION)
    colour = _colour(hue, rng.uniform(0.5, 1), rng.uniform(0.5, 1))
    size = _SIDE * rng.uniform(0.26, 0.42)
    centre = rng.uniform(size, _SIDE - size, 2)
    angle, stretch = rng.normal(0, 0.35), rng.uniform(0.8, 1.25)

    def place(point: Point) -> Point:
        x, y = point[0] * size * stretch, point[1] * size / stretch
        return (
            centre[0] + x * math.cos(angle) - y * math.sin(angle),
            centre[1] + x * math.sin(angle) + y * math.cos(angle),
        )

    for outline, is_line in _SHAPES[CLASSES[index]]:
        points = [place(point) for point in outline]
        if is_line:
            draw.line(points, _rgb(colour), width=int(size * 0.2), joint="curve")
        else:
            draw.polygon(points, _rgb(colour))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))
    noisy = np.asarray(image) * rng.uniform(0.7, 1.2) + rng.normal(0, 12, (_SIDE, _SIDE, 3))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _gradient(first: Colour, last: Colour, angle: float) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:_SIDE, 0:_SIDE] / _SIDE - 0.5
    share = (x * math.cos(angle) + y * math.sin(angle) + 0.7) / 1.4
    blended = first * (1 - share[..., None]) + (0.5 * first + 0.5 * last) * share[..., None]
    return np.asarray(blended, np.uint8)


def _colour(hue: float, saturation: float, value: float) -> Colour:
    return np.array([255 * c for c in colorsys.hsv_to_rgb(hue % 1, saturation, value)], np.int64)


def _clutter(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    x, y = rng.uniform(0, _SIDE, 2)
    r = rng.uniform(4, 20)
    colour = _rgb(rng.integers(0, 256, 3))
    kind = rng.integers(3)
    if kind < 2:
        fill = draw.ellipse if kind == 0 else draw.rectangle
        fill((x - r, y - r, x + r, y + r), colour)
    else:
        draw.line((x, y, *rng.uniform(0, _SIDE, 2)), colour, width=int(rng.integers(1, 5)))


def _rgb(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (int(c) for c in colour)
    return red, green, blue


# Outlines in the square from -1 to 1, y down; lines or filled polygons.
Strokes = list[tuple[list[Point], bool]]


def _turns(n: int, radius: Callable[[float], float], turns: float = 1.0) -> list[Point]:
    angles = [2 * math.pi * turns * k / n for k in range(n + 1)]
    return [(radius(a) * math.sin(a), -radius(a) * math.cos(a)) for a in angles]


def _crescent() -> Strokes:
    def arc(x: float, radius: float, start: float) -> list[Point]:
        angles = np.linspace(start, 2 * math.pi - start, 40)
        return [(x + radius * math.cos(a), radius * math.sin(a)) for a in angles]

    # Two circles that meet in (0.625, +-0.781).
    tip = 0.781
    return [
        (arc(0, 1, math.atan2(tip, 0.625)) + arc(0.45, 0.8, math.atan2(tip, 0.175))[::-1], False)
    ]


# fmt: off
_HEART: list[Point] = [
    (math.sin(a) ** 3,
     -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16)
    for a in (2 * math.pi * k / 60 for k in range(60))
]
_ARROW: list[Point] = [
    (-1, -0.22), (0.1, -0.22), (0.1, -0.7), (1, 0), (0.1, 0.7), (0.1, 0.22), (-1, 0.22),
]
_HOUSE: list[Point] = [
    (-0.75, 0.9), (-0.75, -0.1), (0, -0.95), (0.75, -0.1), (0.75, 0.9), (0.25, 0.9), (0.25, 0.3),
    (-0.25, 0.3), (-0.25, 0.9),
]
# fmt: on
_SHAPES: dict[str, Strokes] = {
    "arrow": [(_ARROW, False)],
    "cross": [([(-0.8, -0.8), (0.8, 0.8)], True), ([(-0.8, 0.8), (0.8, -0.8)], True)],
    "crescent": _crescent(),
    "heart": [(_HEART, False)],
    "house": [(_HOUSE, False)],
    "ring": [(_turns(40, lambda _: 0.85), True)],
    "spiral": [(_turns(80, lambda a: 0.08 + a / (2 * math.pi) * 0.38, 2.3), True)],
    "star": [(_turns(10, lambda a: 1.0 if round(a / (math.pi / 5)) % 2 == 0 else 0.42), False)],
    "triangle": [([(0, -0.95), (0.95, 0.75), (-0.95, 0.75)], False)],
}
