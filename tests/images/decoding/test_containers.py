"""Image files without a decoder: sizes inside, metadata that may be broken, a JPEG without end."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dtl.images.decoding import containers
from dtl.images.decoding.formats import decode, thumbnail

RNG = np.random.default_rng(0)
PIXELS = np.kron(RNG.integers(0, 256, (6, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
PICTURE = Image.fromarray(PIXELS)


def save(kind: str, picture: Image.Image = PICTURE, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + checksum


def png(*chunks: bytes, last: bool = False) -> bytes:
    """With chunks after its header, or before its end."""
    data = save("PNG")
    place = len(data) - 12 if last else 33
    return data[:place] + b"".join(chunks) + data[place:]


def jpeg(*segments: tuple[int, bytes], **options: Any) -> bytes:
    data = save("JPEG", quality=97, **options)
    made = [bytes([255, m]) + struct.pack(">H", len(text) + 2) + text for m, text in segments]
    return data[:2] + b"".join(made) + data[2:]


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    packed = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4)


def tiff(*entries: tuple[int, int, int, bytes], **options: Any) -> bytes:
    """With more entries in its directory."""
    data = bytearray(save("TIFF", **options))
    (start,) = struct.unpack_from("<I", data, 4)
    (n_entries,) = struct.unpack_from("<H", data, start)
    packed = [bytes(data[start + 2 + 12 * k :][:12]) for k in range(n_entries)]
    packed += [struct.pack("<HHI4s", *entry) for entry in entries]
    packed.sort(key=lambda entry: struct.unpack_from("<H", entry))
    data[4:8] = struct.pack("<I", len(data))
    return bytes(data) + struct.pack("<H", len(packed)) + b"".join(packed) + bytes(4)


def avif(block: bytes) -> bytes:
    data = save("AVIF", quality=95, subsampling="4:4:4", exif=exif((0x10F, 2, 4, b"abc\0")))
    return data.replace(b"II*\0", block)


TURN = (0x112, 3, 1, b"\6\0\0\0")
FAR = b"\xff\xff\xff\x7f"
BIG = zlib.compress(bytes(5 << 20))
XMP = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
SHORT_ICC = (0xE2, b"ICC_PROFILE\0")

UPRIGHT = {
    "PNG, much text": png(chunk(b"zTXt", b"k\0\0" + BIG)),
    "PNG, much text at the end": png(chunk(b"iTXt", b"k\0\1\0\0\0" + BIG), last=True),
    "PNG, many texts": png(*[chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20)))] * 70),
    "PNG, large profile": png(chunk(b"iCCP", b"k\0\0" + BIG)),
    "PNG, unknown compression": png(chunk(b"iCCP", b"k\0\5" + BIG)),
    "PNG, text with a wrong checksum": png(chunk(b"tEXt", b"k\0abc")[:-1] + b"\0"),
    "PNG, short gamma": png(chunk(b"gAMA", b"ab")),
    "PNG, short resolution": png(chunk(b"pHYs", b"ab")),
    "PNG, EXIF is none": png(chunk(b"eXIf", b"junk")),
    "PNG, short animation": png(chunk(b"acTL", b"ab")),
    "PNG, EXIF in text is none": png(
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 2\nzz"))
    ),
    "JPEG, short profile": jpeg(SHORT_ICC),
    "JPEG, short Photoshop block": jpeg((0xED, b"Photoshop 3.0\x008BIM\3\xed")),
    "JPEG, several pictures that are none": jpeg((0xE2, b"MPF\0junk")),
    "JPEG, short colour space": jpeg((0xEE, b"Adobe\0")),
    "JPEG, comment of markers": jpeg((0xFE, b"\xff\xd8\xff\xd9" * 9)),
    "JPEG, blanks before": b"\r\n" + jpeg(),
    "WebP, EXIF is none": save("WEBP", lossless=True, exif=b"Exif\0\0junk"),
    "AVIF, EXIF is none": avif(b"junk"),
    "TIFF, EXIF far away": tiff((0x8769, 4, 1, FAR)),
    "TIFF, profile far away": tiff((34675, 7, 999, FAR)),
    "TIFF, resolution far away": tiff((282, 5, 1, FAR)),
    "TIFF, LZW, EXIF far away": tiff((0x8769, 4, 1, FAR), compression="tiff_lzw"),
    "TIFF, LZW, a number far away": tiff((0x9204, 10, 1, FAR), compression="tiff_lzw"),
}
TURNED = {
    "PNG, much text": png(chunk(b"eXIf", exif(TURN)[6:]), chunk(b"zTXt", b"k\0\0" + BIG)),
    "PNG, at the end": png(
        chunk(b"eXIf", exif(TURN)[6:]), chunk(b"zTXt", b"k\0\0" + BIG), last=True
    ),
    "JPEG": jpeg((0xE1, exif(TURN))),
    "JPEG, short profile": jpeg((0xE1, exif(TURN)), SHORT_ICC),
    "JPEG, XMP, short profile": jpeg((0xE1, XMP), SHORT_ICC),
    "JPEG, a number far away": jpeg((0xE1, exif((0x11A, 10, 1, FAR), TURN))),
    "JPEG, huge text": jpeg((0xE1, exif((0x10F, 2, 1 << 31, FAR), TURN))),
    "JPEG, no end of EXIF": jpeg((0xE1, exif(TURN, (0x11A, 5, 1, FAR))[:-10])),
    "JPEG, sub-block far away": jpeg((0xE1, exif(TURN, (0x8769, 4, 1, FAR)))),
    "JPEG, no end of the image": jpeg((0xE1, exif(TURN)))[:-2],
    "JPEG, short profile, no end": jpeg((0xE1, exif(TURN)), SHORT_ICC)[:-2],
    "WebP, no end of EXIF": save("WEBP", lossless=True, exif=exif(TURN) + bytes(99))[:-50],
    "TIFF, EXIF far away": tiff(TURN, (0x8769, 4, 1, FAR)),
    "TIFF, LZW, EXIF far away": tiff(TURN, (0x8769, 4, 1, FAR), compression="tiff_lzw"),
}


@pytest.mark.parametrize("name", UPRIGHT)
def test_broken_metadata_costs_no_image(name: str) -> None:
    found = decode(UPRIGHT[name], (48, 64)).astype(int)
    assert np.abs(found - PIXELS).mean() < 9


@pytest.mark.filterwarnings("ignore")  # Pillow's, of metadata
@pytest.mark.parametrize("name", UPRIGHT)
def test_broken_metadata_with_warnings(name: str) -> None:
    assert np.abs(decode(UPRIGHT[name], (48, 64)).astype(int) - PIXELS).mean() < 9


@pytest.mark.parametrize("name", TURNED)
def test_the_orientation_is_read_though_other_metadata_is_broken(name: str) -> None:
    found = decode(TURNED[name], (64, 48)).astype(int)
    assert np.abs(found - np.rot90(PIXELS, -1)).mean() < 9


def test_a_thumbnail_needs_no_metadata_either() -> None:
    with Image.open(io.BytesIO(thumbnail(TURNED["JPEG, short profile"], 64))) as small:
        assert small.size == (48, 64)


# --- a JPEG without its end ----------------------------------------------------------------------

Y, X = np.mgrid[:200, :300]
PHOTO = Image.fromarray(
    (127 + 60 * np.dstack([np.sin(X / 9), np.cos(Y / 7), np.sin((X + Y) / 11)])).astype(np.uint8)
)
WHITE = Image.new("RGB", (300, 200), "white")
JPEGS = {
    "baseline": save("JPEG", PHOTO),
    "all colours": save("JPEG", PHOTO, subsampling=0, quality=97),
    "own tables": save("JPEG", PHOTO, optimize=True),
    "progressive": save("JPEG", PHOTO, progressive=True),
    "restarts": save("JPEG", PHOTO, restart_marker_blocks=7),
    "progressive restarts": save("JPEG", PHOTO, progressive=True, restart_marker_rows=1),
    "grey": save("JPEG", PHOTO.convert("L")),
    "white": save("JPEG", WHITE),
    "white, own tables": save("JPEG", WHITE, optimize=True),
}


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_that_lacks_only_its_end_is_read(name: str) -> None:
    data = JPEGS[name]
    expected = decode(data, (40, 60))
    for without in (data[:-1], data[:-2], data[:-2] + bytes(1000)):
        np.testing.assert_array_equal(decode(without, (40, 60)), expected)


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("n_bytes", [30, 100, 0.3, 0.7])
@pytest.mark.parametrize("fill", [0, 5000])
def test_a_jpeg_that_lacks_pixels_is_not(name: str, n_bytes: float, fill: int) -> None:
    data = JPEGS[name]
    start = data.index(b"\xff\xda")
    missing = int(n_bytes * (len(data) - start)) if n_bytes < 1 else int(n_bytes)
    cut = data[: len(data) - missing] + bytes(fill)
    with pytest.raises(ValueError, match=r"^damaged: image file is truncated"):
        decode(cut, (40, 60))


def test_no_cut_of_a_jpeg_gives_another_picture() -> None:
    for name in ("baseline", "own tables", "progressive", "restarts", "progressive restarts"):
        data = JPEGS[name]
        expected = decode(data, (40, 60)).astype(int)
        for stop in range(data.index(b"\xff\xda") + 20, len(data), 131):
            try:
                found = decode(data[:stop], (40, 60))
            except ValueError:
                continue
            assert np.abs(found - expected).max() < 16, (name, stop)


def test_the_end_of_a_preview_is_not_the_images() -> None:
    preview = save("JPEG", PHOTO.resize((60, 40)))
    data = jpeg((0xE3, preview))
    assert not containers.lacks_end(data)
    assert containers.lacks_end(data[:-2])
    assert not containers.lacks_end(data + b"junk that follows")
    assert not containers.lacks_end(save("PNG"))


# --- sizes inside --------------------------------------------------------------------------------


def large_png(side: int) -> bytes:
    """Black, of one bit a pixel."""
    rows = zlib.compress(bytes((1 + side // 8) * side))
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return containers._PNG + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def icns(kind: bytes, data: bytes) -> bytes:
    block = kind + struct.pack(">I", len(data) + 8) + data
    return b"icns" + struct.pack(">I", len(block) + 8) + block


def ico(*images: bytes) -> bytes:
    entries, place = b"", 6 + 16 * len(images)
    for data in images:
        entries += struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(data), place)
        place += len(data)
    return struct.pack("<HHH", 0, 1, len(images)) + entries + b"".join(images)


def jpeg2000(side: int, shown: int) -> bytes:
    """One whose outer header shows another size."""
    data = bytearray(save("JPEG2000", Image.new("L", (side, side))))
    place = data.index(b"ihdr") + 4
    data[place : place + 8] = struct.pack(">II", shown, shown)
    return bytes(data)


BITMAP = struct.pack("<IiiHHIIiiII", 40, 2000, 4000, 1, 32, 0, 0, 0, 0, 0, 0)
INSIDE = {
    "ICNS": icns(b"ic10", large_png(2000)),
    "ICNS, JPEG 2000": icns(b"ic10", jpeg2000(2000, 8)),
    "JPEG 2000": jpeg2000(2000, 8),
    "ICO": ico(large_png(2000)),
    "ICO, bitmap": ico(BITMAP),
    "ICO, the second": ico(large_png(16), large_png(2000)),
    "CUR": b"\0\0\2\0" + ico(BITMAP)[4:],
    "WebP": save("WEBP", Image.new("RGB", (2000, 2000))),
    "WebP, lossless": save("WEBP", Image.new("RGB", (2000, 2000)), lossless=True),
    "WebP, alpha": save("WEBP", Image.new("RGBA", (2000, 2000))),
}


@pytest.mark.parametrize("name", INSIDE)
def test_an_image_inside_is_refused_before_it_is_decoded(name: str) -> None:
    with pytest.raises(ValueError, match=r"^2000 x 2000 pixels, more than images\.max_pixels"):
        decode(INSIDE[name], (8, 8), max_pixels=3_999_999)


def test_a_frame_larger_than_its_gif_is_refused() -> None:
    header = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6)
    frame = struct.pack("<cHHHHB", b",", 0, 0, 20_000, 20_000, 0) + b"\2\1\x44\0;"
    with pytest.raises(ValueError, match=r"more than images\.max_pixels|more pixels in it"):
        decode(header + frame, (8, 8))


@pytest.mark.parametrize("name", ["WebP", "WebP, lossless", "WebP, alpha"])
def test_the_same_images_are_read_within_the_limit(name: str) -> None:
    assert decode(INSIDE[name], (8, 8), max_pixels=4_000_000).shape == (8, 8, 3)


@pytest.mark.parametrize("n_bytes", range(0, 60, 3))
def test_the_beginning_of_a_file_tells_no_size_or_the_right_one(n_bytes: int) -> None:
    for data in INSIDE.values():
        assert all(min(size) >= 0 for size in containers.read_inner_sizes(data[:n_bytes]))


@pytest.mark.filterwarnings("ignore")  # Pillow will drop the format
def test_a_size_that_is_no_number_is_damage() -> None:
    """Found by fuzzing: it would have waited for memory for ever."""
    data = b"Image type: Greyscale image\r\nImage size (x*y): 8*nan\r\n"
    with pytest.raises(ValueError, match=r"^damaged: its size is 8 x nan$"):
        decode(data.ljust(511, b"\0") + b"\x1a" + bytes(64), (8, 8))
