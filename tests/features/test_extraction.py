from __future__ import annotations

import errno
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster
from PIL import Image

from dtl import storage
from dtl.config import FeaturesConfig, ImagesConfig
from dtl.features.extraction import Extractor, extract, prepare
from dtl.features.network import keras_network
from dtl.features.values import ExtractionSpec, NetworkSpec
from dtl.images.decoding import formats

SPEC = NetworkSpec(layers=("block1_pool",), weights="random")
"""VGG16 after its first block: real, and quick to compute."""

FEATURES = FeaturesConfig(layers=("block1_pool",), weights="random", precision="float32")


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return Extractor(
        network=SPEC,
        weights_sha256=keras_network.load(SPEC).weights_sha256,
        images=ImagesConfig(max_pixels=1_000_000),
        batch_images=4,
        input_size=(224, 224),
        n_features={"block1_pool": 64},
        found={"precision": "float32"},
    )


def alone(file: Path) -> np.ndarray:
    """An image's features without extraction."""
    network = keras_network.load(SPEC)
    pixels = formats.decode(file.read_bytes(), (224, 224))
    return network.compute(pixels[None])["block1_pool"][0]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def mixed(pictures: Path) -> tuple[list[Path], dict[str, str]]:
    """Good and broken files, one after the other, and what is wrong with the broken ones."""
    photo = Image.open(pictures / "red" / "0.jpg")
    frames = [photo, photo.rotate(90), photo.rotate(180)]
    good = {
        "cmyk.jpg": encoded(photo.convert("CMYK"), "JPEG"),
        "palette.png": encoded(photo.quantize(16), "PNG"),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "grey.jpg": encoded(photo.convert("L"), "JPEG"),
        "transparent.png": encoded(photo.convert("RGBA"), "PNG"),
    }
    jpeg = (pictures / "red" / "0.jpg").read_bytes()
    broken = {
        "empty.jpg": (b"", "empty file"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "damaged: image file is truncated"),
        "text.jpg": (b"no picture at all", "not an image that Pillow reads (starts with b'no pic"),
        "huge.png": (encoded(Image.new("1", (2000, 1000)), "PNG"), "2000 x 1000 pixels, more than"),
    }
    for name, data in good.items():
        (pictures / name).write_bytes(data)
    for name, (data, _) in broken.items():
        (pictures / name).write_bytes(data)
    files = sorted(pictures.glob("*/*.jpg"))[:8] + [pictures / name for name in (*good, *broken)]
    files.append(pictures / "gone.jpg")
    np.random.default_rng(0).shuffle(files)  # type: ignore[arg-type]
    errors = {name: reason for name, (_, reason) in broken.items()}
    return files, errors | {"gone.jpg": "the file is gone"}


# --- extract -------------------------------------------------------------------------------------


def test_good_images_among_broken_ones(
    mixed: tuple[list[Path], dict[str, str]], extractor: Extractor
) -> None:
    files, reasons = mixed
    assert len(files) == 18
    assert len(files) % extractor.batch_images == 2
    features, content_hash, errors, figures = extract([str(file) for file in files], extractor)
    assert list(features) == ["block1_pool"]
    assert figures.shape == (18, 5)
    assert figures.dtype == np.float32
    for file, found in zip(files, figures, strict=True):
        if file.name in reasons:
            assert np.isnan(found).all()
        else:
            resized = formats.decode_sizes(
                file.read_bytes(), [(224, 224)], resize="stretch", max_pixels=1 << 20
            )
            assert found.tolist() == np.float32(resized.figures).tolist()
    assert features["block1_pool"].shape == (18, 64)
    assert features["block1_pool"].dtype == np.float32
    assert content_hash.shape == (18,)
    assert content_hash.dtype == np.uint64
    for file, found, error in zip(files, features["block1_pool"], errors, strict=True):
        if file.name in reasons:
            assert error.startswith(reasons[file.name])
            assert not found.any()
        else:
            assert error == ""
            assert np.allclose(found, alone(file), rtol=1e-4, atol=1e-3)
    good = features["block1_pool"][[error == "" for error in errors]]
    assert len(np.unique(good, axis=0)) == len(good) == 13
    read = [file.name not in ("gone.jpg", "empty.jpg") for file in files]
    assert (content_hash[read] != 0).all()
    assert content_hash[[file.name == "gone.jpg" for file in files]] == 0


def test_equal_bytes_have_equal_hashes(pictures: Path, extractor: Extractor) -> None:
    copy, truncated = pictures / "copy.bin", pictures / "truncated.jpg"
    copy.write_bytes((pictures / "red" / "3.jpg").read_bytes())
    truncated.write_bytes((pictures / "red" / "3.jpg").read_bytes()[:-300])
    files = [pictures / "red" / "3.jpg", copy, truncated, pictures / "red" / "4.jpg"]
    features, content_hash, *_ = extract([str(file) for file in files], extractor)
    assert content_hash[0] == content_hash[1]
    assert len(set(content_hash.tolist())) == 3
    # On another place of a batch, so to rounding.
    assert np.allclose(*features["block1_pool"][:2], rtol=1e-5)


@pytest.mark.parametrize("batch_images", [1, 3, 4, 16])
@pytest.mark.parametrize("n_images", [0, 1, 4, 7])
def test_any_number_of_images_in_any_batches(
    pictures: Path, extractor: Extractor, batch_images: int, n_images: int
) -> None:
    files = sorted(pictures.glob("*/*.jpg"))[:n_images]
    urls = [str(file) for file in files]
    features, content_hash, errors, _ = extract(urls, replace(extractor, batch_images=batch_images))
    assert features["block1_pool"].shape == (n_images, 64)
    assert errors == [""] * n_images
    assert len(set(content_hash.tolist())) == n_images
    for file, found in zip(files, features["block1_pool"], strict=True):
        assert np.allclose(found, alone(file), rtol=1e-4, atol=1e-3)


def test_unread_images_are_zeros_though_the_network_makes_something_of_black(
    pictures: Path, extractor: Extractor
) -> None:
    kernels = [np.zeros((3, 3, n, 64), np.float32) for n in (3, 64)]
    biases = [np.ones(64, np.float32)] * 2
    np.savez(pictures / "w.npz", kernels[0], biases[0], kernels[1], biases[1])
    spec = replace(SPEC, weights=str(pictures / "w.npz"))
    other = replace(extractor, network=spec, weights_sha256=keras_network.load(spec).weights_sha256)
    files = [pictures / "gone.jpg", *sorted(pictures.glob("red/*.jpg"))[:3], pictures / "w.npz"]
    features, _, errors, _ = extract([str(file) for file in files], other)
    assert [error != "" for error in errors] == [True, False, False, False, True]
    expected = np.zeros((5, 64), np.float32)
    expected[1:4] = 1
    assert (features["block1_pool"] == expected).all()


def test_several_layers(pictures: Path) -> None:
    spec = replace(SPEC, layers=("block1_conv1", "block1_pool"), pooling="max")
    network = keras_network.load(spec)
    extractor = Extractor(
        spec, network.weights_sha256, ImagesConfig(), 4, (224, 224),
        network.description.n_features,
    )  # fmt: skip
    file = pictures / "red" / "0.jpg"
    features, *_ = extract([str(file)] * 2, extractor)
    batch = formats.decode(file.read_bytes(), (224, 224))[None]
    for layer, expected in network.compute(batch).items():
        assert np.allclose(features[layer], expected, rtol=1e-4, atol=1e-3)


def test_storage_that_fails_is_an_error_and_no_row(
    pictures: Path, extractor: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [str(pictures / "red" / "0.jpg"), str(pictures / "red")]

    def fail(*_: object) -> bytes:
        raise OSError(errno.ENETDOWN, "Network is down")

    with monkeypatch.context() as patch:
        patch.setattr(storage.Reader, "read", fail)
        with pytest.raises(OSError, match="is down") as caught:
            extract(urls[:1], extractor)
    assert caught.value.__notes__ == [f"while reading {urls[0]}"]
    # The next call goes on: nothing is held. One file that fails alone is a row.
    _, _, errors, _ = extract(urls, extractor)
    assert errors == ["", "is a directory, each time it was read"]


def test_a_worker_with_other_weights(pictures: Path, extractor: Extractor) -> None:
    message = (
        f"A worker that joined late has weights of SHA-256 {extractor.weights_sha256} instead of "
        r"abc\. Give all workers one file\."
    )
    with pytest.raises(ValueError, match=message):
        extract([str(pictures / "red" / "0.jpg")], replace(extractor, weights_sha256="abc"))


def test_reads_a_window_ahead_while_another_chunk_is_in_the_network(
    pictures: Path, extractor: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [str(file) for file in sorted(pictures.glob("*/*.jpg"))]
    n_read, lock, read_bytes = 0, threading.Lock(), storage.read_bytes

    def count(url: str, most_bytes: int | None) -> bytes:
        nonlocal n_read
        with lock:
            n_read += 1
        return read_bytes(url, most_bytes)

    monkeypatch.setattr("dtl.storage.ranges.read_bytes", count)
    done: list[Any] = []
    one_by_one = replace(extractor, batch_images=2)
    chunk = threading.Thread(target=lambda: done.append(extract(urls, one_by_one)))
    with keras_network.load(SPEC).lock:
        chunk.start()
        deadline = time.monotonic() + 300
        while n_read < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert n_read == 8
        assert not done
    chunk.join()
    assert n_read == len(urls) == 24
    assert done[0][2] == [""] * 24


# --- prepare -------------------------------------------------------------------------------------


def test_prepare(processes: Client, extractor: Extractor) -> None:
    image = ImagesConfig(max_pixels=1_000_000)
    found = prepare(processes, ExtractionSpec(replace(FEATURES, batch_images=4), image))
    assert found == extractor
    auto = ExtractionSpec(replace(FEATURES, precision="auto"), image)
    automatic = prepare(processes, auto)
    assert automatic.network.precision == keras_network.list_precisions()[0]
    as_before = prepare(processes, auto, "float32")
    assert as_before.network.precision == "float32"
    other_seed = prepare(processes, ExtractionSpec(FEATURES, image, 1))
    assert other_seed.weights_sha256 != extractor.weights_sha256


def test_unknown_network_and_layer(processes: Client) -> None:
    message = r"Unknown network 'VGG99'\. Known: .*VGG16"
    with pytest.raises(ValueError, match=message):
        prepare(processes, ExtractionSpec(replace(FEATURES, network="VGG99"), ImagesConfig()))
    with pytest.raises(ValueError, match=r"has no layer 'fc3'\. It has: .*fc1, fc2"):
        prepare(processes, ExtractionSpec(replace(FEATURES, layers=("fc3",)), ImagesConfig()))


@pytest.mark.skipif(
    "float16" in keras_network.list_precisions(), reason="a GPU computes float16 at speed"
)
def test_precision_that_a_worker_does_not_have(processes: Client) -> None:
    message = (
        r"features\.precision = float16: not every worker's processor computes it at speed\. They "
        r"have: \[\[.*'float32'\]\]\. Use auto or float32\."
    )
    with pytest.raises(ValueError, match=message):
        prepare(processes, ExtractionSpec(replace(FEATURES, precision="float16"), ImagesConfig()))


def test_weights_that_a_worker_cannot_read(processes: Client, tmp_path: Path) -> None:
    missing = replace(FEATURES, weights=str(tmp_path / "gone.npz"))
    with pytest.raises(FileNotFoundError, match=r"No such file: .*gone\.npz"):
        prepare(processes, ExtractionSpec(missing, ImagesConfig()))
    (tmp_path / "text.npz").write_text("what is this")
    wrong = replace(FEATURES, weights=str(tmp_path / "text.npz"))
    with pytest.raises(ValueError, match=r"text\.npz is no \.npz file of weights"):
        prepare(processes, ExtractionSpec(wrong, ImagesConfig()))


@pytest.fixture
def small() -> Iterator[Client]:
    """A worker that may use 2 GiB; it is this process, which may be over it already."""
    unchecked = {
        f"distributed.worker.memory.{what}": False for what in ("target", "spill", "pause")
    }
    with (
        dask.config.set(unchecked),
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, memory_limit="2GiB",
            dashboard_address=":0",
        ) as local,
        Client(local) as client,
    ):  # fmt: skip
        yield client


def test_too_little_memory_is_refused_before_the_weights_are_loaded(small: Client) -> None:
    message = (
        r"Worker inproc://.*: It may use 2\.0 GiB; VGG16 up to fc1, fc2 needs 2\.5 GiB\. Give each "
        r"worker more memory \(`cluster\.memory_limit` on a local cluster, .*, or run fewer "
    )
    with pytest.raises(ValueError, match=message):
        prepare(small, ExtractionSpec(replace(FEATURES, layers=("fc1", "fc2")), ImagesConfig()))
    enough = prepare(small, ExtractionSpec(FEATURES, ImagesConfig()))  # of the first block's
    assert enough.n_features == {"block1_pool": 64}


def test_workers_get_the_absolute_place_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = ExtractionSpec(replace(FEATURES, weights="w.npz"), ImagesConfig(), 3).make_network_spec(
        "bfloat16"
    )
    assert spec.weights == str(tmp_path / "w.npz")
    assert (spec.seed, spec.precision, spec.layers) == (3, "bfloat16", ("block1_pool",))
    for name in ("imagenet", "random"):
        features = replace(FEATURES, weights=name)
        network = ExtractionSpec(features, ImagesConfig(), 3).make_network_spec("float32")
        assert network.weights == name
