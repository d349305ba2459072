"""Packed images are the images: the same rows, bytes, features and head, from few large files."""

from __future__ import annotations

import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from distributed import Client
from helpers import COLOURS, contents, draw

from dtl import config, storage
from dtl.config import Config, ImagesConfig, PackConfig
from dtl.evaluation import prediction, scoring
from dtl.evaluation.values import Mistake
from dtl.features import featurization, splitting
from dtl.features.store import FeatureStore
from dtl.features.values import ExtractionSpec
from dtl.images import listing, packing, tars
from dtl.images.decoding import formats
from dtl.images.values import ImageList
from dtl.pipeline import command_line
from dtl.pipeline.gather import gather_report
from dtl.pipeline.results import Results
from dtl.training import trainer
from dtl.training.spec import TrainingSpec

CUT = {"layers": ["block1_pool"], "weights": "random", "chunk_images": 8, "batch_images": 4,
       "precision": "float32"}  # fmt: skip
ONE_MIB = PackConfig(shard_mib=1)


def listed(url: Path | str, seed: int = 0) -> ImageList:
    return listing.list_images(ImagesConfig(url=str(url)), seed)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images by name only, of 5 MiB in all."""
    folder = tmp_path_factory.mktemp("large") / "images"
    rng = np.random.default_rng(0)
    for k in range(60):
        path = folder / "abc"[k % 3] / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.bytes(int(rng.integers(1, 180_000))))
    return folder


def read(listed_: ImageList) -> dict[str, bytes]:
    with storage.Reader(tars.locate_listed(listed_)) as reader:
        return {str(path): reader.read(row) for row, path in enumerate(listed_.path)}


def test_rows_are_those_of_the_folder(large: Path, tmp_path: Path, threads: Client) -> None:
    folder = listed(large)
    packing.pack(str(tmp_path / "tars"), folder, ONE_MIB, threads)
    packed = listed(tmp_path / "tars")
    assert packed.path.tolist() == folder.path.tolist()
    assert packed.fingerprint == folder.fingerprint
    assert packed.left_out == ()
    assert read(packed) == contents(large)
    assert packed.tar_names == tuple(f"shard-{k:06d}.tar" for k in range(len(packed.tar_names)))
    assert (np.diff(packed.tar) >= 0).all()
    sizes = [path.stat().st_size for path in sorted((tmp_path / "tars").glob("*.tar"))]
    assert len(sizes) == len(packed.tar_names) >= 5
    assert all(800_000 < size <= (1 << 20) + 1024 for size in sizes[:-1])


def test_anyone_reads_the_tars(large: Path, tmp_path: Path, threads: Client) -> None:
    packing.pack(str(tmp_path / "tars"), listed(large), ONE_MIB, threads)
    for path in (tmp_path / "tars").glob("*.tar"):
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / "out", filter="data")
    assert contents(tmp_path / "out") == contents(large)


def test_the_same_bytes_whoever_packs(large: Path, tmp_path: Path, threads: Client) -> None:
    packing.pack(str(tmp_path / "one"), listed(large), ONE_MIB, threads)
    for path in large.rglob("*.jpg"):
        path.touch()
    packing.pack(str(tmp_path / "other"), listed(large), ONE_MIB, threads)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    # And tars in other sizes, from tars.
    packed = listed(tmp_path / "one")
    packing.pack(str(tmp_path / "third"), packed, PackConfig(shard_mib=2), threads)
    assert listed(tmp_path / "third").fingerprint == packed.fingerprint
    packing.pack(str(tmp_path / "fourth"), listed(tmp_path / "third"), ONE_MIB, threads)
    assert contents(tmp_path / "fourth") == contents(tmp_path / "one")


def test_folders_of_splits_keep_their_paths(tmp_path: Path, threads: Client) -> None:
    for path in ("train/a/1.jpg", "train/b/2.jpg", "valid/a/3.jpg", "test/b/4.jpg"):
        (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / path).write_bytes(path.encode())
    folder = listed(tmp_path / "images")
    packing.pack(str(tmp_path / "tars"), folder, PackConfig(), threads)
    packed = listed(tmp_path / "tars")
    assert packed.fingerprint == folder.fingerprint
    assert sorted(packed.given_split.tolist()) == [0, 0, 1, 2]


def test_only_missing_tars_are_written(large: Path, tmp_path: Path, threads: Client) -> None:
    out = tmp_path / "tars"
    packing.pack(str(out), listed(large), ONE_MIB, threads)
    whole = contents(out)
    (out / "shard-000002.tar").unlink()
    (out / "shard-000003.tar.0123.partial").write_bytes(b"half")
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    packing.pack(str(out), listed(large), ONE_MIB, threads)
    assert contents(out) == whole
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")} | times == {
        path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")
    }


DRIVER = """
import sys, time
from dtl import pipeline, storage
write_bytes = storage.write_bytes
def slowly(url, data):
    time.sleep(0.5 if url.endswith(".tar") else 0)
    write_bytes(url, data)
storage.write_bytes = slowly
sys.exit(pipeline.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_killed_pack_goes_on_to_the_same_bytes(
    large: Path, tmp_path: Path, threads: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    packing.pack(str(tmp_path / "whole"), listed(large), ONE_MIB, threads)
    out = tmp_path / "tars"
    command = ["pack", "--images", str(large), "--out", str(out), "--pack.shard-mib", "1",
               "--cluster.processes", "false", "--cluster.threads-per-worker", "1"]  # fmt: skip
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *command], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while len(done := list(out.glob("*.tar"))) < 2:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    times = {path: path.stat().st_mtime_ns for path in done}
    with pytest.raises(ValueError, match=r"_dtl_images\.json says that its folder is not complete"):
        listed(out)
    assert command_line.main(command) == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in done} == times
    capsys.readouterr()
    assert command_line.main(command) == 0
    printed = capsys.readouterr()
    assert "packing: done before" in printed.err
    assert f"60 images in tars: {out}" in printed.out
    assert "dashboard" not in printed.err


# --- errors --------------------------------------------------------------------------------------


def test_other_images_are_refused_or_replaced(large: Path, tmp_path: Path, threads: Client) -> None:
    out = str(tmp_path / "tars")
    packing.pack(out, listed(large), ONE_MIB, threads)
    before = contents(tmp_path / "tars")
    with pytest.raises(ValueError, match=r"shard_mib: asked for 2, stored 1\n.*`overwrite`"):
        packing.pack(out, listed(large), PackConfig(shard_mib=2), threads)
    with pytest.raises(ValueError, match="images: asked for '60 of 3 classes, SHA-256"):
        packing.pack(out, listed(large, seed=1), ONE_MIB, threads)
    assert contents(tmp_path / "tars") == before
    packing.pack(out, listed(large), PackConfig(shard_mib=3), threads, overwrite=True)
    assert len(contents(tmp_path / "tars")) == 3  # two tars and the ledger
    assert read(listed(tmp_path / "tars")) == contents(large)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_pack_is_never_replaced(
    large: Path, tmp_path: Path, threads: Client, overwrite: bool
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=rf"{tmp_path} is not empty: it has thesis\.txt\. Choose"):
        packing.pack(str(tmp_path), listed(large), ONE_MIB, threads, overwrite=overwrite)
    file = tmp_path / "thesis.txt"
    with pytest.raises(ValueError, match=rf"{file} is a file\. Choose an empty folder"):
        packing.pack(str(file), listed(large), ONE_MIB, threads, overwrite=overwrite)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(
    tmp_path: Path, threads: Client
) -> None:
    draw(tmp_path / "images", COLOURS, 4)
    drawn = listed(tmp_path / "images")
    (tmp_path / "images/red/2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"red/2\.jpg") as error:
        packing.pack(str(tmp_path / "tars"), drawn, ONE_MIB, threads)
    assert error.value.__notes__ == [
        "while packing red/2.jpg: mend it or remove it, then pack again"
    ]
    assert not list((tmp_path / "tars").glob("*.tar*"))
    (tmp_path / "images/red/2.jpg").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"red/2\.jpg has 5 bytes, and had \d+ when it was listed"):
        packing.pack(str(tmp_path / "tars"), drawn, ONE_MIB, threads)


def test_tars_inside_the_images(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out in (large, large / "tars"):
        assert command_line.main(["pack", "--images", str(large), "--out", str(out)]) == 1
        assert f"--out {out} lies in --images {large}" in capsys.readouterr().err
    assert not (large / "tars").exists()


# --- what comes of them --------------------------------------------------------------------------


def settings(url: Path) -> Config:
    return config.build({"images": {"url": str(url), "max_skipped": 0.5}, "features": CUT,
                         "train": {"epochs": 4}})  # fmt: skip


def featurize(url: Path, out: Path, client: Client) -> FeatureStore:
    c = settings(url)
    store = featurization.featurize(
        str(out), listed(url), ExtractionSpec(c.features, c.images, c.seed), client
    )
    splitting.split_images(store, c.split, c.seed)
    return store


@pytest.mark.slow
def test_features_and_head_have_the_same_bits(
    pictures: Path, tmp_path: Path, processes: Client
) -> None:
    (pictures / "red" / "broken.jpg").write_bytes(b"no picture")
    (pictures / "red" / "empty.jpg").write_bytes(b"")
    folder = listed(pictures)
    packing.pack(str(tmp_path / "tars"), folder, PackConfig(), processes)
    # Cut in three, so that chunks begin and end within tars.
    few = [
        packing.plan_tar(str(tmp_path / "three" / tars.tar_name(k)), rows, folder)
        for k, rows in enumerate([range(5), range(5, 20), range(20, 26)])
    ]
    assert [packing.write_tar(plan) for plan in few] == [5, 15, 6]
    stores = {
        name: featurize(url, tmp_path / name / "features.zarr", processes)
        for name, url in {"a": pictures, "b": tmp_path / "tars", "c": tmp_path / "three"}.items()
    }
    names = ("path", "label", "given_split", "split", "content_hash", "error", "status",
             "figures", "block1_pool")  # fmt: skip
    for name in names:
        expected = stores["a"].read(name)
        for other in "bc":
            np.testing.assert_array_equal(stores[other].read(name), expected, strict=True)
    assert (stores["b"].read("status") == 2).sum() == 2
    c = settings(pictures)
    heads = {
        trainer.train(TrainingSpec(store, c.train, "block1_pool", 0), processes).head.fingerprint
        for store in stores.values()
    }
    assert len(heads) == 1


@pytest.mark.slow
def test_a_store_that_was_begun_goes_on_from_other_tars(
    pictures: Path, tmp_path: Path, processes: Client
) -> None:
    expected = featurize(pictures, tmp_path / "a.zarr", processes)
    packing.pack(str(tmp_path / "tars"), listed(pictures), PackConfig(), processes)
    url = tmp_path / "b.zarr"
    begun = featurize(pictures, url, processes)
    for source in (tmp_path / "tars", pictures):
        begun._array("status")[begun.rows(1)] = 0
        begun._array("block1_pool")[begun.rows(1)] = 0
        again = featurize(source, url, processes)
        assert again.attrs["shards"] == (["shard-000000.tar"] if source != pictures else [])
        assert again.attrs["root"] == str(source)
        assert not again.pending_chunks()
        np.testing.assert_array_equal(again.read("block1_pool"), expected.read("block1_pool"))


@pytest.mark.slow
def test_predictions_and_the_pictures_of_a_report(
    pictures: Path, tmp_path: Path, processes: Client
) -> None:
    packed, out = tmp_path / "tars", Results(str(tmp_path / "out"))
    packing.pack(str(packed), listed(pictures), PackConfig(), processes)
    store = featurize(packed, Path(out.features), processes)
    c = settings(packed)
    trained = trainer.train(TrainingSpec(store, c.train, "block1_pool", 0), processes)
    head, history = trained.head, trained.history
    found = listing.find_images(str(packed))
    found.sort()
    assert len(found.paths) == 24
    loose, spec = listing.ImageFiles(str(pictures)), ExtractionSpec(c.features, c.images)
    for path, n_bytes in zip(found.paths, found.sizes, strict=True):
        loose.add(path, n_bytes)
    tables = []
    for images in (loose, found):
        url = str(tmp_path / f"predictions-{len(tables)}")
        prediction.predict(url, images, head, spec, lambda: processes)
        tables.append(pq.read_table(url).drop_columns("modified"))
    assert tables[0].equals(tables[1])
    out.write_head(head, history)
    scores = scoring.evaluate(store, head, processes, n_mistakes=24)
    mistakes = tuple(
        Mistake(str(path), "test", "red", "green", 0.5) for path in store.read("path")[:5]
    )
    gathered = gather_report(out, c, store, head, replace(scores, mistakes=mistakes))
    assert gathered.pictures == {
        m.path: formats.thumbnail((pictures / m.path).read_bytes(), 256) for m in mistakes
    }
    assert gathered.title == "tars"


def test_from_hdfs_to_hdfs(large: Path, tmp_path: Path, threads: Client, hadoop: Any) -> None:
    url = f"{hadoop.url}/tmp/{tmp_path.name}"
    packing.pack(str(tmp_path / "tars"), listed(large), ONE_MIB, threads)
    for path, data in contents(large).items():
        storage.write_bytes(f"{url}/images/{path}", data)
    packing.pack(f"{url}/tars", listed(f"{url}/images"), ONE_MIB, threads)
    packed = listed(f"{url}/tars")
    assert packed.fingerprint == listed(large).fingerprint
    assert read(packed) == contents(large)
    assert {path: storage.read_bytes(f"{url}/tars/{path}") for path in packed.tar_names} == {
        path: (tmp_path / "tars" / path).read_bytes() for path in packed.tar_names
    }
    with pytest.raises(FileNotFoundError, match=r"gone\.tar"), storage.Ranges(f"{url}/gone.tar"):
        pass
    storage.remove(url)
