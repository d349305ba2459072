from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from helpers import MakeStore, local_cluster
from PIL import Image, ImageDraw

from dtl.checking import duplicates
from dtl.checking.duplicates import Duplicates, choose_threshold, find_duplicates, link, list_pairs
from dtl.config import ImagesConfig
from dtl.features.store import FeatureStore
from dtl.images.decoding.formats import decode, hash_content
from dtl.images.values import NO_SPLIT, TEST, TRAIN, VALIDATION, ImageList
from dtl.neighbours.search import Neighbours, find_neighbours


def draw_scene(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (160, 120), tuple(rng.integers(0, 256, 3).tolist()))
    drawing = ImageDraw.Draw(image)
    for _ in range(10):
        x, y, w, h = (rng.random(4) * [130, 90, 70, 50]).round().tolist()
        colour = tuple(rng.integers(0, 256, 3).tolist())
        drawing.rectangle((x, y, x + w + 8, y + h + 8), fill=colour)
    return image


def encode(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def copy_of(image: Image.Image, kind: str) -> bytes:
    if kind == "crop":
        return encode(image.crop((9, 3, 153, 111)))
    if kind == "again":
        return encode(image, 40)
    if kind == "brighter":
        return encode(image.point(lambda v: min(255, round(1.25 * v))))
    if kind == "mirror":
        return encode(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    return encode(image)  # the same bytes


KINDS = ["crop", "again", "brighter", "mirror", "same"]
N_SCENES = 40


def pixel_features(data: bytes) -> np.ndarray:
    """Coarse colours, the same for a mirror image: alike for a copy, as a network's features."""
    small = decode(data, (6, 6)).astype(np.float64)
    return np.concatenate([(small + small[:, ::-1]).ravel(), small.mean(axis=(0, 1))])


@dataclass(frozen=True)
class Planted:
    store: FeatureStore
    root: str
    origin: np.ndarray  # of each row: the scene that it shows
    split: np.ndarray


def write_images(folder: Path, files: dict[str, bytes], features: np.ndarray) -> FeatureStore:
    """A store of image files that are there, with these features."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    n = len(files)
    listed = ImageList(
        root=str(folder), path=np.array([*files], np.dtypes.StringDType()),
        label=np.array([k % 2 for k in range(n)], np.int32), given_split=np.full(n, -1, np.int8),
        size_bytes=np.array([*map(len, files.values())]), class_names=("a", "b"),
    )  # fmt: skip
    attrs = {"settings": {"made": "by a test"}, "weights_sha256": "0", "weights": "random",
             "root": str(folder), "left_out": [], "n_left_out": 0, "versions": {}}  # fmt: skip
    store = FeatureStore.create(
        f"{folder}.zarr", listed, {"fc2": features.shape[1]}, dtype="float32", chunk_images=16,
        attrs=attrs,
    )  # fmt: skip
    hashes = np.array([hash_content(data) for data in files.values()], np.uint64)
    for chunk in range(store.n_chunks):
        rows = store.rows(chunk)
        store.write_chunk(
            chunk, {"fc2": features[rows].astype(np.float32)}, hashes[rows],
            [""] * len(hashes[rows]),
        )  # fmt: skip
    return store


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Scenes, and a copy of some of them, in a random order, split at random."""
    rng = np.random.default_rng(0)
    scenes = {k: draw_scene(k) for k in range(N_SCENES)}
    shown = [(k, encode(scene)) for k, scene in scenes.items()]
    shown += [(k, copy_of(scenes[k], KINDS[k % len(KINDS)])) for k in range(20)]
    order = rng.permutation(len(shown)).tolist()
    files = {f"{n}.jpg": shown[place][1] for n, place in enumerate(order)}
    features = np.stack([pixel_features(data) for data in files.values()])
    folder = tmp_path_factory.mktemp("planted") / "images"
    store = write_images(folder, files, features)
    split = rng.choice([TRAIN, VALIDATION, TEST], len(files)).astype(np.int8)
    store.write_split(split, {"made": "by a test"})
    return Planted(store, str(folder), np.array([shown[place][0] for place in order]), split)


def find(planted: Planted, client: Client, k: int = 3) -> Duplicates:
    neighbours = find_neighbours(planted.store, "fc2", client, k)
    return find_duplicates(planted.store, neighbours, client, planted.root, ImagesConfig())


@pytest.fixture(scope="module", autouse=True)
def _few_copies() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_N_COPIED", 20)
        yield


@pytest.fixture(scope="module")
def found(planted: Planted, threads: Client, _few_copies: None) -> Duplicates:
    return find(planted, threads)


def test_all_planted_copies_are_found_and_nothing_else(planted: Planted, found: Duplicates) -> None:
    origin = planted.origin
    expected = {
        tuple(np.flatnonzero(origin == k).tolist()) for k in range(N_SCENES)
        if (origin == k).sum() == 2
    }  # fmt: skip
    assert {*zip(found.a.tolist(), found.b.tolist(), strict=True)} == expected
    assert found.identical.sum() == 4
    assert (found.likeness[found.identical] == 1).all()
    assert (np.diff(found.likeness[4:]) <= 0).all()
    first = [int(np.flatnonzero(origin == k)[0]) for k in origin]
    np.testing.assert_array_equal(found.group, first)
    assert found.n_unread == 0
    assert found.n_copies == 20
    assert f"from {found.threshold:.3f} on" in found.reason


def test_all_leaks_across_the_split_are_named(planted: Planted, found: Duplicates) -> None:
    split = planted.split
    leaks = found.find_leaks(split)
    one_trains = (split[found.a] == TRAIN) != (split[found.b] == TRAIN)
    np.testing.assert_array_equal(leaks, one_trains)
    assert leaks.any()
    leaked = found.find_leaked(split)
    expected = [
        split[row] != TRAIN and (split[planted.origin == k] == TRAIN).any()
        for row, k in enumerate(planted.origin)
    ]
    np.testing.assert_array_equal(leaked, expected)
    nothing = np.full(len(split), NO_SPLIT, np.int8)
    assert not found.find_leaks(nothing).any()
    assert not found.find_leaked(nothing).any()


def test_the_same_on_one_worker_and_on_four(planted: Planted) -> None:
    results = []
    for n_workers in (1, 4):
        with local_cluster(n_workers=n_workers) as cluster, Client(cluster) as client:
            found = find(planted, client, k=1)
            results.append([np.asarray(getattr(found, f.name)).tobytes() for f in fields(found)])
    assert results[0] == results[1]


def test_an_image_that_is_gone_is_told(
    tmp_path: Path, threads: Client, caplog: pytest.LogCaptureFixture
) -> None:
    scene = draw_scene(3)
    shown = [encode(scene), copy_of(scene, "crop"), encode(draw_scene(4)), encode(draw_scene(5))]
    files = {f"{n}.jpg": data for n, data in enumerate(shown)}
    features = np.stack([pixel_features(data) for data in files.values()])
    store = write_images(tmp_path / "images", files, features)
    (tmp_path / "images" / "1.jpg").unlink()
    found = find_duplicates(
        store, find_neighbours(store, "fc2", threads, 3), threads, str(tmp_path / "images"),
        ImagesConfig(),
    )  # fmt: skip
    assert len(found.a) == 0
    assert found.n_unread >= 1
    assert "an image cannot be read any more" in caplog.text
    np.testing.assert_array_equal(found.group, np.arange(4))


def test_thousands_of_copies_of_one_file_are_one_group(
    make_store: MakeStore, threads: Client
) -> None:
    store = make_store(n_images=3000, n_features=8, chunk_images=500)
    hashes = np.where(np.arange(3000) % 3 == 0, 3000, np.arange(3000)).astype(np.uint64)
    store.arrays.write("content_hash", slice(None), hashes)
    none = np.empty((3000, 0))
    neighbours = Neighbours(np.arange(3000), none.astype(np.int64), none.astype(np.float32))
    found = find_duplicates(store, neighbours, threads, "/nowhere", ImagesConfig())
    assert len(found.a) == 999
    assert (found.a == 0).all()
    assert (found.group[::3] == 0).all()
    assert len(np.unique(found.group)) == 2001
    assert found.reason.startswith("No two images")


def test_a_pair_that_both_name_is_one() -> None:
    neighbours = Neighbours(
        np.array([2, 5, 9]), np.array([[5, 9], [2, -1], [5, 2]]),
        np.array([[0.9, 0.3], [0.9, -np.inf], [0.5, 0.3]], np.float32),
    )  # fmt: skip
    a, b, cosine, nearest = list_pairs(neighbours)
    assert [*zip(a, b, strict=True)] == [(2, 5), (5, 9), (2, 9)]
    np.testing.assert_array_equal(cosine, np.float32([0.9, 0.5, 0.3]))
    assert nearest.tolist() == [True, True, False]
    hashes = np.arange(10, dtype=np.uint64)
    hashes[9] = hashes[5]
    a, b, _, nearest = list_pairs(duplicates._drop_identical(neighbours, hashes))
    assert [*zip(a, b, nearest, strict=True)] == [(2, 5, True), (2, 9, True)]
    nobody = Neighbours(np.arange(2), np.full((2, 1), -1), np.full((2, 1), -np.inf, np.float32))
    assert [len(each) for each in list_pairs(nobody)] == [0, 0, 0, 0]


def test_comparing_stops_where_hardly_any_pair_is_of_twins(
    planted: Planted, threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_LEAST_PAIRS", 20)
    found = find(planted, threads)
    assert sum(n for _, n, _ in found.compared) < len(list_pairs(
        find_neighbours(planted.store, "fc2", threads, 3))[0])  # fmt: skip
    assert found.compared[-1][2] == 0
    assert len(found.a) >= 19
    assert f"down to a cosine of {found.least_cosine:.2f}" in found.reason


def test_each_image_is_compared_with_its_nearest(
    planted: Planted, threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few of the pairs before are twins."""
    monkeypatch.setattr(duplicates, "_LEAST_PAIRS", 1)
    monkeypatch.setattr(duplicates, "_LEAST_CONFIRMED", 2.0)
    found = find(planted, threads)
    a, b, _, nearest = list_pairs(find_neighbours(planted.store, "fc2", threads, 3))
    wanted = {
        (x, y) for x, y, is_nearest in zip(a.tolist(), b.tolist(), nearest, strict=True)
        if is_nearest and planted.origin[x] == planted.origin[y]
    }  # fmt: skip
    assert len(wanted) > 15
    assert wanted <= {*zip(found.a.tolist(), found.b.tolist(), strict=True)}
    n_further, n_twins = found.compared_nearest
    assert 0 < n_twins < n_further <= len(a)
    assert f"that is {n_further} pairs more, of which {n_twins} were" in found.reason


def test_pairs_that_are_a_bit_less_alike_are_kept_apart(
    planted: Planted, threads: Client, found: Duplicates, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = float(np.sort(found.likeness[~found.identical])[5])
    monkeypatch.setattr(duplicates, "choose_threshold", lambda scores: strict)
    monkeypatch.setattr(duplicates, "_LEAST_THRESHOLD", found.threshold)
    stricter = find(planted, threads)
    assert len(stricter.near_a) == 5
    assert len(stricter.a) == len(found.a) - 5
    assert (stricter.near_likeness < strict).all()
    pairs = {*zip(stricter.a.tolist(), stricter.b.tolist(), strict=True)}
    near = {*zip(stricter.near_a.tolist(), stricter.near_b.tolist(), strict=True)}
    assert pairs | near == {*zip(found.a.tolist(), found.b.tolist(), strict=True)}
    one, other = min(near)
    assert stricter.group[one] != stricter.group[other]  # they are linked with nobody


@pytest.mark.parametrize(("scores", "expected"), [([], 0.97), ([0.1] * 9, 0.92), ([1.0], 0.97)])
def test_thresholds_lie_within_bounds(scores: list[float], expected: float) -> None:
    assert choose_threshold(np.array(scores)) == expected


def test_links_of_links_are_one_group() -> None:
    np.testing.assert_array_equal(
        link(np.array([3, 1, 0]), np.array([4, 3, 2]), 6), [0, 1, 0, 1, 1, 5]
    )
    none = np.empty(0, np.int64)
    np.testing.assert_array_equal(link(none, none, 3), [0, 1, 2])
