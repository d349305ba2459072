from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from helpers import COLOURS, THREADS, Run, check_classifier, contents, draw
from hypothesis import given
from hypothesis import strategies as st

from dtl import config
from dtl.cluster import connection, processors
from dtl.config import Config
from dtl.config.errors import DifferentSettingsError, UserError
from dtl.features import converted, featurization
from dtl.features.network import guard
from dtl.features.network.files import source
from dtl.features.store import FeatureStore
from dtl.features.values import DONE, ExtractionSpec
from dtl.images import listing

needs_vnni = pytest.mark.skipif(
    "int8" not in processors.list_precisions(), reason="this processor has no VNNI"
)
CUT = [
    "--features.layers", "block1_pool", "--features.weights", "random", "--features.chunk-images",
    "8", "--features.batch-images", "4", "--features.engine", "openvino", "--train.epochs", "10",
    "--split.validation", "0.25", "--split.test", "0.25", *THREADS,
]  # fmt: skip


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "pictures"
    draw(folder, COLOURS, 32)
    return folder


def settings(url: Path, **changes: object) -> Config:
    """VGG16 cut after its first block: real, and quick to compute."""
    cut = {"layers": ["block1_pool"], "weights": "random", "chunk_images": 8, "batch_images": 4,
           "precision": "float32", "engine": "openvino"}  # fmt: skip
    return config.build(
        {"images": {"url": str(url), "max_skipped": 0.5}, "features": cut | changes}
    )


def featurize(c: Config, out: Path, client: Client, **options: Any) -> FeatureStore:
    spec = ExtractionSpec(c.features, c.images, c.seed, str(out / "network"))
    images = listing.list_images(c.images, c.seed)
    return featurization.featurize(str(out / "f.zarr"), images, spec, client, **options)


@pytest.fixture(scope="module")
def float32(many: Path, tmp_path_factory: pytest.TempPathFactory, threads: Client) -> Path:
    """Features in float32, and the network that they are of."""
    out = tmp_path_factory.mktemp("float32")
    featurize(settings(many), out, threads)
    return out


def copy_network(source: Path, out: Path, *names: str) -> None:
    """Copy a converted network: to convert it takes a process that imports Keras."""
    (out / "network").mkdir(exist_ok=True)
    for name in names or ("converted.xml", "converted.bin", "converted.json"):
        (out / "network" / name).write_bytes((source / "network" / name).read_bytes())


@pytest.fixture(scope="module")
def int8(
    many: Path, tmp_path_factory: pytest.TempPathFactory, float32: Path, threads: Client
) -> Path:
    """Features in int8, and the networks."""
    out = tmp_path_factory.mktemp("int8")
    copy_network(float32, out)
    featurize(settings(many, precision="int8"), out, threads)
    return out


@pytest.mark.slow
def test_features_are_kerass(many: Path, tmp_path: Path, float32: Path, processes: Client) -> None:
    store = FeatureStore.open(str(float32 / "f.zarr"))
    assert (store.read("status") == DONE).all()
    keras = featurize(settings(many, engine="tensorflow"), tmp_path, processes)
    np.testing.assert_allclose(
        store.read("block1_pool"), keras.read("block1_pool"), rtol=1e-4, atol=1e-3
    )
    assert store.fingerprint["engine"] == "openvino"
    assert "engine" not in keras.fingerprint
    assert store.fingerprint["source_sha256"] == keras.attrs["weights_sha256"]
    assert "openvino" in store.attrs["versions"]
    with pytest.raises(DifferentSettingsError, match="engine: asked for 'openvino', stored None"):
        featurize(settings(many), tmp_path, processes)


@needs_vnni
@pytest.mark.slow
def test_int8_of_several_workers_one_of_which_is_killed(
    many: Path, tmp_path: Path, int8: Path
) -> None:
    copy_network(int8, tmp_path)
    c = config.build({"cluster": {"n_workers": 2, "threads_per_worker": 1}})
    pids: dict[str, int] = {}

    def kill() -> None:
        while len(list((tmp_path / "f.zarr").glob("status/c/*"))) < 2:
            time.sleep(0.01)
        os.kill(next(iter(pids.values())), signal.SIGKILL)

    with connection.connect(c.cluster) as client:
        pids |= client.run(os.getpid)
        killer = threading.Thread(target=kill)
        killer.start()
        featurize(settings(many, precision="int8"), tmp_path, client)
        killer.join()
        loaded = client.run(lambda: {"keras", "tensorflow", "nncf", "openvino"} & {*sys.modules})
    assert all(modules <= {"openvino"} for modules in loaded.values()), loaded
    assert any(loaded.values())
    # The same list has the same network, bit for bit, and that the same features.
    assert contents(tmp_path / "network") == contents(int8 / "network")
    assert contents(tmp_path / "f.zarr") == contents(int8 / "f.zarr")


@needs_vnni
def test_int8_and_how_far_it_is(many: Path, int8: Path, float32: Path) -> None:
    exact, store = (FeatureStore.open(str(out / "f.zarr")) for out in (float32, int8))
    assert store.fingerprint["precision"] == "int8"
    found = store.attrs["quantization"]
    assert (found["n_calibration"], found["n_images"], found["n_classes"]) == (48, 48, 3)
    ours, its = store.read("block1_pool"), exact.read("block1_pool")
    assert (ours != its).any()
    cosine = (ours * its).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(its, axis=1)
    held_out = slice(48, 96)
    of_layer = found["layers"]["block1_pool"]
    assert of_layer["cosine_mean"] == pytest.approx(cosine[held_out].mean(), abs=1e-5)
    assert of_layer["cosine_least"] == pytest.approx(cosine[held_out].min(), abs=1e-5)
    assert {"openvino", "nncf"} <= store.attrs["versions"].keys()


@needs_vnni
def test_the_int8_network_of_another_run(
    many: Path, tmp_path: Path, int8: Path, threads: Client
) -> None:
    network = {"network": str(int8 / "network" / "int8.xml"), "weights": "imagenet"}
    with pytest.raises(
        UserError, match=r"int8\.xml is in int8 already\. Set `features\.precision`"
    ):
        featurize(settings(many, **network), tmp_path, threads)
    store = featurize(settings(many, precision="int8", **network), tmp_path, threads)
    assert store.fingerprint["precision"] == "int8"
    expected = FeatureStore.open(str(int8 / "f.zarr")).read("block1_pool")
    np.testing.assert_array_equal(store.read("block1_pool"), expected)
    # No declaration lies beside it: dtl wrote it. Another's says nothing of its input.
    (tmp_path / "other").mkdir()
    copy_network(int8, tmp_path / "other", "int8.xml", "int8.bin")
    with pytest.raises(UserError, match=r"int8\.toml is not there\. It declares what"):
        source.find(str(tmp_path / "other" / "network" / "int8.xml"))


@pytest.mark.slow
@needs_vnni
def test_a_network_whose_making_was_killed_is_made_again(
    many: Path, tmp_path: Path, int8: Path, threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_network(int8, tmp_path)
    copy_network(int8, tmp_path, "int8.bin")
    featurize(settings(many, precision="int8"), tmp_path, threads)
    assert contents(tmp_path / "network") == contents(int8 / "network")
    assert contents(tmp_path / "f.zarr") == contents(int8 / "f.zarr")

    def fail(*_: object) -> None:
        raise AssertionError("it is made again")

    monkeypatch.setattr(converted, "run_apart", fail)
    featurize(settings(many, precision="auto"), tmp_path, threads)  # the store says which


@pytest.mark.slow
def test_damaged_files_are_told_and_repaired(
    many: Path, tmp_path: Path, float32: Path, threads: Client
) -> None:
    for name, data in contents(float32).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    weights = tmp_path / "network" / "converted.bin"
    weights.write_bytes(b"?" + weights.read_bytes()[1:])
    FeatureStore.open(str(tmp_path / "f.zarr")).forget_chunk(1)
    # A network is loaded once per process: this batch size makes it another one.
    with pytest.raises(DifferentSettingsError, match="batch_images"):
        featurize(settings(many, batch_images=3), tmp_path, threads)
    with pytest.raises(UserError, match=r"converted\.xml and \.bin are damaged, .*`repair`"):
        featurize(settings(many, batch_images=3), tmp_path, threads, overwrite=True)
    featurize(settings(many), tmp_path, threads, repair=True)
    assert contents(tmp_path) == contents(float32)


@needs_vnni
def test_int8_that_is_too_far_is_refused_or_not_taken(
    many: Path, tmp_path: Path, int8: Path, threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_network(int8, tmp_path, *contents(int8 / "network"))
    monkeypatch.setattr(converted, "AUTO_INT8_IMAGES", 96)
    monkeypatch.setattr(guard, "LEAST_COSINE", 1.01)
    message = (
        r"int8 is refused: features of block1_pool have a mean cosine of [01]\.\d+ with .* On 48 "
        r"images held out, .*Set `features\.precision` = auto, bfloat16 or float32\."
    )
    with pytest.raises(UserError, match=message):
        featurize(settings(many, precision="int8"), tmp_path, threads)
    assert not (tmp_path / "f.zarr").exists()
    store = featurize(settings(many, precision="auto"), tmp_path, threads)
    assert store.fingerprint["precision"] == processors.list_precisions()[1]
    assert store.attrs["quantization"]["refused"].startswith("features of block1_pool have")
    monkeypatch.undo()
    again = featurize(settings(many, precision="auto"), tmp_path, threads)
    assert again.fingerprint["precision"] == store.fingerprint["precision"]


@needs_vnni
def test_auto_takes_int8_for_many_images(
    many: Path, tmp_path: Path, int8: Path, threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_network(int8, tmp_path, *contents(int8 / "network"))
    few = featurize(settings(many, precision="auto"), tmp_path, threads)
    assert few.fingerprint["precision"] == processors.list_precisions()[1]
    assert "quantization" not in few.attrs
    (tmp_path / "f.zarr").rename(tmp_path / "few.zarr")
    monkeypatch.setattr(converted, "AUTO_INT8_IMAGES", 96)
    store = featurize(settings(many, precision="auto"), tmp_path, threads)
    assert store.fingerprint["precision"] == "int8"
    assert "refused" not in store.attrs["quantization"]


def test_a_processor_without_vnni(
    many: Path, tmp_path: Path, threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processors, "_list_flags", lambda: {"avx2", "avx512bw"})
    message = r"precision = int8: not every worker's .* \[\['float32'\]\]\. .*int8 takes VNNI"
    with pytest.raises(UserError, match=message):
        featurize(settings(many, precision="int8"), tmp_path, threads)
    assert not (tmp_path / "network").exists()


def test_the_extra_is_not_installed(
    many: Path, tmp_path: Path, threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "dtl.features.network.quiet_openvino", raising=False)
    monkeypatch.delattr("dtl.features.network.quiet_openvino", raising=False)
    with pytest.raises(UserError, match=r"needs the extra\. .*pip install -e '\.\[openvino\]'"):
        featurize(settings(many), tmp_path, threads)


@needs_vnni
def test_a_list_of_a_few_images_none_of_which_can_be_read(
    pictures: Path, tmp_path: Path, float32: Path, threads: Client
) -> None:
    for path in [*pictures.glob("*/[1-7].jpg"), pictures / "red" / "0.jpg"]:
        path.unlink()
    (pictures / "blue" / "broken.jpg").write_bytes(b"no picture")
    c = settings(pictures, precision="int8")
    # One of the three is the only one that is read to calibrate: find a seed by which it is this.
    for seed in range(20):
        images = listing.list_images(c.images, seed)
        if images.path[0] == "blue/broken.jpg":
            break
    copy_network(float32, tmp_path)
    spec = ExtractionSpec(c.features, c.images, 0, str(tmp_path / "network"))
    with pytest.raises(UserError, match=r"None of 1 images that int8 needs could be read"):
        converted.prepare(threads, spec, "int8", images)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own
def test_commands_on_its_features(many: Path, tmp_path: Path, here: Run) -> None:
    out = tmp_path / "out"
    done = here("run", "--images", many, "--out", out, *CUT, "--features.precision", "float32")
    assert done.returncode == 0, done.stderr
    assert ">openvino<" in (out / "report.html").read_text()
    model = ("--model", out)
    found = here("predict", *model, "--images", many, "--out", tmp_path / "p", *THREADS)
    assert found.returncode == 0, found.stderr
    assert "Predictions for 96 images" in found.stdout
    exported = here("export", *model, "--out", tmp_path / "c.keras")
    assert exported.returncode == 0, exported.stderr
    exported = here("export", *model, "--out", tmp_path / "c.xml")
    assert exported.returncode == 0, exported.stderr
    check_classifier(tmp_path / "c.xml", many, tmp_path / "p")
    derived = here("derive", *model, "--out", tmp_path / "d", "--features.layers", "block2_pool")
    assert derived.returncode == 1
    assert "were computed by OpenVINO, whose network ends at the stored layers" in derived.stderr
    other = here("predict", *model, "--images", many, "--out", tmp_path / "q", *THREADS,
                 "--features.engine", "tensorflow")  # fmt: skip
    assert "engine: asked for 'tensorflow', stored 'openvino'" in other.stderr
    (out / "network").rename(tmp_path / "away")
    lost = here("predict", *model, "--images", many, "--out", tmp_path / "q", *THREADS)
    assert lost.returncode == 1
    assert "The converted network of these features is not at" in lost.stderr


# --- which images --------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 400), min_size=2, max_size=2000).map(np.array))
def test_images_that_are_held_out(label: np.ndarray) -> None:
    n_calibration = min(300, len(label) // 2)
    rows = converted.choose_held_out(label, n_calibration)
    assert rows.min() >= n_calibration
    assert rows.max() < len(label)
    assert (np.diff(rows) > 0).all()
    assert len(rows) == min(300, len(rows))
    later = label[n_calibration:]
    if len(rows) < 300:  # then all of each class, or its share
        per_class = max(10, -(-300 // len(np.unique(later))))
        assert len(rows) == np.minimum(np.unique(later, return_counts=True)[1], per_class).sum()


def test_classes_of_many_have_neighbours() -> None:
    label = np.random.default_rng(0).permutation(np.arange(257).repeat(40))
    held_out = label[converted.choose_held_out(label, 300)]
    assert np.unique(held_out, return_counts=True)[1].tolist() == [10] * 30
