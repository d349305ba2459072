"""Stores that take in longer lists, against fresh ones of the same images."""

from __future__ import annotations

import os
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from helpers import COLOURS, CUT, THREADS, Run, contents, draw, jpeg

from dtl import config
from dtl.config import SplitConfig
from dtl.config.errors import UserError
from dtl.features import growth
from dtl.features.store import FeatureStore
from dtl.features.values import REMOVED
from dtl.head.model import Head
from dtl.images import listing, split
from dtl.images.values import NO_SPLIT, ImageList
from dtl.storage.guards import guard
from dtl.storage.lock import LostLockError
from dtl.training import initialisation

LAYER = "block1_pool"


def picture(seed: int) -> bytes:
    return jpeg(np.random.default_rng(seed).integers(0, 256, (40, 40, 3)).astype(np.uint8))


def change(pictures: Path) -> None:
    """Five images of a new class and of an old one are new, one is changed, one is gone."""
    (pictures / "grey").mkdir()
    for i in range(3):
        (pictures / "grey" / f"{i}.jpg").write_bytes(picture(i))
    (pictures / "blue" / "a.jpg").write_bytes(picture(10))
    (pictures / "red" / "b.jpg").write_bytes(picture(11))
    (pictures / "red" / "3.jpg").write_bytes(picture(12))
    (pictures / "green" / "5.jpg").unlink()


@pytest.fixture
def grown(tmp_path: Path, here: Run) -> tuple[Path, Path, dict[str, bytes]]:
    """Pictures that have changed since, the results of a run on them, and its files before."""
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    draw(pictures, COLOURS, 7)  # in chunks of 8, the last of which is partly filled
    done = here("featurize", "--images", pictures, "--out", out, *CUT, *THREADS)
    assert done.returncode == 0, done.stderr
    before = contents(out / "features.zarr")
    change(pictures)
    done = here("featurize", "--images", pictures, "--out", out, *CUT, *THREADS)
    assert done.returncode == 0, done.stderr
    assert "images: 5 new, 1 changed, 1 removed, 19 as before" in done.stderr
    assert "Classes that are new: 1, grey" in done.stderr
    assert "features: 6 of 6 images" in done.stderr
    return pictures, out, before


def features_by_path(store: FeatureStore) -> dict[str, tuple[str, bytes, np.ndarray]]:
    """Class, content hash and features of each image that is there."""
    images = store.images()
    columns = images.path, images.label_names(), store.read("content_hash"), store.read(LAYER)
    there = images.label != REMOVED
    path, label, content_hash, features = (column[there] for column in columns)
    assert len({*path.tolist()}) == len(path)
    return {
        str(p): (str(c), h.tobytes(), f)
        for p, c, h, f in zip(path, label, content_hash, features, strict=True)
    }


def test_what_is_new_is_computed_and_the_rest_stays(
    grown: tuple[Path, Path, dict[str, bytes]], tmp_path: Path, here: Run
) -> None:
    pictures, out, before = grown
    fresh = ("--images", pictures, "--out", tmp_path / "fresh", *CUT, *THREADS)
    assert here("featurize", *fresh).returncode == 0
    store, other = (
        FeatureStore.open(str(folder / "features.zarr")) for folder in (out, tmp_path / "fresh")
    )
    found, expected = features_by_path(store), features_by_path(other)
    assert found.keys() == expected.keys()
    for path, (label, content_hash, features) in expected.items():
        assert found[path][:2] == (label, content_hash)
        # In another batch, beside other images.
        np.testing.assert_allclose(found[path][2], features, rtol=1e-5, atol=1e-5)
    assert (store.n_images, store.n_present, other.n_images) == (27, 25, 25)
    after = contents(out / "features.zarr")
    finished = [name for name in before if name.startswith((f"{LAYER}/c/0", f"{LAYER}/c/1"))]
    assert len(finished) == 2
    for name in finished:
        assert after[name] == before[name]
    write(tmp_path / "before", before)
    assert (store.read(LAYER)[:21] == FeatureStore.open(str(tmp_path / "before")).read(LAYER)).all()
    again = here("featurize", "--images", pictures, "--out", out, *CUT, *THREADS)
    assert "features: done before, 25 images" in again.stderr
    assert contents(out / "features.zarr") == after


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_an_append_that_is_killed_at_any_change_goes_on_to_the_same_bytes(
    grown: tuple[Path, Path, dict[str, bytes]], tmp_path: Path
) -> None:
    pictures, _, before = grown
    c = config.build({"images": {"url": str(pictures)}})
    images = listing.list_images(c.images, c.seed)
    attrs = {"root": images.root, **growth.describe_left_out(images)}

    def append(folder: Path, most_changes: int) -> bool:
        """Return whether all changes were made."""
        left = [most_changes]

        def count() -> None:
            left[0] -= 1
            if left[0] < 0:
                raise LostLockError("killed")

        store = FeatureStore(str(folder))
        with guard(str(folder), count):
            try:
                growth.take_in(store, images, attrs, c.images, pytest.fail)
            except LostLockError:
                return False
        return True

    write(tmp_path / "whole", before)
    assert append(tmp_path / "whole", 1000)
    expected = contents(tmp_path / "whole")
    n_refused = 0
    for most in range(1000):
        folder = tmp_path / f"killed-{most}"
        write(folder, before)
        if append(folder, most):
            break
        if FeatureStore(str(folder)).is_growing:
            n_refused += 1
            with pytest.raises(UserError, match="interrupted while it took in a longer list"):
                FeatureStore.open(str(folder))
        assert append(folder, 1000)
        assert contents(folder) == expected
    assert n_refused > 10


def test_a_file_of_another_time_is_read_and_not_computed_again(tmp_path: Path, here: Run) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    draw(pictures, COLOURS, 4)
    run = ("featurize", "--images", pictures, "--out", out, *CUT, *THREADS)
    assert here(*run).returncode == 0
    before = contents(out / "features.zarr")
    for path in pictures.glob("*/1.jpg"):
        os.utime(path, (1e9, 1e9))
    done = here(*run)
    assert "3 files have another time of change; their bytes are compared" in done.stderr
    assert "features: done before, 12 images" in done.stderr
    after = contents(out / "features.zarr")
    differ = {name for name in after if after[name] != before.get(name)}
    assert differ == {"modified/c/0"}
    # As many bytes, and others: nothing but the time tells.
    data = (pictures / "red/1.jpg").read_bytes()
    other = bytearray(data)
    other[-3] ^= 1
    (pictures / "red/1.jpg").write_bytes(other)
    done = here(*run)
    assert "images: 0 new, 1 changed, 0 removed, 11 as before" in done.stderr
    assert "features: 1 of 1 images" in done.stderr


def test_other_classes_alone_are_as_if_they_had_always_been_so(tmp_path: Path, here: Run) -> None:
    pictures, out, fresh = tmp_path / "pictures", tmp_path / "out", tmp_path / "fresh"
    draw(pictures, COLOURS, 4)
    labels = {f"{c}/{k}.jpg": c for c in COLOURS for k in range(4)}
    run = ("featurize", "--images", pictures, *CUT, *THREADS, "--images.labels")
    assert here(*run, write_table(tmp_path, labels), "--out", out).returncode == 0
    before = contents(out / "features.zarr")
    labels |= {"red/0.jpg": "amber", "blue/1.jpg": "red"}
    done = here(*run, write_table(tmp_path, labels), "--out", out)
    assert "0 new, 0 changed, 0 removed, 12 as before (2 of them in another class)" in done.stderr
    assert "features: done before, 12 images" in done.stderr
    after = contents(out / "features.zarr")
    differ = {name for name in after if after[name] != before.get(name)}
    assert differ == {"label/c/0", "zarr.json"}
    assert here(*run, tmp_path / "labels.csv", "--out", fresh).returncode == 0
    assert contents(fresh / "features.zarr") == after


def write_table(folder: Path, labels: dict[str, str]) -> Path:
    rows = [f"{path},{label}\n" for path, label in labels.items()]
    (folder / "labels.csv").write_text("path,label\n" + "".join(rows))
    return folder / "labels.csv"


def test_another_folder_is_refused_and_another_list_if_asked(tmp_path: Path, here: Run) -> None:
    draw(tmp_path / "pictures", COLOURS, 4)
    draw(tmp_path / "others" / "deep", COLOURS, 4)
    out = tmp_path / "out"
    run = ("featurize", "--out", out, *CUT, *THREADS, "--images")
    assert here(*run, tmp_path / "pictures").returncode == 0
    before = contents(out / "features.zarr")
    shutil.copytree(tmp_path / "pictures", tmp_path / "renamed")
    for folder in (tmp_path / "renamed").iterdir():
        folder.rename(folder.with_name(f"{folder.name}s"))
    refused = here(*run, tmp_path / "renamed")
    assert refused.returncode == 1
    assert "of 12 images, none of which is among the 12 below" in refused.stderr
    (tmp_path / "pictures/red/0.jpg").unlink()
    for flag in ("--exact", "--repair", "--retry-skipped"):
        refused = here(*run, tmp_path / "pictures", flag)
        assert refused.returncode == 1
        assert "was made with other settings" in refused.stderr
    assert contents(out / "features.zarr") == before


def test_a_head_of_a_grown_store_is_trained_and_scored_on_what_is_there(
    grown: tuple[Path, Path, dict[str, bytes]], here: Run
) -> None:
    pictures, out, _ = grown
    done = here("run", "--images", pictures, "--out", out, *CUT, *THREADS)
    assert done.returncode == 0, done.stderr
    store = FeatureStore.open(str(out / "features.zarr"))
    rows = store.read_split()
    assert (rows[store.read("label") == REMOVED] == NO_SPLIT).all()
    assert (rows >= 0).sum() == 25
    (pictures / "blue" / "c.jpg").write_bytes(picture(20))
    (pictures / "blue" / "a.jpg").unlink()
    again = here("run", "--images", pictures, "--out", out, *CUT, *THREADS)
    assert again.returncode == 0, again.stderr
    assert "training: done before" not in again.stderr
    assert "training started from the head before: after its first round" in again.stderr
    later = FeatureStore.open(store.url)
    assert (later.read("split")[:27] == store.read("split")).all()
    assert later.read_split()[27] >= 0
    page = (out / "report.html").read_text()
    assert "They came in 3 lists, and no image changed sides when others came" in page
    assert "; 3 images have been removed or changed since." in page
    third = here("run", "--images", pictures, "--out", out, *CUT, *THREADS)
    assert "training: done before" in third.stderr
    head, before = (
        Head.from_bytes((out / f"{n}.npz").read_bytes()) for n in ("head", "head-before")
    )
    assert (
        head.provenance["start_sha256"]
        == sha256((out / "head-before.npz").read_bytes()).hexdigest()
    )
    assert before.provenance["features"]["grown"] == "27 rows of 2 lists"
    assert head.provenance["features"]["grown"] == "28 rows of 3 lists"
    anew = here("train", "--out", out, *THREADS, "--train.normalize", "l2")
    assert "training started from" not in anew.stderr  # its rows are scaled otherwise


def test_averaging_starts_anew_where_a_class_is_new_and_the_exact_solver_goes_on(
    tmp_path: Path, here: Run
) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    draw(pictures, COLOURS, 5)
    settings = ("--images", pictures, "--out", out, *CUT, *THREADS)
    assert here("run", *settings).returncode == 0
    for name, solver, seed in (("grey", "averaging", 40), ("pink", "lbfgs", 50)):
        (pictures / name).mkdir()
        for i in range(4):
            (pictures / name / f"{i}.jpg").write_bytes(picture(seed + i))
        again = here("run", *settings, "--train.solver", solver)
        assert again.returncode == 0, again.stderr
        anew = "training starts anew, for the head before lacks 1 classes" in again.stderr
        assert anew == (solver == "averaging")
        head = Head.from_bytes((out / "head.npz").read_bytes())
        assert (head.provenance["start_sha256"] == "") == anew
        assert ("training started from the head before" in again.stderr) != anew
        assert "training: done before" in here("run", *settings, "--train.solver", solver).stderr


def test_a_head_keeps_its_classes_among_others() -> None:
    rng = np.random.default_rng(0)
    head = Head(
        kernel=rng.normal(size=(4, 3)).astype("f4"), bias=np.array([1, -2, 3], "f4"),
        mean=np.zeros(4, "f4"), scale=np.ones(4, "f4"), class_names=("a", "b", "c"),
    )  # fmt: skip
    other = initialisation.with_classes(head, ("a", "aa", "c"))
    x = rng.normal(size=(5, 4)).astype("f4")
    np.testing.assert_array_equal(other.logits(x)[:, [0, 2]], head.logits(x)[:, [0, 2]])
    assert (other.logits(x)[:, 1] == -2).all()


# --- the split ------------------------------------------------------------------------------------


def listed(paths: list[str], class_names: tuple[str, ...] = ("a", "b")) -> ImageList:
    n = len(paths)
    return ImageList(
        root="",
        path=np.array(paths, np.dtypes.StringDType()),
        label=np.array([class_names.index(p.partition("/")[0]) for p in paths], np.int32),
        given_split=np.full(n, NO_SPLIT, np.int8),
        size_bytes=np.ones(n, np.int64),
        class_names=class_names,
    )


@pytest.mark.parametrize("method", ["stratified", "random"])
@pytest.mark.parametrize("seed", range(5))
def test_the_split_of_old_rows_stays_and_new_ones_go_where_rows_lack(
    method: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    config = SplitConfig(method=method, train="rest", validation=0.2, test=0.3)
    paths = [f"{'ab'[k % 2]}/{k}" for k in range(200)]
    hashes = rng.integers(0, 150, 200).astype(np.uint64)  # with twins
    rows: np.ndarray | None = None
    for n in (40, 41, 90, 200):
        before, images = rows, listed(paths[:n])
        rows = split.assign_splits(images, config, seed, content_hash=hashes[:n], before=before)
        if before is not None:
            assert (rows[: len(before)] == before).all()
        for value in np.unique(hashes[:n]):
            assert len({*rows[hashes[:n] == value].tolist()}) == 1
        _, first = np.unique(hashes[:n], return_index=True)
        units = np.bincount(rows[first], minlength=3)
        wanted = np.array([0.5, 0.2, 0.3]) * len(first)
        assert (abs(units - wanted) <= 2).all(), (units, wanted)


def test_rows_that_are_gone_still_hold_their_twins_on_their_side() -> None:
    config = SplitConfig(validation=0.25, test=0.25)
    first = listed([f"{'ab'[k % 2]}/{k}" for k in range(16)])
    hashes = np.arange(17, dtype=np.uint64)
    before = split.assign_splits(first, config, 0, content_hash=hashes[:16])
    for gone in range(16):
        hashes[16] = hashes[gone]
        more = listed([*first.path.tolist(), "a/twin"])
        usable = np.arange(17) != gone
        rows = split.assign_splits(
            more, config, 0, content_hash=hashes, usable=usable, before=before
        )
        assert rows[16] == before[gone]


def test_a_change_is_said_in_numbers() -> None:
    rows = np.array([0, 1, -1])
    said = str(growth.Change(rows, n_new=1204, n_changed=3, n_removed=17, n_relabelled=1))
    assert said == "1,204 new, 3 changed, 17 removed, 2 as before (1 of them in another class)"


# --- compact --------------------------------------------------------------------------------------


def test_a_compacted_store_has_the_files_of_a_fresh_one(
    grown: tuple[Path, Path, dict[str, bytes]], tmp_path: Path, here: Run
) -> None:
    pictures, out, _ = grown
    run = ("--images", pictures, *CUT, *THREADS)
    assert here("featurize", *run, "--out", tmp_path / "fresh").returncode == 0
    (pictures / "red" / "c.jpg").write_bytes(picture(30))
    assert here("featurize", *run, "--out", out).returncode == 0
    (pictures / "red" / "c.jpg").unlink()
    assert here("featurize", *run, "--out", out).returncode == 0
    compacted = ("compact", "--model", out, "--out", tmp_path / "compacted", *THREADS)
    done = here(*compacted)
    assert done.returncode == 0, done.stderr
    found, expected = (
        contents(tmp_path / name / "features.zarr") for name in ("compacted", "fresh")
    )
    assert found.keys() == expected.keys()
    for name, data in expected.items():
        if name.startswith(f"{LAYER}/c/"):
            continue
        assert found[name] == data, name
    stores = [
        FeatureStore.open(str(tmp_path / n / "features.zarr")) for n in ("compacted", "fresh")
    ]
    np.testing.assert_allclose(*(store.read(LAYER) for store in stores), rtol=1e-5, atol=1e-5)
    before = contents(tmp_path / "compacted")
    (tmp_path / "compacted/features.zarr/status/c/1").unlink()  # as if it had been killed
    assert here(*compacted).returncode == 0
    assert contents(tmp_path / "compacted") == before
    done = here("featurize", *run, "--out", tmp_path / "compacted")
    assert "features: done before, 25 images" in done.stderr


def test_a_compacted_store_keeps_the_split(
    grown: tuple[Path, Path, dict[str, bytes]], tmp_path: Path, here: Run
) -> None:
    pictures, out, _ = grown
    run = ("run", "--images", pictures, *CUT, *THREADS)
    assert here(*run, "--out", out).returncode == 0
    (pictures / "red" / "c.jpg").write_bytes(picture(30))
    assert here(*run, "--out", out).returncode == 0
    done = here("compact", "--model", out, "--out", tmp_path / "compacted", *THREADS)
    assert done.returncode == 0, done.stderr
    assert here(*run, "--out", tmp_path / "compacted").returncode == 0
    splits = []
    for folder in (out, tmp_path / "compacted"):
        store = FeatureStore.open(str(folder / "features.zarr"))
        there = store.read("label") != REMOVED
        splits.append(dict(zip(store.read("path")[there], store.read_split()[there], strict=True)))
    assert splits[0] == splits[1]
    refused = here("compact", "--model", out, "--out", out, *THREADS)
    assert refused.returncode == 1
    assert "is the store to read" in refused.stderr
