from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dtl.checking.twins import SIDE, make_grey, measure_likeness, resample


def draw_scene(seed: int, side: int = 256) -> Image.Image:
    """Shapes of random colours on a white or coloured ground."""
    rng = np.random.default_rng(seed)
    ground = (255, 255, 255) if seed % 2 else tuple(rng.integers(0, 256, 3).tolist())
    image = Image.new("RGB", (side, side), ground)
    drawing = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, w, h = (rng.random(4) * side * [0.8, 0.8, 0.4, 0.4]).round().tolist()
        colour = tuple(rng.integers(0, 256, 3).tolist())
        shape = drawing.ellipse if rng.integers(2) else drawing.rectangle
        shape((x, y, x + w + 8, y + h + 8), fill=colour)
    return image


def grey(image: Image.Image) -> np.ndarray:
    return make_grey(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)))


def crop(image: Image.Image, share: float, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    kept = round(share * image.width)
    x, y = rng.integers(0, image.width - kept + 1, 2).tolist()
    return image.crop((x, y, x + kept, y + kept))


COPIES = {
    "the same": lambda image, seed: image,
    "90 %": lambda image, seed: crop(image, 0.9, seed),
    "85 %, mirrored": lambda image, seed: crop(image, 0.85, seed).transpose(
        Image.Transpose.FLIP_LEFT_RIGHT
    ),
    "darker": lambda image, seed: image.point(lambda v: v // 2),
    "brighter": lambda image, seed: image.point(lambda v: min(255, int(1.25 * v))),
    "brighter, and white where it was light": lambda image, seed: image.point(
        lambda v: min(255, int(1.4 * v))
    ),
}


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_alike_whichever_comes_first(copy: str) -> None:
    for seed in range(6):
        scene = draw_scene(seed)
        original, other = grey(scene), grey(COPIES[copy](scene, seed))
        assert measure_likeness(original, other) > 0.93
        assert measure_likeness(other, original) > 0.93


def test_other_pictures_are_not() -> None:
    pictures = [grey(draw_scene(seed)) for seed in range(12)]
    found = [measure_likeness(a, b) for a, b in itertools.pairwise(pictures)]
    assert max(found) < 0.75


def test_a_picture_with_nothing_in_it_is_like_no_other() -> None:
    empty, scene = np.full((SIDE, SIDE), 200.0, np.float32), grey(draw_scene(0))
    assert abs(measure_likeness(empty, scene)) < 0.05
    assert abs(measure_likeness(empty, empty + 3)) < 0.05


def test_resampling_is_that_of_pillow() -> None:
    values = np.random.default_rng(0).uniform(0, 255, (96, 96)).astype(np.float32)
    expected = np.asarray(Image.fromarray(values).resize((40, 40), Image.Resampling.BILINEAR))
    matrix = resample(96, 40)
    np.testing.assert_allclose(matrix @ values @ matrix.T, expected, atol=1e-2)
    box = (8.0, 8.0, 8.0 + 0.75 * 96, 8.0 + 0.75 * 96)
    expected = np.asarray(Image.fromarray(values).resize((40, 40), Image.Resampling.BILINEAR, box))
    matrix = resample(96, 40, 0.75, 8.0)
    inside = slice(2, -2)  # Pillow sees nothing beyond the box
    found = (matrix @ values @ matrix.T)[inside, inside]
    np.testing.assert_allclose(found, expected[inside, inside], atol=1e-2)
