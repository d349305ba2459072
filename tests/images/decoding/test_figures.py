"""Figures of pictures: sizes, brightness, contrast, sharpness."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from helpers import jpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from dtl.images.decoding.figures import Figures, compute_figures
from dtl.images.decoding.formats import decode_sizes

SIZE = (224, 224)


def figures(data: bytes, size: tuple[int, int] = SIZE, resize: str = "stretch") -> Figures:
    return decode_sizes(data, [size], resize=resize, max_pixels=1 << 24).figures


@given(st.integers(0, 2**32 - 1), st.integers(3, 40), st.integers(3, 40), st.integers(0, 255))
def test_sums_equal_those_of_numpy(seed: int, height: int, width: int, top: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, top + 1, (height, width)).astype(np.uint8)
    found = compute_figures(Image.fromarray(pixels), (7, 5))
    values = pixels.astype(np.float64)
    laplacian = (
        values[1:-1, :-2] + values[1:-1, 2:] + values[:-2, 1:-1] + values[2:, 1:-1]
        - 4 * values[1:-1, 1:-1]
    )[::2]  # fmt: skip
    assert (found.width, found.height) == (7, 5)
    assert found.brightness == pytest.approx(values.mean(), abs=1e-9)
    assert found.contrast == pytest.approx(values.std(), abs=1e-9)
    expected = math.sqrt((laplacian**2).mean()) / values.std() if values.std() else 0
    assert found.sharpness == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (9, 2)])
def test_pictures_too_small_for_edges_have_none(shape: tuple[int, int]) -> None:
    pixels = np.arange(shape[0] * shape[1]).reshape(shape).astype(np.uint8)
    assert compute_figures(Image.fromarray(pixels), (1, 1)).sharpness == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [60, 1800])  # the second one is scaled down while it is decoded
def test_width_and_height_are_those_of_the_file_upright(side: int, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (side, side // 3)).save(buffer, "JPEG", exif=exif)
    expected = (side, side // 3) if orientation < 5 else (side // 3, side)
    assert figures(buffer.getvalue(), (20, 20))[:2] == expected


def test_known_pictures() -> None:
    """Bits that any machine must have."""
    y, x = np.mgrid[:50, :50]
    drawn = ((x * y) % 256).astype(np.uint8)
    found = compute_figures(Image.fromarray(drawn), (50, 50))
    assert [float(np.float32(value)) for value in found[2:]] == EXPECTED


EXPECTED = [113.03079986572266, 75.34679412841797, 2.594977378845215]


def test_blurred_and_dark_photographs_have_lower_figures(data: Path) -> None:
    for path in sorted(data.glob("caltech256/*/*.jpg"))[::200]:
        with Image.open(path) as opened:
            photograph = opened.convert("RGB")
        before = figures(jpeg(np.asarray(photograph)))
        radius = 2.5 * max(photograph.size) / SIZE[0]
        blurred = figures(jpeg(np.asarray(photograph.filter(ImageFilter.GaussianBlur(radius)))))
        assert blurred.sharpness < before.sharpness / 2
        assert blurred.brightness == pytest.approx(before.brightness, abs=3)
        dark = figures(jpeg((np.asarray(photograph) * 0.1).astype(np.uint8)))
        assert dark.brightness < before.brightness / 8
        assert dark.contrast < before.contrast / 8
