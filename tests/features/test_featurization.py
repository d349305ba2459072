from __future__ import annotations

import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray
from distributed import Client
from helpers import COLOURS, CUT, command, contents, draw, jpeg

from dtl import config
from dtl.config import Config, SplitConfig
from dtl.config.errors import UserError
from dtl.features import featurization, growth, repair, splitting
from dtl.features.store import FeatureStore
from dtl.features.values import DONE, PENDING, SKIPPED, ExtractionSpec
from dtl.images import listing
from dtl.images.values import ImageList


def settings(url: Path | str, **changes: object) -> Config:
    """VGG16 cut after its first block: real, and quick to compute."""
    cut = {"layers": ["block1_pool"], "weights": "random", "chunk_images": 8, "batch_images": 4,
           "precision": "float32"}  # fmt: skip
    return config.build(
        {"images": {"url": str(url), "max_skipped": 0.5}, "features": cut | changes}
    )


def featurize(c: Config, url: Path, client: Client, *, overwrite: bool = False) -> FeatureStore:
    return featurization.featurize(str(url), listed(c), spec(c), client, overwrite=overwrite)


def spec(c: Config) -> ExtractionSpec:
    return ExtractionSpec(c.features, c.images, c.seed)


def listed(c: Config) -> ImageList:
    return listing.list_images(c.images, c.seed)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "pictures"
    draw(folder, COLOURS, 32)
    return folder


def test_rows_are_the_listed_images_through_the_network(
    pictures: Path, tmp_path: Path, processes: Client
) -> None:
    from dtl.features.network import keras_network
    from dtl.features.values import NetworkSpec
    from dtl.images.decoding import formats

    c = settings(pictures)
    store = featurize(c, tmp_path / "f.zarr", processes)
    assert (store.read("status") == DONE).all()
    network = keras_network.load(NetworkSpec(layers=("block1_pool",), weights="random"))
    for row in (0, 7, 23):
        data = (pictures / str(store.read("path")[row])).read_bytes()
        batch = formats.decode(data, (224, 224))[None]
        expected = network.compute(batch)["block1_pool"][0]
        assert np.allclose(store.read("block1_pool")[row], expected, rtol=1e-4, atol=1e-3)
        assert store.class_names[store.read("label")[row]] == str(store.read("path")[row])[:-6]
    with xarray.open_zarr(tmp_path / "f.zarr", consolidated=False) as opened:
        assert opened["block1_pool"].dims == ("image", "feature")
        assert opened.attrs["weights_sha256"] == network.weights_sha256


def test_all_reasons_are_stored_of_many_files_that_are_left_out(pictures: Path) -> None:
    for k in range(30):
        (pictures / "blue" / f"{k:02d}.xml").touch()
    (pictures / "red" / "z.zip").touch()
    images = listed(settings(pictures))
    stored = growth.describe_left_out(images)
    assert stored["n_left_out"] == 31
    archive = "an archive: unpack it, or make a tar of its files"
    assert stored["left_out_counts"] == {"not an image": 30, archive: 1}
    assert len(stored["left_out"]) == 21
    assert stored["left_out"][-1] == ["red/z.zip", archive]
    few = growth.describe_left_out(replace(images, left_out=images.left_out[-3:]))
    assert few == {"n_left_out": 3, "left_out": [list(pair) for pair in images.left_out[-3:]]}


def test_several_layers_in_float16(pictures: Path, tmp_path: Path, processes: Client) -> None:
    c = settings(pictures, layers=["block1_conv1", "block1_pool"], dtype="float16", pooling="max")
    store = featurize(c, tmp_path / "f.zarr", processes)
    assert store.dtype("block1_conv1") == store.dtype("block1_pool") == np.float16
    first, pool = store.read("block1_conv1"), store.read("block1_pool")
    assert first.shape == pool.shape == (24, 64)
    assert first.any()
    assert pool.any()
    assert not np.allclose(first, pool)


def test_unreadable_images_are_rows_and_not_a_crash(
    pictures: Path, tmp_path: Path, processes: Client
) -> None:
    good = (pictures / "red" / "0.jpg").read_bytes()
    broken = {"truncated": good[: len(good) // 2], "empty": b"", "text": b"no picture at all"}
    for name, data in broken.items():
        (pictures / "red" / f"{name}.jpg").write_bytes(data)
    store = featurize(settings(pictures), tmp_path / "f.zarr", processes)
    status = store.read("status")
    assert (status == SKIPPED).sum() == 3
    assert (status == DONE).sum() == 24
    reasons = dict(store.list_skipped())
    assert reasons["red/empty.jpg"] == "empty file"
    assert reasons["red/text.jpg"].startswith("not an image")
    assert "truncated" in reasons["red/truncated.jpg"]
    assert not store.read("block1_pool")[status == SKIPPED].any()


def test_too_many_unreadable_images(pictures: Path, tmp_path: Path, processes: Client) -> None:
    (pictures / "red" / "8.jpg").write_bytes(b"")
    c = settings(pictures)
    c = replace(c, images=replace(c.images, max_skipped=0.01))
    message = r"1 of 25 images could not be read, more than images.max_skipped = 0.01 allows:\n"
    with pytest.raises(ValueError, match=message + r"  red/8.jpg: empty file"):
        featurize(c, tmp_path / "f.zarr", processes)
    # What was done counts once the budget is raised.
    before = contents(tmp_path / "f.zarr")
    c = replace(c, images=replace(c.images, max_skipped=0.1))
    store = featurize(c, tmp_path / "f.zarr", processes)
    assert not store.pending_chunks()
    after = contents(tmp_path / "f.zarr")
    assert {name: after[name] for name in before if "status" not in name} == {
        name: data for name, data in before.items() if "status" not in name
    }


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"layers": ["block1_conv1"]}, "layers: asked for"),
        ({"preprocess": "dl4j"}, "preprocess: asked for 'dl4j', stored 'network'"),
        ({"pooling": "max"}, "pooling: asked for 'max', stored 'avg'"),
        ({"chunk_images": 16}, "chunk_images: asked for 16, stored 8"),
        ({"network": "VGG19"}, "network: asked for 'VGG19', stored 'VGG16'"),
    ],
)
def test_a_store_of_other_settings_is_refused(
    pictures: Path, tmp_path: Path, processes: Client, change: dict[str, object], difference: str
) -> None:
    featurize(settings(pictures), tmp_path / "f.zarr", processes)
    before = contents(tmp_path / "f.zarr")
    with pytest.raises(ValueError, match=difference) as error:
        featurize(settings(pictures, **change), tmp_path / "f.zarr", processes)
    assert "`overwrite`" in str(error.value)
    assert contents(tmp_path / "f.zarr") == before


def test_a_store_of_other_images_or_weights_is_refused(
    pictures: Path, tmp_path: Path, processes: Client
) -> None:
    c = settings(pictures)
    featurize(c, tmp_path / "f.zarr", processes)
    with pytest.raises(ValueError, match=r"weights: asked for 'random, seed 1'"):
        featurize(replace(c, seed=1), tmp_path / "f.zarr", processes)
    (pictures / "red" / "new.jpg").write_bytes(jpeg(np.zeros((9, 9, 3), np.uint8)))
    with pytest.raises(ValueError, match=r"images: asked for '25 of 3 classes.*stored '24 of 3"):
        featurize(c, tmp_path / "f.zarr", processes)
    store = featurize(c, tmp_path / "f.zarr", processes, overwrite=True)
    assert store.n_images == 25


def test_a_store_that_was_begun_with_other_weights_is_refused_or_begun_anew(
    pictures: Path, tmp_path: Path, processes: Client
) -> None:
    """The settings are the same: what `imagenet` means may change, as Keras' cache does."""
    c, url = settings(pictures), tmp_path / "f.zarr"
    store = featurize(c, url, processes)
    whole = contents(url)
    store._array("status")[store.rows(1)] = PENDING
    store.arrays.group.attrs["weights_sha256"] = "0" * 64
    with pytest.raises(
        ValueError, match=r"SHA-256 of the weights: .*stored '0{64}'\n.*`overwrite`"
    ):
        featurize(c, url, processes)
    featurize(c, url, processes, overwrite=True)
    assert contents(url) == whole


def test_memory_with_processes_is_refused(pictures: Path, processes: Client) -> None:
    c = settings(pictures)
    with pytest.raises(ValueError, match=r"memory:// belongs to one process"):
        featurization.featurize("memory://f", listed(c), spec(c), processes)


def test_a_half_made_store_is_made_anew(pictures: Path, tmp_path: Path, processes: Client) -> None:
    import zarr

    zarr.create_group(tmp_path / "f.zarr", attributes={"dtl": "unfinished"})
    store = featurize(settings(pictures), tmp_path / "f.zarr", processes)
    assert (store.read("status") == DONE).all()


def test_a_lost_chunk_is_computed_again_to_the_same_bytes(
    pictures: Path, tmp_path: Path, processes: Client
) -> None:
    c, url = settings(pictures), tmp_path / "f.zarr"
    store = featurize(c, url, processes)
    whole, times = contents(url), stamps(url)
    store._array("status")[store.rows(1)] = PENDING
    (url / "block1_pool" / "c" / "1" / "0").unlink()
    (url / "error" / "c").mkdir(exist_ok=True)
    leftover = url / "block1_pool" / "c" / "1" / "0.1234.partial"
    leftover.write_bytes(b"half")
    featurize(c, url, processes)
    assert contents(url) == whole
    changed = {name for name, time_ in stamps(url).items() if times[name] != time_}
    assert changed
    assert all("c/1" in name for name in changed)


def damage(file: Path, kind: str) -> None:
    data = file.read_bytes()
    if kind == "missing":
        file.unlink()
    else:
        file.write_bytes({"flipped": data[:-1] + bytes([data[-1] ^ 1]), "empty": b""}[kind])


@pytest.mark.parametrize("kind", ["missing", "flipped", "empty"])
@pytest.mark.parametrize("what", ["a chunk", "the list", "all", "descriptions"])
def test_repair_makes_the_same_bytes(
    pictures: Path, tmp_path: Path, processes: Client, what: str, kind: str
) -> None:
    (pictures / "red" / "8.jpg").write_bytes(b"")
    c, url = settings(pictures), tmp_path / "f.zarr"
    store = featurize(c, url, processes)
    splitting.split_images(store, SplitConfig(), 0)
    whole, times = contents(url), stamps(url)
    of_list = ("label", "path", "split", "given_split")
    damaged = {
        "a chunk": [n for n in whole if "/c/1" in n],
        "the list": [f"{name}/c/0" for name in of_list],
        "all": [n for n in whole if "/c/" in n],
        "descriptions": [n for n in whole if n.endswith("/zarr.json") and "split" not in n],
    }[what]
    for name in damaged:
        damage(url / name, kind)
    if (what, kind) not in (("a chunk", "missing"), ("all", "missing")):  # else chunks are pending
        with pytest.raises(UserError, match=r"is (missing|damaged)"):
            featurization.featurize(str(url), listed(c), spec(c), processes) and [
                FeatureStore.open(str(url)).read(name) for name in of_list
            ]
    featurization.featurize(str(url), listed(c), spec(c), processes, repair=True)
    assert contents(url) == whole
    if what != "all":
        changed = {name for name, time_ in stamps(url).items() if times[name] != time_}
        chunk = {n for n in whole if "/c/1" in n} if what == "a chunk" else set()
        assert changed <= {*damaged} | chunk | {"split/zarr.json"}
    assert splitting.fingerprint_split(SplitConfig(), 0) == store.split_fingerprint


def test_repair_of_a_whole_store_changes_nothing(
    pictures: Path, tmp_path: Path, processes: Client, caplog: pytest.LogCaptureFixture
) -> None:
    c, url = settings(pictures), tmp_path / "f.zarr"
    featurize(c, url, processes)
    times = stamps(url)
    with caplog.at_level("INFO"):
        featurization.featurize(str(url), listed(c), spec(c), processes, repair=True)
    assert "repair: nothing is missing or damaged" in caplog.text
    assert stamps(url) == times


def test_repair_refuses_images_that_changed(
    pictures: Path, tmp_path: Path, processes: Client
) -> None:
    c, url = settings(pictures), tmp_path / "f.zarr"
    store = featurize(c, url, processes)
    path = str(store.read("path")[9])
    data = (pictures / path).read_bytes()
    (pictures / path).write_bytes(data[:-9] + bytes(7) + data[-2:])  # of as many bytes
    (url / "block1_pool/c/1/0").unlink()
    before = contents(url)
    message = rf"{path} is not the file that features were made of .*cannot be made again"
    with pytest.raises(UserError, match=message):
        featurization.featurize(str(url), listed(c), spec(c), processes, repair=True)
    assert contents(url) == before
    (pictures / path).write_bytes(data)
    featurization.featurize(str(url), listed(c), spec(c), processes, repair=True)
    assert not FeatureStore.open(str(url)).pending_chunks()


@pytest.mark.parametrize("also", ["error", "status"])
def test_repair_takes_in_no_image_that_was_skipped(
    pictures: Path, tmp_path: Path, processes: Client, also: str
) -> None:
    c, url, images = settings(pictures), tmp_path / "f.zarr", listed(settings(pictures))
    path = pictures / str(images.path[9])
    path.rename(path.with_suffix(".away"))
    store = featurization.featurize(str(url), images, spec(c), processes)
    splitting.split_images(store, SplitConfig(), 0)
    path.with_suffix(".away").rename(path)
    for name in ("block1_pool/c/1/0", f"{also}/c/1"):
        damage(url / name, "flipped")
    before = contents(url)
    message = r"1 images of chunk 1 of .* were skipped, and can be read now.*`retry_skipped`"
    with pytest.raises(UserError, match=message):
        featurization.featurize(str(url), images, spec(c), processes, repair=True)
    assert contents(url) == before


def test_skipped_images_that_can_be_read_now(
    pictures: Path, tmp_path: Path, processes: Client
) -> None:
    c, url = settings(pictures), tmp_path / "f.zarr"
    expected = contents(Path(featurize(c, tmp_path / "expected.zarr", processes).url))
    store = FeatureStore.open(str(tmp_path / "expected.zarr"))
    path = pictures / str(store.read("path")[9])
    images = listed(c)
    path.rename(path.with_suffix(".away"))
    featurization.featurize(str(url), images, spec(c), processes)
    store = FeatureStore.open(str(url))
    assert store.list_skipped() == [(str(path.relative_to(pictures)), "the file is gone")]
    assert repair.find_readable(store, images.root, c.images, processes) == []
    path.with_suffix(".away").rename(path)
    assert repair.find_readable(store, images.root, c.images, processes) == [1]
    store.forget_chunk(1)
    featurization.featurize(str(url), images, spec(c), processes)
    assert contents(url) == expected


def stamps(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }


def is_status(name: str) -> bool:
    """Whether a file says that a chunk is done: one that is half written does not."""
    return re.fullmatch(r"status/c/\d+", name) is not None


def n_done(url: Path) -> int:
    """Chunks whose status is stored."""
    return sum(is_status(str(path.relative_to(url))) for path in url.glob("status/c/*"))


@pytest.mark.slow
def test_killed_worker_is_replaced_and_the_bytes_are_the_same(
    many: Path, tmp_path: Path, processes: Client
) -> None:
    from dtl.cluster import connection

    c = settings(many)
    featurize(c, tmp_path / "expected.zarr", processes)
    url = tmp_path / "f.zarr"
    killed: list[dict[str, int]] = []
    with connection.connect(c.cluster) as client:
        pid = next(iter(client.run(os.getpid).values()))

        def kill() -> None:
            while n_done(url) < 3:
                time.sleep(0.01)
            os.kill(pid, signal.SIGKILL)
            killed.append(stamps(url))

        killer = threading.Thread(target=kill)
        killer.start()
        featurize(c, url, client)
        killer.join()
        assert next(iter(client.run(os.getpid).values())) != pid
    assert contents(url) == contents(tmp_path / "expected.zarr")
    done = {name for name in killed[0] if is_status(name)}
    assert 3 <= len(done) < 12
    assert all(stamps(url)[name] == killed[0][name] for name in done)


@pytest.mark.slow
def test_two_instruction_sets_in_a_store_are_told(pictures: Path, tmp_path: Path) -> None:
    from dtl.cluster import processors

    wide = processors.INSTRUCTION_SETS[processors.find_instruction_set()]
    if not wide.startswith("AVX512"):
        pytest.skip(f"this processor has {wide}, not AVX-512")
    options = ("--images", pictures, "--out", tmp_path / "out", *CUT)
    url = tmp_path / "out" / "features.zarr"
    first = command("featurize", *options, ONEDNN_MAX_CPU_ISA="AVX2")
    assert first.returncode == 0, first.stderr
    assert "instruction sets" not in first.stdout + first.stderr
    narrow = FeatureStore.open(str(url)).read("block1_pool")
    assert FeatureStore.open(str(url)).list_instruction_sets() == ["AVX2"]
    FeatureStore.open(str(url)).forget_chunk(1)
    again = command("run", *options)
    assert again.returncode == 0, again.stderr
    for place in (again.stderr, again.stdout, (tmp_path / "out" / "report.html").read_text()):
        assert f"several instruction sets: AVX2, {wide}" in place
    store = FeatureStore.open(str(url))
    assert store.list_instruction_sets() == ["AVX2", wide]
    assert (
        store.read("instruction_set", 0).tolist() == [processors.INSTRUCTION_SETS.index("AVX2")] * 8
    )
    np.testing.assert_array_equal(store.read("block1_pool", 0), narrow[:8])
    np.testing.assert_allclose(store.read("block1_pool"), narrow, rtol=1e-4, atol=1e-3)


def test_versions_are_those_of_the_engine_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    c = settings("photos")
    assert spec(c).engine == "tensorflow"
    assert {"keras", "tensorflow"} <= featurization.list_versions("tensorflow", "float32").keys()
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert spec(c).engine == spec(c).meaning["engine"] == "jax"
    found = featurization.list_versions("openvino", "int8")
    assert {"openvino", "nncf"} <= found.keys()
    assert "tensorflow" not in found
    assert "nncf" not in featurization.list_versions("openvino", "float32")
