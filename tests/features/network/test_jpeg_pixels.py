"""A graph of TensorFlow's makes the same pixels of a JPEG as Pillow does, every one of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dtl.features.network.classifiers.jpeg_pixels import read_jpeg
from dtl.features.network.classifiers.quiet_tensorflow import tf
from dtl.images.decoding import formats

ORIENTATION = 0x112
TWO = [(96, 96), (320, 320)]


def make_graph(sizes: list[tuple[int, int]], resize: str) -> Callable[[bytes], list[np.ndarray]]:
    graph = tf.function(
        lambda data: read_jpeg(data, sizes, resize),
        input_signature=[tf.TensorSpec([], tf.string)], autograph=False,
    )  # fmt: skip
    return lambda data: [pixels.numpy() for pixels in graph(tf.constant(data))]


GRAPHS = {
    (resize, n): make_graph(TWO[:n], resize) for resize in ("stretch", "crop") for n in (1, 2)
}


def check(data: bytes, resize: str, n: int) -> None:
    wanted = formats.decode_sizes(data, TWO[:n], resize=resize, max_pixels=10**8).pixels
    for found, pixels in zip(GRAPHS[resize, n](data), wanted, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, pixels)


def draw(width: int, height: int, seed: int, mode: str = "RGB", **how: Any) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    pixels = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **how)
    return buffer.getvalue()


def exif(orientation: int, order: str = "II", n_before: int = 3) -> bytes:
    """An EXIF block, whose orientation comes after some other tags."""
    little = order == "II"

    def number(value: int, n: int) -> bytes:
        return value.to_bytes(n, "little" if little else "big")

    def entry(tag: int, value: int) -> bytes:
        return number(tag, 2) + number(3, 2) + number(1, 4) + number(value, 2) + bytes(2)

    entries = [entry(0x100 + k, 5) for k in range(n_before)] + [entry(ORIENTATION, orientation)]
    start = order.encode() + number(42, 2) + number(8, 4) + number(len(entries), 2)
    return b"Exif\0\0" + start + b"".join(entries) + bytes(4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(1, 700), st.integers(1, 700), st.integers(0, 9), st.sampled_from(["II", "MM"]),
    st.sampled_from(["RGB", "L"]), st.booleans(), st.sampled_from([0, 2]),
    st.sampled_from(["stretch", "crop"]), st.sampled_from([1, 2]),
)  # fmt: skip
def test_any_size_and_orientation(
    width: int, height: int, orientation: int, order: str, mode: str, progressive: bool,
    subsampling: int, resize: str, n: int,
) -> None:  # fmt: skip
    data = draw(
        width, height, width + height, mode, exif=exif(orientation, order),
        progressive=progressive, subsampling=subsampling,
    )  # fmt: skip
    check(data, resize, n)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 7, 8, 9])
def test_large_ones_are_decoded_at_a_smaller_scale(scale: int) -> None:
    check(draw(192 * scale + 5, 192 * scale, scale), "stretch", 1)
    check(draw(192 * scale, 192 * scale + 3, scale), "crop", 1)


@pytest.mark.parametrize(
    "block",
    [
        b"", b"Exif\0\0", exif(6)[:20], exif(6, n_before=300), exif(0), exif(9),
        b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"http://ns.adobe.com/xap/1.0/\0" + b"x" * 60000,
    ],
    ids=["none", "empty", "cut", "long", "zero", "nine", "beyond", "negative", "other"],
)  # fmt: skip
def test_blocks_that_are_no_exif_or_damaged(block: bytes) -> None:
    plain = draw(60, 40, 0)
    segment = b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block if block else b""
    check(plain[:2] + segment + plain[2:], "stretch", 1)


def test_orientations_that_few_cameras_write() -> None:
    plain, block = draw(60, 40, 0), exif(6, "MM")
    at = block.index(b"\x01\x12\x00\x03")
    as_long = block[:at] + b"\x01\x12\x00\x04" + block[at + 4 : at + 8] + b"\0\0\0\x06" + bytes(4)
    segments = [b"\xff\xe1" + (len(b) + 2).to_bytes(2, "big") + b for b in (block, as_long)]
    filled = b"\xff\xff\xff" + segments[0]
    late = 4 * (b"\xff\xe2\xff\xfe" + bytes(65532)) + segments[0]
    for segment in (*segments, filled, late):
        data = plain[:2] + segment + plain[2:]
        assert Image.open(io.BytesIO(data)).getexif().get(ORIENTATION) == 6
        check(data, "stretch", 1)


def test_real_photographs(data: Path) -> None:
    files = sorted((data / "caltech256").glob("*/*.jpg"))[::80]
    assert len(files) > 15
    for file in files:
        check(file.read_bytes(), "stretch", 2)
        check(file.read_bytes(), "crop", 1)


@pytest.mark.parametrize("content", [b"", b"abc", draw(8, 8, 0, "CMYK"), b"\x89PNG\r\n\x1a\n"])
def test_what_it_does_not_take(content: bytes) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Invalid JPEG data|in CMYK: convert"):
        GRAPHS["stretch", 1](content)
