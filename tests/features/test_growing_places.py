"""Stores that grow on every backend, from folders and from tars; beside another driver."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from helpers import COLOURS, CUT, THREADS, Run, all_files, contents, draw

from dtl import storage
from dtl.config import ImagesConfig, SplitConfig
from dtl.features import compaction, featurization, growth, splitting
from dtl.features.store import FeatureStore
from dtl.features.values import REMOVED
from dtl.images import split
from dtl.images.decoding.figures import FIGURES
from dtl.images.values import NO_SPLIT, ImageList
from dtl.storage import lock
from dtl.storage.guards import guard

most_backends = pytest.mark.parametrize("root", ["file", "memory", "hdfs", "s3"], indirect=True)


def listed(names: Sequence[int]) -> ImageList:
    """Images of numbers, in a listing's order."""
    number = np.array(names)
    path = np.array([f"{'abc'[k % 3]}/{k}.jpg" for k in names], np.dtypes.StringDType())
    order = split.shuffle(path, 0)
    return ImageList(
        root="/photos",
        path=path[order],
        label=(number % 3).astype(np.int32)[order],
        given_split=np.full(len(names), NO_SPLIT, np.int8),
        size_bytes=number[order] + 100,
        modified=number[order] + 10**15,
        class_names=("a", "b", "c"),
    )


def features_of(paths: Any) -> np.ndarray:
    """Features that tell the image."""
    number = np.array([int(str(p)[2:-4]) for p in paths], np.float32)
    return number[:, None] * np.array([1, -0.5, 2], np.float32)


def compute(store: FeatureStore, chunk: int, rows: np.ndarray) -> dict[str, np.ndarray]:
    paths = store.read("path", chunk)[rows]
    error = np.array(["" if "13" not in str(p) else "damaged" for p in paths])
    return {
        "fc2": features_of(paths),
        "content_hash": features_of(paths)[:, 0].astype(np.uint64) + 1,
        "error": error.astype(np.dtypes.StringDType()),
        "figures": np.repeat(features_of(paths)[:, :1], len(FIGURES), axis=1),
    }


def make(url: str, lists: Sequence[ImageList], client: Client) -> FeatureStore:
    """A store that has taken in one list after the other."""
    attrs = {"weights": "random", "weights_sha256": "abc", "seed": 0, "root": "/photos"}
    settings = {"layers": ["fc2"], "dtype": "float32", "chunk_images": 16}
    for images in lists:
        of_list = growth.describe_left_out(images)
        if not storage.exists(url):
            made = {"settings": settings | {"images": images.description}, **attrs, **of_list}
            store = FeatureStore.create(
                url, images, {"fc2": 3}, dtype="float32", chunk_images=16, attrs=made
            )
        else:
            store = growth.take_in(
                FeatureStore(url), images, {"root": "/photos", **of_list}, ImagesConfig(),
                pytest.fail,
            )  # fmt: skip
        featurization.fill(store, functools.partial(compute), client)
        splitting.split_images(store, SplitConfig(method="random"), 0)
    return store


LISTS = [range(40), range(50), range(5, 50), range(2, 91, 2), [*range(2, 91, 2), 41, 43]]


@most_backends
def test_a_store_grows_and_is_compacted_on_every_backend(root: str, threads: Client) -> None:
    url = storage.join(root, "grown.zarr")
    store = make(url, [listed(names) for names in LISTS[2:]], threads)  # fewer, for HDFS is slow
    there = store.read("label") != REMOVED
    path, fc2 = store.read("path"), store.read("fc2")
    assert sorted(path[there].tolist()) == sorted(listed(LISTS[-1]).path.tolist())
    assert (fc2 == features_of(path)).all()
    assert (store.read("figures") == fc2[:, :1]).all()
    assert store.generations == (45, 68, 70)  # what was gone and is back has new rows
    assert {p for p, _ in store.list_skipped()} == set()
    assert (store.read_split()[there] >= 0).all()
    compacted = compaction.compact(storage.join(root, "compacted.zarr"), store, threads)
    fresh = make(storage.join(root, "fresh.zarr"), [listed(LISTS[-1])], threads)
    found, expected = all_files(compacted.url), all_files(fresh.url)
    assert found.keys() == expected.keys()
    differ = {name for name in found if found[name] != expected[name]}
    assert differ <= {"split/c/0", "split/zarr.json"}
    rows = dict(zip(path[there].tolist(), store.read_split()[there].tolist(), strict=True))
    assert [rows[p] for p in compacted.read("path").tolist()] == compacted.read_split().tolist()


def test_the_split_of_what_was_there_never_moves(tmp_path: Path, threads: Client) -> None:
    before: dict[str, int] = {}
    for n in range(1, len(LISTS) + 1):
        url = str(tmp_path / f"{n}.zarr")
        store = make(url, [listed(names) for names in LISTS[:n]], threads)
        rows = store.read("split")
        now = dict(zip(store.read("path").tolist(), rows.tolist(), strict=True))
        assert {p: k for p, k in now.items() if p in before and "13" not in p} == {
            p: k for p, k in before.items() if "13" not in p
        }
        before = now


def test_a_split_that_is_killed_while_it_grows_stays_where_it_was(
    tmp_path: Path, threads: Client
) -> None:
    lists = [listed(range(40)), listed(range(60))]
    whole = make(str(tmp_path / "whole.zarr"), lists, threads).read("split")
    n_killed = 0
    for most in range(100):
        url = str(tmp_path / f"{most}.zarr")
        store = make(url, lists[:1], threads)
        first = store.read("split")
        attrs = growth.describe_left_out(lists[1])
        store = growth.take_in(store, lists[1], attrs, ImagesConfig(), pytest.fail)
        featurization.fill(store, compute, threads)
        left = [most]

        def count(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise lock.LostLockError("killed")

        config = SplitConfig(method="random")
        try:
            with guard(url, count):
                splitting.split_images(store, config, 0)
        except lock.LostLockError:
            n_killed += 1
        again = FeatureStore.open(url)
        assert (again.read("split")[:40] == first).all()
        splitting.split_images(again, config, 0)
        assert (again.read("split") == whole).all()
        if left[0] >= 0:
            break
    assert n_killed >= 2


def test_no_head_goes_on_where_images_have_changed_sides(tmp_path: Path, here: Run) -> None:
    """Another split between takes away what the first one had: the next is a fresh one."""
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    draw(pictures, COLOURS, 6)
    run = ("run", "--images", pictures, "--out", out, *CUT, *THREADS)
    assert here(*run).returncode == 0
    shutil.copy(pictures / "red/0.jpg", pictures / "red/9.jpg")
    assert here("featurize", *run[1:]).returncode == 0
    store = FeatureStore.open(str(out / "features.zarr"))
    splitting.split_images(store, SplitConfig(method="random"), 0)
    done = here(*run)
    assert done.returncode == 0, done.stderr
    assert "training started from the head before" not in done.stderr


def test_damage_of_a_store_that_has_grown_is_mended_or_named(tmp_path: Path, here: Run) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    draw(pictures, COLOURS, 5)
    run = ("run", "--images", pictures, "--out", out, *CUT, *THREADS)
    assert here(*run).returncode == 0
    shutil.copy(pictures / "red/0.jpg", pictures / "red/9.jpg")
    (pictures / "blue/3.jpg").unlink()
    assert here(*run).returncode == 0
    before = contents(out / "features.zarr")
    store = FeatureStore.open(str(out / "features.zarr"))
    gone = int(np.flatnonzero(store.read("label") == REMOVED)[0]) // 8
    kept = next(chunk for chunk in (0, 1) if chunk != gone)
    lost = [
        f"block1_pool/c/{kept}/0",
        f"content_hash/c/{kept}",
        "label/c/0",
        "block1_pool/zarr.json",
    ]
    for name in lost:
        (out / "features.zarr" / name).unlink()
        mended = here(*run, "--repair")
        assert mended.returncode == (1 if name == "label/c/0" else 0), mended.stderr
        if name == "label/c/0":
            assert "its rows' order cannot be made again" in mended.stderr
            (out / "features.zarr" / name).write_bytes(before[name])
        assert contents(out / "features.zarr") == before
    (out / "features.zarr/split/c/0").unlink()
    refused = here(*run, "--repair")
    assert refused.returncode == 1
    assert "It says which images were trained on, list by list" in refused.stderr


def test_tars_that_are_added_to_a_folder_of_tars(tmp_path: Path, here: Run) -> None:
    folder, tars, out = tmp_path / "pictures", tmp_path / "tars", tmp_path / "out"
    tars.mkdir()
    for part in range(3):
        draw(folder / str(part), {f"{name}": c for name, c in COLOURS.items()}, 4)
        for path in sorted((folder / str(part)).glob("*/*")):
            path.rename(path.with_name(f"{part}-{path.name}"))
        pack = ("pack", "--images", folder / str(part), "--out", tmp_path / f"packed{part}")
        done = here(*pack, *THREADS)
        assert done.returncode == 0, done.stderr
    run = ("featurize", "--images", tars, "--out", out, *CUT, *THREADS)
    for part in range(3):
        for path in (tmp_path / f"packed{part}").glob("*.tar"):
            shutil.copy(path, tars / f"{part}-{path.name}")
        done = here(*run)
        assert done.returncode == 0, done.stderr
        if part:
            assert f"images: 12 new, 0 changed, 0 removed, {12 * part} as before" in done.stderr
    store = FeatureStore.open(str(out / "features.zarr"))
    assert (store.n_images, len(store.attrs["shards"])) == (36, 3)
    fresh = tmp_path / "fresh"
    assert here(*run[:4], fresh, *CUT, *THREADS).returncode == 0
    assert here("compact", "--model", out, "--out", tmp_path / "c", *THREADS).returncode == 0
    found, expected = (contents(at / "features.zarr") for at in (tmp_path / "c", fresh))
    assert {n for n in found if found[n] != expected.get(n)} <= {
        n for n in expected if n.startswith("block1_pool/c/")
    }
    for path in [*tars.glob("1-*")]:
        path.unlink()
    done = here(*run)
    assert "images: 0 new, 0 changed, 12 removed, 24 as before" in done.stderr
    assert FeatureStore.open(store.url).n_present == 24


def test_a_store_that_another_driver_holds_takes_nothing_in(tmp_path: Path, here: Run) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    draw(pictures, COLOURS, 4)
    run = ("featurize", "--images", pictures, "--out", out, *CUT, *THREADS)
    assert here(*run).returncode == 0
    before = contents(out / "features.zarr")
    shutil.copy(pictures / "red/0.jpg", pictures / "red/9.jpg")
    with lock.hold(str(out)):
        refused = here(*run)
    assert refused.returncode == 1
    assert "Another driver writes to" in refused.stderr
    assert contents(out / "features.zarr") == before
