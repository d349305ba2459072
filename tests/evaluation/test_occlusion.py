"""Where in a picture a decision lies."""

from __future__ import annotations

import numpy as np
import pytest

from dtl.evaluation import occlusion
from dtl.evaluation.occlusion import N_WINDOWS, cover, spread
from dtl.evaluation.values import Mistake


@pytest.mark.parametrize("size", [(224, 224), (37, 50), (8, 8)])
def test_patches_cover_every_pixel_and_little_at_a_time(size: tuple[int, int]) -> None:
    pixels = np.zeros((*size, 3), np.uint8)
    covered = cover(pixels) > 0
    assert covered.shape == (50, *size, 3)
    assert not covered[0].any()
    times = covered[1:, :, :, 0].sum(axis=0)
    assert (times.min(), times.max()) == (1, 4)  # a corner once, the middle by four patches
    assert covered[1:].mean(axis=(1, 2, 3)) == pytest.approx(np.full(49, 1 / 16), abs=0.03)


def test_the_part_that_decides_is_found() -> None:
    """Of a made-up network that looks at one spot alone."""
    pixels = np.full((80, 80, 3), 255, np.uint8)
    seen = cover(pixels)[:, 25, 65, 0] / 255
    cells = spread((seen[0] - seen[1:]).reshape(N_WINDOWS, N_WINDOWS))
    assert np.unravel_index(cells.argmax(), cells.shape) == (2, 6)
    assert cells[2, 6] == pytest.approx(1 - 128 / 255)
    assert cells[6, 1] == 0
    described = occlusion._describe(Mistake("a.jpg", "test", "ant", "bee", 0.9), seen)
    assert (described.probability, described.least) == (1.0, pytest.approx(128 / 255))
    assert np.array(described.drop) == pytest.approx(cells, abs=1e-4)


def test_a_constant_answer_lies_nowhere() -> None:
    assert not spread(np.zeros((N_WINDOWS, N_WINDOWS))).any()
