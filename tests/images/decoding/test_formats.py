"""Image files: what is one, and what is in it, in whatever modes and shapes people keep them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from PIL import Image

from dtl.config.errors import UserError
from dtl.images.decoding.formats import (
    N_MAGIC_BYTES,
    begins_like_image,
    decode,
    decode_sizes,
    has_image_name,
    thumbnail,
)
from dtl.images.layout import Layout, folders_are_splits

SIZE = (6, 8)
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, SIZE, np.uint8)
ALPHA = RNG.integers(0, 256, SIZE, np.uint8)
RGB = RNG.integers(0, 256, (*SIZE, 3), np.uint8)
OLE2 = bytes.fromhex("d0cf11e0a1b11ae1")  # Thumbs.db


def file(image: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(
    width: int, height: int, bits: int, colour: int, *, rows: bytes = b"", extra: bytes = b""
) -> bytes:
    """A PNG written by hand, for what Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + extra + body + chunk(b"IEND", b"")


def grey(values: ArrayLike) -> np.ndarray:
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = alpha[..., None] / 255
    return rgb * weight + 255 * (1 - weight)


def palette_image() -> Image.Image:
    image = Image.new("P", SIZE[::-1])
    image.putdata((GREY % 4).ravel().tolist())
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30])
    return image


PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]])
GREY_16 = GREY.astype(np.uint16) * 256 + ALPHA
RGB_16 = RGB.astype(np.uint16) * 256 + ALPHA[..., None]
RGB_16_ROWS = b"".join(b"\0" + row.astype(">u2").tobytes() for row in RGB_16)
CMYK = np.dstack([RGB, ALPHA // 2])
CMYK_AS_RGB = (255 - CMYK[..., :3].astype(float)) * (255 - CMYK[..., 3:].astype(float)) / 255

MODES = {
    "L": (file(GREY, "PNG"), grey(GREY)),
    "1": (file(Image.fromarray(GREY).convert("1", dither=0), "PNG"), grey((GREY >= 128) * 255)),
    "LA": (file(np.dstack([GREY, ALPHA]), "PNG"), over_white(grey(GREY), ALPHA)),
    "L, one transparent": (
        file(GREY, "PNG", transparency=int(GREY[0, 0])),
        np.where((GREY[0, 0] == GREY)[..., None], 255, grey(GREY)),
    ),
    "P": (file(palette_image(), "PNG"), PALETTE[GREY % 4]),
    "P, one transparent": (
        file(palette_image(), "PNG", transparency=2),
        np.where((GREY % 4 == 2)[..., None], 255, PALETTE[GREY % 4]),
    ),
    "P, alpha of each": (
        file(palette_image(), "PNG", transparency=bytes([255, 128, 0, 60])),
        over_white(PALETTE[GREY % 4], np.array([255, 128, 0, 60])[GREY % 4]),
    ),
    "P, GIF": (file(palette_image(), "GIF"), PALETTE[GREY % 4]),
    "P, transparent GIF": (
        file(palette_image(), "GIF", transparency=1),
        np.where((GREY % 4 == 1)[..., None], 255, PALETTE[GREY % 4]),
    ),
    "RGB": (file(RGB, "PNG"), RGB),
    "RGB, one transparent": (
        file(RGB, "PNG", transparency=tuple(RGB[2, 3].tolist())),
        np.where((RGB[2, 3] == RGB).all(axis=2, keepdims=True), 255, RGB),
    ),
    "RGBA": (file(np.dstack([RGB, ALPHA]), "PNG"), over_white(RGB, ALPHA)),
    "RGBA, WebP": (file(np.dstack([RGB, ALPHA]), "WEBP", lossless=True, exact=True),
                   over_white(RGB, ALPHA)),
    "CMYK": (file(Image.fromarray(CMYK, "CMYK"), "TIFF"), CMYK_AS_RGB),
    "I;16": (file(GREY_16, "PNG"), grey(GREY)),
    "I;16, TIFF": (file(GREY_16, "TIFF"), grey(GREY)),
    "I;16B, TIFF": (file(Image.frombytes("I;16B", SIZE[::-1], GREY_16.astype(">u2").tobytes()),
                         "TIFF"), grey(GREY)),
    "I": (file(GREY_16.astype(np.int32), "TIFF"), grey(GREY)),
    "I, beyond 16 bits": (file(np.full(SIZE, 70_000, np.int32), "TIFF"), np.full((*SIZE, 3), 255)),
    "RGB, 16 bits": (png(8, 6, 16, 2, rows=RGB_16_ROWS), RGB),
    "PPM": (file(RGB, "PPM"), RGB),
    "PGM, 16 bits": (b"P5 8 6 65535\n" + GREY_16.astype(">u2").tobytes(), grey(GREY)),
    "BMP": (file(RGB, "BMP"), RGB),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode: str) -> None:
    data, expected = MODES[mode]
    found = decode(data, SIZE)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.01)


def test_cmyk_jpeg() -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    found = decode(file(ink, "JPEG", quality=95), (4, 4))
    np.testing.assert_allclose(found, np.full((4, 4, 3), [255, 0, 0]), atol=4)


def used(n_bits: int, shape: tuple[int, ...] = SIZE) -> np.ndarray:
    values = np.random.default_rng(n_bits).integers(0, 1 << n_bits, shape)
    values.flat[0] = (1 << n_bits) - 1
    return values


@pytest.mark.parametrize("n_bits", [8, 10, 12, 16])
@pytest.mark.parametrize(
    ("dtype", "kind"), [(np.uint16, "TIFF"), (np.int32, "TIFF"), (np.uint16, "PNG")]
)
def test_grey_is_scaled_by_the_bits_in_use(n_bits: int, dtype: type, kind: str) -> None:
    values = used(n_bits)
    found = decode(file(values.astype(dtype), kind), SIZE)
    np.testing.assert_array_equal(found, grey(values >> (n_bits - 8)))


@pytest.mark.parametrize("tag", [281, 341])  # MaxSampleValue, SMaxSampleValue
def test_a_tiff_may_say_which_bits_are_in_use(tag: int) -> None:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    values, tags = used(11), ImageFileDirectory_v2()
    tags[tag] = 65535
    found = decode(file(values.astype(np.uint16), "TIFF", tiffinfo=tags), SIZE)
    np.testing.assert_array_equal(found, grey(values >> 8))


def test_a_format_may_say_what_is_white() -> None:
    values = used(11)
    data = b"P5 8 6 65535\n" + values.astype(">u2").tobytes()
    np.testing.assert_array_equal(decode(data, SIZE), grey(values >> 8))


def test_more_than_16_bits_are_scaled_by_the_largest_value() -> None:
    values = used(20).astype(np.int32)
    found = decode(file(values, "TIFF"), SIZE).astype(int)
    assert np.abs(found - grey(values / ((1 << 20) - 1) * 255)).max() <= 1


def colours(n_bits: int, kind: str) -> tuple[bytes, np.ndarray]:
    values = used(n_bits, (*SIZE, 3))
    if kind == "PNG":
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        return png(8, 6, 16, 2, rows=rows), values
    order, letters = ("<", b"II*\0") if kind.startswith("little") else (">", b"MM\0*")
    pixels = values.astype(f"{order}u2").tobytes()
    compression = 1
    if kind.endswith("deflate"):
        pixels, compression = zlib.compress(pixels), 8
    tags = [(256, 4, 8), (257, 4, 6), (258, 3, None), (259, 3, compression), (262, 3, 2),
            (273, 4, 8), (277, 3, 3), (278, 4, 6), (279, 4, len(pixels))]  # fmt: skip
    bits = 8 + len(pixels)
    directory = struct.pack(f"{order}H", len(tags))
    for tag, form, value in tags:
        if value is None:
            directory += struct.pack(f"{order}HHII", tag, 3, 3, bits)
        elif form == 3:
            directory += struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
        else:
            directory += struct.pack(f"{order}HHII", tag, 4, 1, value)
    header = letters + struct.pack(f"{order}I", bits + 6)
    return header + pixels + struct.pack(f"{order}3H", 16, 16, 16) + directory + bytes(4), values


@pytest.mark.parametrize("n_bits", [8, 10, 12, 13, 16])
@pytest.mark.parametrize("kind", ["PNG", "little", "big", "little, deflate", "big, deflate"])
def test_colours_are_scaled_by_the_bits_in_use(n_bits: int, kind: str) -> None:
    data, values = colours(n_bits, kind)
    shift = n_bits - 8 if n_bits <= 12 else 8
    np.testing.assert_array_equal(decode(data, SIZE), values >> shift)


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="floating-point pixels have no known range"):
        decode(file(GREY.astype(np.float32), "TIFF"), SIZE)


# EXIF 2.32, table 6: what has to be done to the stored pixels to see them upright.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = file(RGB, kind, exif=exif(orientation), **options)
    expected = UPRIGHT[orientation](RGB)
    np.testing.assert_array_equal(decode(data, expected.shape[:2]), expected)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_of_a_jpeg_that_is_scaled_while_decoding(orientation: int) -> None:
    blocks = np.kron(RGB, np.ones((64, 64, 1), np.uint8))
    data = file(blocks, "JPEG", exif=exif(orientation), quality=95, subsampling=0)
    upright = UPRIGHT[orientation](blocks)
    size = UPRIGHT[orientation](RGB).shape[:2]
    found = decode(data, size).astype(int)
    # Another orientation would be 50 off on average.
    assert np.abs(found - decode(file(upright, "PNG"), size)).mean() < 4


@pytest.mark.filterwarnings("ignore")  # Pillow warns of each, and goes on
@pytest.mark.parametrize(
    "block",
    [
        b"garbage garbage",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\x05\0\x12\x01\x03",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",  # orientation 99
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x03\0\0\0ab\0\0\0\0\0\0",  # orientation "ab"
    ],
)
def test_a_broken_exif_block_costs_no_image(block: bytes) -> None:
    data = file(np.full((8, 8, 3), 77, np.uint8), "JPEG", exif=b"Exif\0\0" + block)
    assert (decode(data, (4, 4)) == 77).all()


@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (37, 53), (500, 20)])
@pytest.mark.parametrize("size", [(32, 32), (20, 50)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_every_size_becomes_the_networks(
    resize: str, shape: tuple[int, ...], size: tuple[int, int], kind: str
) -> None:
    data = file(np.full((*shape, 3), 40, np.uint8), kind)
    found = decode(data, size, resize=resize)
    assert found.shape == (*size, 3)
    assert np.abs(found.astype(int) - 40).max() <= 1


def stripes(n: int, side: int, axis: int) -> np.ndarray:
    colours = np.eye(3, dtype=np.uint8)[[k % 3 for k in range(n)]] * 255
    image = np.repeat(np.repeat(colours[None], side, axis=1), side, axis=0)
    return image if axis == 1 else image.transpose(1, 0, 2)


@pytest.mark.parametrize("axis", [0, 1])
def test_stretch_shows_all_and_crop_the_middle(axis: int) -> None:
    image = stripes(3, 60, axis)  # red, green, blue squares
    data = file(image, "PNG")
    stretched = decode(data, (60, 60))
    along = stretched[30] if axis == 1 else stretched[:, 30]
    assert along[[5, 30, 55]].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    cropped = decode(data, (20, 20), resize="crop")
    assert (cropped[2:-2, 2:-2] == [0, 255, 0]).all()
    assert (cropped.argmax(axis=2) == 1).all()


@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_several_sizes_are_those_of_one_each(resize: str) -> None:
    data = file(stripes(3, 60, 1), "PNG")
    sizes = [(20, 30), (60, 60), (90, 40)]
    found = decode_sizes(data, sizes, resize=resize, max_pixels=20_000)
    for pixels, size in zip(found.pixels, sizes, strict=True):
        np.testing.assert_array_equal(pixels, decode(data, size, resize=resize), strict=True)


def test_shrinking_is_antialiased() -> None:
    checkers = grey((np.indices((256, 256)).sum(axis=0) % 2) * 255)
    found = decode(file(checkers, "PNG"), (32, 32)).astype(int)
    assert np.abs(found[2:-2, 2:-2] - 127.5).max() < 3


def test_a_jpeg_scaled_while_decoding_looks_as_if_it_were_not() -> None:
    y, x = np.mgrid[:1200, :1600]
    waves = 127 + 60 * np.sin(x / 40) + 60 * np.cos(y / 30)
    data = file(np.dstack([waves, waves[::-1], waves[:, ::-1]]).astype(np.uint8), "JPEG")
    with Image.open(io.BytesIO(data)) as whole:
        expected = np.asarray(whole.resize((224, 224), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(decode(data, (224, 224)) - expected).mean() < 1


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = file(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decode(data, (4, 4)) == [255, 0, 0]).all()


def test_empty() -> None:
    with pytest.raises(ValueError, match=r"^empty file$"):
        decode(b"", SIZE)


@pytest.mark.parametrize(
    "data", [b"hello world", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF", OLE2]
)
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^not an image that Pillow reads \(starts with b'"):
        decode(data, SIZE)


PHOTO = RNG.integers(0, 256, (64, 64, 3), np.uint8)
FILES = {kind: file(PHOTO, kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
def test_truncated(kind: str) -> None:
    data = FILES[kind]
    with pytest.raises(ValueError, match=r"^(damaged: |not an image)"):
        decode(data[: len(data) // 2], SIZE)


def outcome(data: bytes) -> tuple[int, ...] | str:
    try:
        return decode(data, SIZE, max_pixels=20_000).shape
    except ValueError as error:
        return str(error) and "a message"


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(FILES)), st.floats(0, 1), st.binary(max_size=4))
def test_damage_is_a_value_error_or_a_picture(kind: str, where: float, junk: bytes) -> None:
    data = FILES[kind]
    at = int(where * len(data))
    for damaged in (data[:at], data[:at] + junk + data[at + len(junk) :]):
        assert outcome(damaged) in ((*SIZE, 3), "a message")


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(data, SIZE, max_pixels=20_000)


BOMBS = {
    "PNG": png(60_000, 50_000, 8, 2),
    "GIF": b"GIF89a"
    + struct.pack("<HHBBB", 60_000, 50_000, 0, 0, 0)
    + struct.pack("<cHHHHB", b",", 0, 0, 60_000, 50_000, 0)
    + b"\x08\x00;",
    "BMP": b"BM"
    + struct.pack("<IHHIIiiHHIIIIII", 54, 0, 0, 54, 40, 60_000, 50_000, 1, 24, *[0] * 6),
    "PPM": b"P6 60000 50000 255\n",
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("function", [lambda d: decode(d, SIZE), lambda d: thumbnail(d, 8)])
def test_bombs_are_refused_before_they_are_decompressed(
    kind: str, function: Callable[..., Any]
) -> None:
    # None has pixels: were one looked for, the message would be of damage.
    with pytest.raises(
        ValueError, match=r"^60000 x 50000 pixels, more than images\.max_pixels = 100000000$"
    ):
        function(BOMBS[kind])


def test_the_limit_itself_is_allowed() -> None:
    data = file(RGB, "PNG")
    np.testing.assert_array_equal(decode(data, SIZE, max_pixels=48), RGB)
    with pytest.raises(ValueError, match=r"8 x 6 pixels, more than images\.max_pixels = 47"):
        decode(data, SIZE, max_pixels=47)


@pytest.mark.timeout(60)  # memory for NaN bytes would be waited for, for ever
@pytest.mark.filterwarnings("ignore:IM image format is deprecated")
@pytest.mark.parametrize("size", [b"8*NaN", b"NaN*6", b"1e999*6", b"8*1e-9"])
def test_a_size_that_is_no_whole_number_is_refused(size: bytes) -> None:
    whole = file(RGB, "IM")
    np.testing.assert_array_equal(decode(whole, SIZE), RGB)
    with pytest.raises(UserError):
        decode(whole.replace(b"8*6", size), SIZE)


@pytest.mark.parametrize("shape", [(100, 300), (300, 100), (20, 10)])
def test_thumbnail(shape: tuple[int, ...]) -> None:
    data = file(np.full((*shape, 3), 90, np.uint8), "PNG", exif=exif(6))
    with Image.open(io.BytesIO(thumbnail(data, 50))) as small:
        assert small.format == "JPEG"
        scale = min(1, 50 / max(shape))
        assert small.size == (round(shape[0] * scale), round(shape[1] * scale))  # turned by 90
        assert np.abs(np.asarray(small).astype(int) - 90).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "PCX"])
def test_images_are_known_by_content(kind: str) -> None:
    assert begins_like_image(file(Image.new("RGB", (40, 40)), kind)[:N_MAGIC_BYTES])


@pytest.mark.parametrize(
    "start",
    [b"", b"G", b"\xff\xd8", OLE2 + bytes(24), b"#!/bin/sh\nmv a b\n", b"%PDF-1.7", b"greg\n",
     b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"],
)  # fmt: skip
def test_other_files_are_known_by_content(start: bytes) -> None:
    assert not begins_like_image(start)


@settings(deadline=None)
@given(st.binary(max_size=N_MAGIC_BYTES))
def test_any_start_is_judged(start: bytes) -> None:
    assert begins_like_image(start) in (True, False)


@pytest.mark.parametrize("path", ["a.jpg", "a.JPEG", "x/y.b.png", "c.webp", "d.TIF", "e.gif"])
def test_names_of_images(path: str) -> None:
    assert has_image_name(path)


@pytest.mark.parametrize("path", ["RENAME2", "greg", "Thumbs.db", "a.jpg/b", "a.txt", "a.pdf", ""])
def test_names_of_other_files(path: str) -> None:
    assert not has_image_name(path)


@pytest.mark.parametrize(
    ("path", "with_splits", "expected"),
    [
        ("003.backpack/003_0001.jpg", False, (-1, "003.backpack")),
        ("cats/old/1.jpg", False, (-1, "cats")),
        ("1.jpg", False, (-1, None)),
        ("Train/cats/1.jpg", True, (0, "cats")),
        ("training/cats/1.jpg", True, (0, "cats")),
        ("validation/cats/1.jpg", True, (1, "cats")),
        ("val/cats/1.jpg", True, (1, "cats")),
        ("valid/123_0007.jpg", True, (1, "123")),
        ("test/007_0001", True, (2, "007")),
        ("test/loose.jpg", True, (2, None)),
        ("1.jpg", True, (-1, None)),
        ("extra/cats/1.jpg", True, (-1, None)),
    ],
)
def test_what_a_path_says(path: str, with_splits: bool, expected: Any) -> None:
    assert Layout(with_splits).read(path) == expected


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["train", "valid", "test"], True),
        (["Train", "TEST"], True),
        (["training", "val"], True),
        (["train"], True),
        (["valid", "test"], False),
        (["train", "plane", "ship"], False),
        (["001.ak47"], False),
        ([], False),
    ],
)
def test_which_folders_are_splits(folders: list[str], expected: Any) -> None:
    assert folders_are_splits(folders) is expected
