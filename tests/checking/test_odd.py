"""Odd images: planted ones are found, and few others."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import jpeg
from PIL import Image, ImageFilter

from dtl.checking.odd import KINDS, Odd, find_odd, judge_distance, judge_figures, measure_distance
from dtl.features.store import FeatureStore
from dtl.images.decoding.figures import FIGURES
from dtl.images.decoding.formats import decode_sizes
from dtl.images.values import ImageList
from dtl.neighbours.search import Neighbours

Change = Callable[[Image.Image], Image.Image]

CHANGES: dict[str, tuple[str, Change]] = {
    "blurred": ("blurred", lambda p: p.filter(ImageFilter.GaussianBlur(3 * max(p.size) / 224))),
    "dark": ("dark", lambda p: p.point(lambda value: value * 0.1)),
    "pale": ("uniform", lambda p: p.point(lambda value: 120 + value * 0.08)),
    "tiny": ("tiny", lambda p: p.resize((40, 40))),
    "wide": ("shape", lambda p: p.resize((1200, 120))),
    "tall": ("shape", lambda p: p.resize((120, 1200))),
}


def measure(picture: Image.Image) -> tuple[float, ...]:
    data = jpeg(np.asarray(picture))
    return decode_sizes(data, [(224, 224)], resize="stretch", max_pixels=1 << 24).figures


@pytest.fixture(scope="module")
def photographs(data: Path) -> list[Image.Image]:
    files = sorted(data.glob("caltech256/*/*.jpg"))[::14]
    return [Image.open(io.BytesIO(file.read_bytes())).convert("RGB") for file in files]


@pytest.fixture(scope="module")
def figures(photographs: list[Image.Image]) -> np.ndarray:
    return np.array([measure(photograph) for photograph in photographs], np.float32)


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_planted_among_photographs_is_found(
    photographs: list[Image.Image], figures: np.ndarray, name: str
) -> None:
    kind, change = CHANGES[name]
    planted = [*range(5, len(photographs), 20)]
    changed = figures.copy()
    for row in planted:
        changed[row] = measure(change(photographs[row]))
    found = [odd.row for odd in judge_figures(changed) if odd.kind == kind]
    assert len({*found} & {*planted}) >= 0.8 * len(planted)
    others = {odd.row for odd in judge_figures(figures) if odd.kind == kind}
    assert {*found} <= {*planted} | others
    assert len(others) <= 0.02 * len(photographs)


def drawn(n: int = 200) -> np.ndarray:
    rng = np.random.default_rng(0)
    middle = np.array([300, 225, 130, 60, 0.4])
    return (middle * np.exp(rng.normal(0, 0.1, (n, 5)))).astype(np.float32)


@pytest.mark.parametrize(
    ("figure", "factor", "kind"),
    [("contrast", 0.05, "uniform"), ("sharpness", 0.2, "blurred"), ("width", 0.1, "tiny"),
     ("height", 6, "shape"), ("width", 8, "shape")],
)  # fmt: skip
def test_one_figure_that_is_odd(figure: str, factor: float, kind: str) -> None:
    figures = drawn()
    assert list(judge_figures(figures)) == []
    figures[[3, 77], FIGURES.index(figure)] *= factor
    found = [odd for odd in judge_figures(figures) if odd.kind == kind]
    assert [odd.row for odd in found] == [3, 77]
    assert all(odd.score > 1 for odd in found)
    assert "usual from" in found[0].reason


def test_a_black_wall_behind_a_bright_thing_is_not_dark() -> None:
    figures = drawn()
    figures[3, 2:4] = 14, 60
    figures[4, 2:4] = 14, 5
    assert [odd.row for odd in judge_figures(figures) if odd.kind == "dark"] == [4]


def test_most_of_the_images_being_alike_makes_the_rest_no_less_usual() -> None:
    figures = np.tile(drawn(1), (5000, 1))  # of one image
    figures[:50] = drawn(50)
    assert list(judge_figures(figures)) == []
    figures[7, 4] /= 10
    assert [odd.row for odd in judge_figures(figures)] == [7]


@pytest.mark.parametrize("n", [0, 1, 19])
def test_too_few_images_tell_nothing(n: int) -> None:
    figures = drawn(19)[:n]
    figures[:1] /= 100
    assert list(judge_figures(figures)) == []


def test_rows_that_are_not_known_or_not_usable_take_no_part() -> None:
    figures = drawn()
    figures[50:100] = np.nan
    figures[100:150, 4] /= 100
    usable = np.ones(200, bool)
    usable[100:150] = False
    figures[0, 4] /= 10
    assert [odd.row for odd in judge_figures(figures, usable)] == [0]
    assert list(judge_figures(np.full((200, 5), np.nan, np.float32))) == []
    nothing = np.zeros((200, 5), np.float32)  # pictures of one colour, say, of 0 pixels
    assert list(judge_figures(nothing)) == []


def search(features: np.ndarray, rows: np.ndarray, k: int) -> Neighbours:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    index = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(cosine, index, 1).astype(np.float32)
    return Neighbours(rows, rows[index], found)


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes of 40, one much tighter than the others."""
    rng = np.random.default_rng(seed)
    label = np.repeat([0, 1, 2], 40).astype(np.int32)
    spread = np.array([0.05, 0.2, 0.2])[label]
    features = rng.normal(size=(3, 30))[label] + spread[:, None] * rng.normal(size=(120, 30))
    return features, label


@pytest.mark.parametrize("seed", range(3))
def test_images_far_from_their_class(seed: int) -> None:
    features, label = blobs(seed)
    rows = np.arange(120) * 3  # others of the store take no part
    of_store = np.full(360, -2, np.int32)
    of_store[rows] = label
    usual = search(features, rows, 20)
    distance = measure_distance(usual, of_store)
    before = list(judge_distance(distance, label, rows))
    assert len(before) <= 3
    features[[5, 60]] = np.random.default_rng(9).normal(size=(2, 30))
    distance = measure_distance(search(features, rows, 20), of_store)
    found = list(judge_distance(distance, label, rows))
    assert {15, 180} <= {odd.row for odd in found}
    assert len(found) <= len(before) + 2
    assert "distance from its class" in found[0].reason


def test_distances_equal_those_of_a_loop() -> None:
    features, label = blobs(1)
    label[::7] = -1
    rows = np.arange(120)
    found = search(features, rows, 6)
    distance = measure_distance(found, label)
    for row in rows:
        own = [c for i, c in zip(found.index[row], found.cosine[row], strict=True)
               if label[i] == label[row]][:3]  # fmt: skip
        own += [found.cosine[row, -1]] * (3 - len(own))
        expected = 1 - np.mean(np.array(own, np.float64)) if label[row] >= 0 else np.nan
        assert distance[row] == pytest.approx(expected, nan_ok=True, abs=1e-12)


def test_neighbours_that_are_missing_and_duplicates() -> None:
    index = np.full((30, 4), -1)
    cosine = np.full((30, 4), -np.inf, np.float32)
    index[:25], cosine[:25] = 0, 1  # all of one picture; the rest have no neighbour
    found = Neighbours(np.arange(30), index, cosine)
    label = np.zeros(30, np.int32)
    distance = measure_distance(found, label)
    assert np.isnan(distance[25:]).all()
    assert (distance[:25] == 0).all()
    assert list(judge_distance(distance, label, found.rows)) == []
    assert list(judge_distance(distance[:5], label[:5], found.rows[:5])) == []


def test_a_store_by_kind_and_score(tmp_path: Path) -> None:
    n = 40
    images = ImageList(
        root="/photos", path=np.array([f"{row}.jpg" for row in range(n)], np.dtypes.StringDType()),
        label=np.array([-2, *[0] * (n - 1)], np.int32), given_split=np.full(n, -1, np.int8),
        size_bytes=np.zeros(n, np.int64), class_names=("a",),
    )  # fmt: skip
    attrs = {"settings": {"layers": ["fc2"]}, "weights_sha256": ""}
    store = FeatureStore.create(
        str(tmp_path / "s"), images, {"fc2": 2}, dtype="float32", chunk_images=16, attrs=attrs
    )
    figures = drawn(n)
    figures[:4, 4] /= [100, 100, 5, 20]
    figures[9, 3] /= 40
    for chunk in range(3):
        rows = store.rows(chunk)
        size = rows.stop - rows.start
        errors = ["damaged" if row == 1 else "" for row in range(rows.start, rows.stop)]
        features = {"fc2": np.ones((size, 2), np.float32)}
        store.write_chunk(chunk, features, np.zeros(size, np.uint64), errors, figures=figures[rows])
    found = find_odd(store)
    assert [(odd.kind, odd.row) for odd in found] == [
        ("uniform", 9), ("blurred", 3), ("blurred", 2)
    ]  # fmt: skip
    assert {odd.kind for odd in found} <= {*KINDS}
    assert isinstance(found[0], Odd)
