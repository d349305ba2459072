from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from helpers import COLOURS, THREADS, Run, all_files, draw

from dtl import config
from dtl.config import Config
from dtl.features import derivation, featurization
from dtl.features.arrays import DamagedError
from dtl.features.store import FeatureStore
from dtl.features.values import DONE, ExtractionSpec
from dtl.images import listing


def settings(pictures: Path, *layers: str, **options: object) -> Config:
    given = {"weights": "random", "layers": layers, "chunk_images": 8, "batch_images": 4}
    return config.build({"images": {"url": str(pictures)}, "features": given | options})


def spec(c: Config) -> ExtractionSpec:
    return ExtractionSpec(c.features, c.images, c.seed)


def featurize(c: Config, url: Path, client: Client) -> FeatureStore:
    listed = listing.list_images(c.images, c.seed)
    return featurization.featurize(str(url), listed, spec(c), client)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, processes: Client) -> tuple[Path, FeatureStore]:
    """Pictures, one of them unreadable, and their features of a small network's last pooling."""
    from helpers import COLOURS, draw

    folder = tmp_path_factory.mktemp("derivation")
    draw(folder / "pictures", COLOURS, 7)
    (folder / "pictures" / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    c = small_settings(folder / "pictures", "global_average_pooling2d")
    return folder / "pictures", featurize(c, folder / "pooled.zarr", processes)


def small_settings(pictures: Path, *layers: str, **options: object) -> Config:
    c = settings(pictures, *layers, network="MobileNetV2", **options)
    return replace(c, images=replace(c.images, max_skipped=0.5))


def derive(source: FeatureStore, c: Config, url: Path, client: Client) -> FeatureStore:
    return derivation.derive(str(url), source, spec(c), client)


@pytest.mark.slow
def test_fc1_becomes_fc2_and_predictions_bit_for_bit(tmp_path: Path, processes: Client) -> None:
    pictures = tmp_path / "pictures"
    draw(pictures, COLOURS, 3)
    source = featurize(settings(pictures, "fc1"), tmp_path / "fc1.zarr", processes)
    c = settings(pictures, "fc2", "predictions")
    expected = featurize(c, tmp_path / "direct.zarr", processes)
    found = derive(source, c, tmp_path / "derived.zarr", processes)
    assert np.ptp(expected.read("fc2")) > 0.1
    assert np.allclose(expected.read("predictions").sum(axis=1), 1, atol=0.01)
    columns = ("path", "label", "status", "error", "content_hash", "figures")
    for name in ("fc2", "predictions", *columns):
        np.testing.assert_array_equal(found.read(name), expected.read(name), strict=True)
    assert found.fingerprint == expected.fingerprint
    assert found.attrs["weights_sha256"] == expected.attrs["weights_sha256"]
    assert found.attrs["derived_from"] == {"layer": "fc1", "dtype": "float32"}


def test_unreadable_images_stay_rows_of_zeros(
    small: tuple[Path, FeatureStore], tmp_path: Path, processes: Client
) -> None:
    pictures, source = small
    c = small_settings(pictures, "predictions")
    found = derive(source, c, tmp_path / "derived.zarr", processes)
    (row,) = np.flatnonzero(found.read("error") != "")
    assert found.read("path")[row] == "red/broken.jpg"
    assert not found.read("predictions")[row].any()
    assert found.read("predictions").any(axis=1).sum() == 21


def test_goes_on_where_it_was_interrupted_to_the_same_bytes(
    small: tuple[Path, FeatureStore], tmp_path: Path, processes: Client
) -> None:
    pictures, source = small
    c = small_settings(pictures, "predictions")
    store = derive(source, c, tmp_path / "derived.zarr", processes)
    before = all_files(store.url)
    (tmp_path / "derived.zarr/status/c/1").unlink()
    (tmp_path / "derived.zarr/predictions/c/1/0").write_bytes(b"half")
    begun = derivation.reuse(store.url, source, c.features)
    assert begun is not None
    assert begun.pending_chunks() == [1]
    derive(source, c, tmp_path / "derived.zarr", processes)
    assert all_files(store.url) == before
    whole = derivation.reuse(store.url, source, c.features)
    assert whole is not None
    assert not whole.pending_chunks()


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        (("Conv_1",), {}, "Conv_1 of MobileNetV2 cannot be computed from the stored global_av"),
        (("nix",), {}, "no layer 'nix'"),
        (("predictions",), {"network": "VGG16"}, "network: asked for 'VGG16', stored 'MobileNet"),
        (("predictions",), {"pooling": "max"}, "pooling: asked for 'max', stored 'avg'"),
    ],
)
def test_what_cannot_be_derived_is_said(
    small: tuple[Path, FeatureStore], tmp_path: Path, processes: Client,
    layers: tuple[str, ...], options: dict[str, object], message: str,
) -> None:  # fmt: skip
    pictures, source = small
    c = small_settings(pictures, *layers)
    c = replace(c, features=replace(c.features, **options))
    with pytest.raises(ValueError, match=message):
        derive(source, c, tmp_path / "derived.zarr", processes)
    assert not (tmp_path / "derived.zarr").exists()


def test_other_weights_are_refused(
    small: tuple[Path, FeatureStore], tmp_path: Path, processes: Client
) -> None:
    pictures, source = small
    c = replace(small_settings(pictures, "predictions"), seed=9)
    with pytest.raises(ValueError, match="was made with other weights:\n  SHA-256 of"):
        derive(source, c, tmp_path / "derived.zarr", processes)


def test_half_precision_in_the_source_is_in_the_settings(
    small: tuple[Path, FeatureStore], tmp_path: Path, processes: Client
) -> None:
    pictures, _ = small
    c = small_settings(pictures, "global_average_pooling2d", dtype="float16")
    source = featurize(c, tmp_path / "half.zarr", processes)
    asked = small_settings(pictures, "predictions").features
    assert derivation.fingerprint_derived(source, asked)["derived_from"] == "float16"


@pytest.mark.slow
def test_the_command(small: tuple[Path, FeatureStore], tmp_path: Path, here: Run) -> None:
    pictures, _ = small
    out, later = tmp_path / "out", tmp_path / "later"
    options = [
        "--features.network", "MobileNetV2", "--features.weights", "random",
        "--features.chunk-images", "8", "--images.max-skipped", "0.5", "--train.epochs", "2",
        *THREADS,
    ]  # fmt: skip
    pooled = ["--features.layers", "global_average_pooling2d"]
    done = here("featurize", "--images", pictures, "--out", out, *options, *pooled)
    assert done.returncode == 0, done.stderr
    layers = ["--features.layers", "predictions"]
    derived = ["derive", "--model", out, "--out", later, *layers, *THREADS]
    done = here(*derived)
    assert done.returncode == 0, done.stderr
    assert f"Features of 22 images: {later}/features.zarr" in done.stdout
    done = here("train", "--out", later, *THREADS)  # goes on from there
    assert done.returncode == 0, done.stderr
    assert "done before" in here(*derived).stderr
    same = here("derive", "--model", out, "--out", out, *layers)
    assert "Choose another" in same.stderr
    assert FeatureStore.open(str(out / "features.zarr")).fingerprint["layers"] == [pooled[1]]


def test_repair_derives_lost_chunks_again(
    small: tuple[Path, FeatureStore], tmp_path: Path, processes: Client
) -> None:
    pictures, source = small
    c = small_settings(pictures, "predictions")
    store = derive(source, c, tmp_path / "derived.zarr", processes)
    before = all_files(store.url)
    for name in ("predictions/c/1/0", "label/c/0", "error/c/0"):
        (tmp_path / "derived.zarr" / name).unlink()
    with pytest.raises(
        DamagedError, match=r"predictions/c/1/0 is missing\. Run derive with `repai"
    ):
        FeatureStore.open(store.url).read("predictions")
    derivation.derive(store.url, source, spec(c), processes, repair=True)
    assert all_files(store.url) == before


def test_repair_takes_over_where_the_tars_lie_now(
    small: tuple[Path, FeatureStore], tmp_path: Path, processes: Client
) -> None:
    pictures, made = small
    shutil.copytree(made.url, tmp_path / "source.zarr")
    source, n = FeatureStore.open(str(tmp_path / "source.zarr")), made.n_images
    images = source.images()
    row = np.arange(n)

    def pack(*tar_names: str) -> None:
        tar = (row % len(tar_names)).astype(np.int32)
        source.write_places(replace(images, tar_names=tar_names, tar=tar, offset=512 * row))

    pack("a.tar", "b.tar")
    c = small_settings(pictures, "predictions")
    derive(source, c, tmp_path / "derived.zarr", processes)
    pack("0.tar", "1.tar", "2.tar")
    derivation.derive(str(tmp_path / "derived.zarr"), source, spec(c), processes, repair=True)
    derived = FeatureStore.open(str(tmp_path / "derived.zarr"))
    assert derived.files("/tars") == source.files("/tars")


def test_chunks_whose_source_was_tried_again_are_outdated(
    small: tuple[Path, FeatureStore], tmp_path: Path, processes: Client
) -> None:
    pictures, source = small
    store = derive(source, small_settings(pictures, "predictions"), tmp_path / "d.zarr", processes)
    assert derivation.list_outdated(store, source) == []
    row = int(np.flatnonzero(source.read("error") != "")[0])
    changed = FeatureStore.open(store.url)
    changed._array("status")[row] = DONE
    assert derivation.list_outdated(changed, source) == [row // 8]
