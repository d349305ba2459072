"""Parsing of image files without a decoder: sizes, metadata, and the end of a JPEG.

Decoders trust headers, and refuse files for metadata that nobody needs. But 40 bytes may claim 100
million pixels, and an icon may hold more than its header says.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from dtl.config.errors import UserError

_BYTES_PER_PIXEL = {"WEBP": 24, "AVIF": 20, "JPEG2000": 32}
"""Bytes for decoders that hold an image several times; measured, and rounded up."""

_BYTES_PER_OTHER_PIXEL = 16
"""Bytes for all other formats: the image, turned, in RGB, and parts of it on the way."""

_COEFFICIENT_BYTES = 8
"""Per pixel of a progressive JPEG, whatever the size that it is scaled to."""

_MOST_TILE_PIXELS = 4096 * 4096
"""Pixels up to which a tile may be much larger than its image."""

_TILE_WIDTH, _TILE_LENGTH = 322, 323
"""Tags of a TIFF."""

_PNG = b"\x89PNG\r\n\x1a\n"
_CODESTREAM = b"\xff\x4f\xff\x51"
"""Beginning of an image in JPEG 2000, whatever is around it."""
ORIENTATION = 0x0112

_SCAN = 0xDA
_RESTART_INTERVAL = 0xDD
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_FRAMES = (0xC0, 0xC1, 0xC2)
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""The next marker after pixels: not a stuffed byte, not padding, not a restart."""

_BLANKS = b"\0\t\n\r "

_PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
"""Chunks that the pixels of the first frame depend on."""

_ADOBE_BYTES = 16
"""Size of Adobe's segment of a JPEG: a shorter one says nothing."""

_WEBP_METADATA = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}
"""Chunks, and their flags in the chunk VP8X."""

_TIFF_TAGS = {
    254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 280, 281, 284, 292, 293, 317, 320,
    322, 323, 324, 325, 330, 332, 338, 339, 340, 341, 347, 512, 513, 514, 515, 517, 518, 519, 520,
    521, 529, 530, 531, 532,
}  # fmt: skip
"""Tags of TIFF 6.0 and its supplements that say where pixels are, or how they are to be read."""


# --- sizes ---------------------------------------------------------------------------------------


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Refuse an image that is too large; the `UserError` gives its size and the option."""
    if not all(isinstance(side, int) and side > 0 for side in (width, height)):
        raise UserError(f"damaged: its size is {width} x {height}")
    if width * height > max_pixels:
        raise UserError(f"{width} x {height} pixels, more than images.max_pixels = {max_pixels}")


def check_tile(image: Image.Image, max_pixels: int) -> None:
    """Refuse a TIFF whose tile is too large: it is decoded as a whole, however small the image."""
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    if not (isinstance(width, int) and isinstance(height, int) and width and height):
        return  # it has none, or Pillow refuses it
    check_pixels(width, height, max_pixels)
    if width * height > max(_MOST_TILE_PIXELS, 2 * image.width * image.height):
        raise UserError(f"one tile of {width} x {height} pixels for {image.width} x {image.height}")


def read_inner_sizes(data: bytes) -> list[tuple[int, int]]:
    r"""Return width and height of the images in a file, where Pillow would not check them in time.

    Pillow allocates a WebP and decodes an icon as soon as it opens the file. In icons and JPEG 2000
    the header may give another size than the images have.

    Examples
    --------
    >>> read_inner_sizes(b"RIFF\x0c\0\0\0WEBPVP8L\0\0\0\0\x2f\x07\x40\x01\0")
    [(8, 6)]
    """
    try:
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return [_read_webp_size(data)]
        if data.startswith(b"\0\0\1\0"):
            return _read_icon_sizes(data)
        if data.startswith(b"icns"):
            starts = [data[place : place + 1024] for place in _find_icns_blocks(data)]
            return [size for start in starts for size in _read_embedded_size(start)]
        if data.startswith((_CODESTREAM, b"\0\0\0\x0cjP  ")):
            return _read_embedded_size(data)
    except (struct.error, IndexError):  # too short, which Pillow says, too
        pass
    return []


def _read_webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _read_icon_sizes(data: bytes) -> list[tuple[int, int]]:
    (n_icons,) = struct.unpack_from("<H", data, 4)
    sizes = []
    for entry in range(6, 6 + 16 * n_icons, 16):
        (start,) = struct.unpack_from("<I", data, entry + 12)
        if size := _read_embedded_size(data[start : start + 1024]):
            sizes += size
        else:  # a bitmap, and its mask of the same height above it
            _, width, height = struct.unpack_from("<Iii", data, start)
            sizes.append((abs(width), abs(height) // 2))
    return sizes


def _find_icns_blocks(data: bytes) -> Iterator[int]:
    place = 8
    while place + 8 <= len(data):
        (n_bytes,) = struct.unpack_from(">I", data, place + 4)
        yield place + 8
        place += max(n_bytes, 8)


def _read_embedded_size(data: bytes) -> list[tuple[int, int]]:
    if data.startswith(_PNG):
        return [struct.unpack_from(">II", data, 16)]
    if (start := data.find(_CODESTREAM)) >= 0:
        right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
        return [(right - left, bottom - top)]
    return []


def estimate_inner_bytes(data: bytes, sizes: list[tuple[int, int]]) -> int:
    """Return about how many bytes it takes to decode the largest of `read_inner_sizes`."""
    kind = "WEBP" if data.startswith(b"RIFF") else "JPEG2000"
    return _BYTES_PER_PIXEL[kind] * max(width * height for width, height in sizes)


def estimate_bytes(image: Image.Image, n_pixels: int) -> int:
    """Return about how many bytes decoding takes, at its peak.

    Parameters
    ----------
    image : Image.Image
        Opened, after `draft` has chosen a smaller size where the format has one.
    n_pixels : int
        Pixels before `draft`.
    """
    per_pixel = _BYTES_PER_PIXEL.get(image.format or "", _BYTES_PER_OTHER_PIXEL)
    coefficients = _COEFFICIENT_BYTES * n_pixels if image.info.get("progressive") else 0
    return coefficients + per_pixel * image.width * image.height


# --- metadata ------------------------------------------------------------------------------------


def take_metadata_out(data: bytes) -> tuple[bytes, list[bytes]]:
    """Return a file without its metadata, and what was taken out, such as the EXIF block.

    Blanks before the image, which servers and editors leave, are removed, too. The file is returned
    as it is if it has no metadata, or is too damaged to tell.
    """
    if (begun := data.lstrip(_BLANKS)).startswith((b"\xff\xd8\xff", _PNG)):
        data = begun
    try:
        if data.startswith(b"\xff\xd8"):
            pieces = _divide_jpeg(data)
        elif data.startswith(_PNG):
            pieces = _divide_png(data)
        elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _strip_webp(data)
        elif data.startswith((b"II*\0", b"MM\0*")):
            return _strip_tiff(data), []
        elif data[4:8] == b"ftyp":
            # The orientation of an AVIF is a property of its own.
            return re.sub(rb"(infe.{8})Exif", rb"\1skip", data, flags=re.DOTALL), []
        else:
            return data, []
        needed: list[bytes] = []
        taken: list[bytes] = []
        for piece, is_needed in pieces:
            (needed if is_needed else taken).append(piece)
    except (struct.error, IndexError, ValueError):
        return data, []
    return (b"".join(needed), taken) if taken else (data, [])


def _find_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and stop of a JPEG's segments up to its end; a scan's with its pixels."""
    place = data.find(b"\xff", 2)
    while 0 <= place < len(data) - 1:
        marker = data[place + 1]
        if marker in (0x00, 0xFF):  # padding, or junk
            place += 1
        elif marker == 0xD9:
            return
        else:
            (n_bytes,) = struct.unpack_from(">H", data, place + 2)
            stop = min(place + 2 + n_bytes, len(data))
            if marker == _SCAN:
                following = _MARKER.search(data, stop)
                stop = following.start() if following else len(data)
            yield marker, place, stop
            place = stop
        place = data.find(b"\xff", place)


def _divide_jpeg(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield the parts of a JPEG, and whether pixels depend on each."""
    yield data[:2], True
    for marker, start, stop in _find_segments(data):
        if marker == _SCAN:
            yield data[start:], True
            return
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        # APP14 says which colours the channels are, and a JFIF header that they are YCbCr.
        name = data[start + 4 : start + 9]
        is_colour = name == b"JFIF\0" or (name == b"Adobe" and stop - start >= _ADOBE_BYTES)
        yield data[start:stop], is_colour or not is_metadata
    raise ValueError("no scan")


def _divide_png(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield the parts of a PNG, and whether pixels depend on each."""
    yield data[:8], True
    place = 8
    while place < len(data):
        (n_bytes,) = struct.unpack_from(">I", data, place)
        chunk = data[place : place + 12 + n_bytes]
        place += len(chunk)
        yield chunk, chunk[4:8] in _PNG_CHUNKS


def _strip_webp(data: bytes) -> tuple[bytes, list[bytes]]:
    needed: list[bytes] = []
    taken: list[bytes] = []
    flags = 0
    place = 12
    while place < len(data):
        name = data[place : place + 4]
        (n_bytes,) = struct.unpack_from("<I", data, place + 4)
        chunk = data[place : place + 8 + n_bytes + n_bytes % 2]
        place += len(chunk)
        flags |= _WEBP_METADATA.get(name, 0)
        (taken if name in _WEBP_METADATA else needed).append(chunk)
    if not taken:
        return data, []
    if needed[0][:4] == b"VP8X":
        needed[0] = needed[0][:8] + bytes([needed[0][8] & ~flags]) + needed[0][9:]
    body = b"WEBP" + b"".join(needed)
    return b"RIFF" + struct.pack("<I", len(body)) + body, taken


def _strip_tiff(data: bytes) -> bytes:
    """Return a TIFF whose first directory, which gives its first image, has the needed tags."""
    order = "<" if data.startswith(b"II") else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (n_entries,) = struct.unpack_from(order + "H", data, start)
    entries = [
        data[place : place + 12] for place in range(start + 2, start + 2 + 12 * n_entries, 12)
    ]
    needed = [entry for entry in entries if struct.unpack_from(order + "H", entry)[0] in _TIFF_TAGS]
    directory = struct.pack(order + "H", len(needed)) + b"".join(needed) + bytes(4)
    return data[:start] + directory + data[start + len(directory) :]


def find_orientation(metadata: list[bytes]) -> int:
    r"""Return the EXIF orientation (1 to 8) in blocks of metadata; 1 where there is none.

    Only the one entry of the directory is looked at, so that nothing else that is broken counts.

    Examples
    --------
    >>> exif = b"II*\0\x08\0\0\0\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    >>> find_orientation([exif])
    6
    """
    for block in metadata:
        for header, order in ((b"II*\0", "<"), (b"MM\0*", ">")):
            if (start := block.find(header, 0, 256)) >= 0:
                found = _read_orientation(block[start:], order)
                if found:
                    return found
    for block in metadata:
        if found_in_xmp := re.search(rb'tiff:Orientation(?:="|>)([1-8])', block):
            return int(found_in_xmp[1])
    return 1


def _read_orientation(tiff: bytes, order: str) -> int:
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (n_entries,) = struct.unpack_from(order + "H", tiff, directory)
        for place in range(directory + 2, directory + 2 + 12 * n_entries, 12):
            tag, kind, _ = struct.unpack_from(order + "HHI", tiff, place)
            if tag == ORIENTATION:
                form = {3: "H", 4: "I"}.get(kind, "")
                values = struct.unpack_from(order + form, tiff, place + 8)
                return values[0] if values and 1 <= values[0] <= 8 else 0
    except struct.error:  # the block ends before
        pass
    return 0


# --- the end of a JPEG ---------------------------------------------------------------------------

_END = b"\xff\xd9"

_JUNK = tuple(hashlib.shake_256(b"%d" % k).digest(4096).replace(b"\xff", b"") for k in range(2))
"""Two different continuations of a JPEG: missing pixels would be decoded from them, and differ.

They are long, for a decoder turns each 17 bits that are no code into a single zero.
"""

_N_LAST_BYTES = 4
"""Bytes at the end that pixels must depend on: on padding they do not."""


class Endings(NamedTuple):
    """A JPEG without its end marker, in variants that tell whether all of its pixels are there."""

    same: list[bytes]  # have the same pixels, if none is missing
    other: list[bytes]  # one or more have other pixels, if the file ends with its pixels


def lacks_end(data: bytes) -> bool:
    """Return whether a file is a JPEG without an end marker; junk may follow one that is there."""
    if data.endswith(_END) or not data.startswith(b"\xff\xd8"):
        return False
    # An earlier one is that of a preview in the metadata.
    return data.rfind(_END) < _find_scan(data)


def _find_scan(data: bytes) -> int:
    try:
        return next(start for marker, start, _ in _find_segments(data) if marker == _SCAN)
    except (struct.error, StopIteration):
        return -1


def vary_end(data: bytes) -> list[Endings]:
    """Return variants of a JPEG that `lacks_end`, for each place where its pixels may end.

    They may end with the file, or where a padding of zeros begins.
    """
    ends = [data.removesuffix(b"\xff")]  # the first half of the marker
    if len(filled := data.rstrip(b"\0")) < len(data):
        # A byte of 255 has a zero after it that belongs to the pixels; another may be one of them.
        filled += b"\0" * filled.endswith(b"\xff")
        ends += [filled, filled + b"\0"]
    return [
        Endings(
            [pixels + junk + _END for junk in (b"", *_JUNK)],
            [pixels[:-_N_LAST_BYTES].rstrip(b"\xff") + junk + _END for junk in _JUNK],
        )
        for pixels in ends
        if _has_all_parts(pixels)
    ]


def _has_all_parts(data: bytes) -> bool:
    """Return whether the scans and restart markers are there that a JPEG's frame promises."""
    try:
        segments = list(_find_segments(data))
        return (
            segments[-1][0] == _SCAN
            and _has_all_scans(data, segments)
            and _has_all_restarts(data, segments)
        )
    except (struct.error, IndexError, KeyError, ValueError, ZeroDivisionError):
        return False


def _has_all_scans(data: bytes, segments: list[tuple[int, int, int]]) -> bool:
    """Return whether every bit of every coefficient of the frame has a scan."""
    bits_left: dict[tuple[int, int], int] = {}  # by component and coefficient
    for marker, start, _ in segments:
        if marker in _FRAMES:
            bits_left = {(c, k): 99 for c in _read_components(data, start) for k in range(64)}
        elif marker == _SCAN:
            n_components = data[start + 4]
            ids = data[start + 5 : start + 5 + 2 * n_components : 2]
            first, last, bits = data[start + 5 + 2 * n_components :][:3]
            bits_left |= {(c, k): bits & 15 for c in ids for k in range(first, last + 1)}
    return bool(bits_left) and not any(bits_left.values())


def _has_all_restarts(data: bytes, segments: list[tuple[int, int, int]]) -> bool:
    """Return whether the last scan has all the restart markers that its frame promises.

    Where a JPEG ends before one, a decoder skips what follows, so that no junk shows.
    """
    width = height = interval = 0
    components: dict[int, tuple[int, int]] = {}
    for marker, start, _ in segments:
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, start + 5)
            components = _read_components(data, start)
        elif marker == _RESTART_INTERVAL:
            (interval,) = struct.unpack_from(">H", data, start + 4)
    _, start, stop = segments[-1]
    if not interval:
        return True
    ids = data[start + 5 : start + 5 + 2 * data[start + 4] : 2]
    across = 8 * max(x for x, _ in components.values())
    down = 8 * max(y for _, y in components.values())
    if len(ids) == 1:  # then its units are blocks, not groups of them
        x, y = components[ids[0]]
        across, down = across // x, down // y
    n_units = -(-width // across) * -(-height // down)
    n_restarts = len(_RESTART.findall(data, start, stop))
    return n_restarts == -(-n_units // interval) - 1


def _read_components(data: bytes, start: int) -> dict[int, tuple[int, int]]:
    """Return the sampling factors, across and down, of a frame's components."""
    places = range(start + 10, start + 10 + 3 * data[start + 9], 3)
    return {data[k]: (data[k + 1] >> 4, data[k + 1] & 15) for k in places}
