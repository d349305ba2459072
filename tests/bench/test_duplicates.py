"""Copies planted among the real photographs: how many `check` finds, and what else: `make bench`.

Half an hour, as all photographs pass through VGG16. `DTL_BENCH_FEATURES` may name a folder with
their features of each kind, ``original.npz``, ``crop90.npz``, ...: ``names`` and ``features``.
"""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from helpers import command, local_cluster
from PIL import Image

from dtl.checking.duplicates import find_duplicates
from dtl.config import ImagesConfig
from dtl.features.store import FeatureStore
from dtl.images.decoding.formats import hash_content
from dtl.images.values import TRAIN, ImageList
from dtl.neighbours.search import find_neighbours

KINDS = ("crop90", "reencode40", "bright125", "bright75", "mirror")
PER_KIND = 50
SEEDS = range(int(os.environ.get("DTL_BENCH_SEEDS", "1")))
FEATURES = os.environ.get("DTL_BENCH_FEATURES", "")
LAYER = "block5_pool"

FOUND_BY_EYE = {
    frozenset(pair)
    for pair in (
        ("224.touring-bike/224_0004", "224.touring-bike/224_0095"),
        ("224.touring-bike/224_0011", "224.touring-bike/224_0098"),
        ("224.touring-bike/224_0044", "224.touring-bike/224_0088"),
        ("047.computer-mouse/047_0003", "047.computer-mouse/047_0084"),
        ("047.computer-mouse/047_0005", "047.computer-mouse/047_0085"),
        ("047.computer-mouse/047_0007", "047.computer-mouse/047_0086"),
    )
}
"""Photographs of which one is the other's copy, mirror image or the same file."""


def copy_of(path: Path, name: str, kind: str) -> bytes:
    rng = np.random.default_rng([ord(c) for c in name])
    image = Image.open(path).convert("RGB")
    quality = 90
    if kind == "crop90":
        width, height = (round(0.9 * side) for side in image.size)
        x, y = (int(rng.integers(0, image.size[k] - n + 1)) for k, n in ((0, width), (1, height)))
        image = image.crop((x, y, x + width, y + height))
    elif kind == "reencode40":
        quality = 40
    elif kind == "mirror":
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    else:
        factor = int(kind.removeprefix("bright")) / 100
        image = image.point(lambda v: min(255, round(v * factor)))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def plant(photographs: Path, folder: Path, seed: int) -> dict[str, tuple[str, str]]:
    """Link all photographs and write copies of some; return the copies' originals and kinds."""
    names = sorted(str(p.relative_to(photographs)) for p in photographs.glob("*/*.jpg"))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(photographs / name)
    copies = {}
    chosen = np.random.default_rng(seed).permutation(len(names))[: PER_KIND * len(KINDS)]
    for n, k in enumerate(chosen):
        kind, name = KINDS[n % len(KINDS)], names[k]
        path = name.replace("/", f"/copy_{kind}_")
        (folder / path).write_bytes(copy_of(photographs / name, name, kind))
        copies[path] = (name, kind)
    return copies


def featurize(folder: Path, copies: dict[str, tuple[str, str]], data: Path) -> FeatureStore:
    out = folder.with_suffix(".out")
    if not FEATURES:
        done = command(
            "featurize", "--images", folder, "--out", out, "--features.layers", LAYER,
            "--features.weights", data / "vgg16_imagenet_conv.npz",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return FeatureStore.open(f"{out}/features.zarr")
    tables = {kind: np.load(f"{FEATURES}/{kind}.npz") for kind in ("original", *KINDS)}
    row = {name: k for k, name in enumerate(tables["original"]["names"].tolist())}
    features = {kind: table["features"] for kind, table in tables.items()}
    paths = sorted(str(p.relative_to(folder)) for p in folder.glob("*/*.jpg"))
    paths = [paths[k] for k in np.random.default_rng(0).permutation(len(paths))]
    rows = [copies.get(path, (path, "original")) for path in paths]
    values = np.stack([features[kind][row[name]] for name, kind in rows])
    names, label = np.unique([path.split("/")[0] for path in paths], return_inverse=True)
    listed = ImageList(
        root=str(folder), path=np.array(paths, np.dtypes.StringDType()),
        label=label.astype(np.int32), given_split=np.full(len(paths), -1, np.int8),
        size_bytes=np.ones(len(paths), np.int64), class_names=tuple(names.tolist()),
    )  # fmt: skip
    attrs = {"settings": {"made": "by a bench"}, "weights_sha256": "0", "weights": "random",
             "root": str(folder), "left_out": [], "n_left_out": 0, "versions": {}}  # fmt: skip
    store = FeatureStore.create(
        str(out), listed, {LAYER: 512}, dtype="float32", chunk_images=256, attrs=attrs
    )
    for chunk in range(store.n_chunks):
        part = store.rows(chunk)
        hashes = [hash_content((folder / path).read_bytes()) for path in paths[part]]
        store.write_chunk(
            chunk, {LAYER: values[part]}, np.array(hashes, np.uint64), [""] * len(hashes)
        )
    return store


@pytest.fixture(scope="module")
def client() -> Client:
    with local_cluster(n_workers=2) as cluster, Client(cluster) as client:
        yield client


@pytest.mark.timeout(0)
@pytest.mark.parametrize("seed", SEEDS)
def test_planted_copies(data: Path, tmp_path: Path, client: Client, seed: int) -> None:
    folder = tmp_path / "planted"
    copies = plant(data / "caltech256", folder, seed)
    store = featurize(folder, copies, data)
    started = time.monotonic()
    neighbours = find_neighbours(store, LAYER, client, 10)
    searched = time.monotonic()
    found = find_duplicates(store, neighbours, client, str(folder), ImagesConfig())
    compared = time.monotonic()
    paths = [str(path) for path in store.read("path")]
    place = {path: row for row, path in enumerate(paths)}
    origin = [copies.get(path, (path, ""))[0] for path in paths]
    group = found.group
    recall = {
        kind: np.mean([
            group[place[copy]] == group[place[name]]
            for copy, (name, of) in copies.items() if of == kind
        ])
        for kind in KINDS
    }  # fmt: skip

    def is_right(a: str, b: str) -> bool:
        known = frozenset(name.removesuffix(".jpg") for name in (a, b))
        return a == b or known in FOUND_BY_EYE

    pairs = [(origin[a], origin[b]) for a, b in zip(found.a, found.b, strict=True)]
    wrong = [pair for pair in pairs if not is_right(*pair)]
    precision = 1 - len(wrong) / len(pairs)
    split = np.random.default_rng(seed).choice(3, len(paths), p=(0.6, 0.15, 0.25)).astype(np.int8)
    across = [
        (place[copy], place[name]) for copy, (name, _) in copies.items()
        if (split[place[copy]] == TRAIN) != (split[place[name]] == TRAIN)
    ]  # fmt: skip
    leaked = found.find_leaked(split)
    n_named = sum(leaked[b if split[a] == TRAIN else a] for a, b in across)
    near = {*zip(found.near_a.tolist(), found.near_b.tolist(), strict=True)}
    doubtful = [
        (min(pair), max(pair)) for pair in across
        if not leaked[pair[int(split[pair[0]] == TRAIN)]] and (min(pair), max(pair)) in near
    ]  # fmt: skip
    near_leaks = sum((split[a] == TRAIN) != (split[b] == TRAIN) for a, b in near)
    shown = ", ".join(f"{kind} {value:.0%}" for kind, value in recall.items())
    print(
        f"\nseed {seed}: recall {np.mean([*recall.values()]):.1%} ({shown}), precision"
        f" {precision:.1%} of {len(pairs)} pairs; {n_named} of {len(across)} leaks named, and"
        f" {len(doubtful)} among {near_leaks} that are perhaps; threshold"
        f" {found.threshold:.3f}, cosine {found.least_cosine:.2f}, {found.compared},"
        f" {found.compared_nearest}; search"
        f" {searched - started:.1f} s, pixels {compared - searched:.1f} s, load"
        f" {os.getloadavg()[0]:.1f}\n{found.reason}\n{sorted(wrong)}"
    )
    assert np.mean([*recall.values()]) >= 0.95
    assert precision >= 0.95
    assert n_named + len(doubtful) == len(across)
