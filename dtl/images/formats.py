"""Formats of image files: which files are images, and their pixels."""

from __future__ import annotations

import hashlib
import io
import struct
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dtl.config.errors import UserError

# `decode` checks the size itself, before anything is decompressed, and raises instead of warning.
Image.MAX_IMAGE_PIXELS = None
Image.init()

# Not images of pixels, or handed to another program by Pillow.
# FPX and MIC exist only with the package olefile, and would take every Thumbs.db for an image.
_EXCLUDED_FORMATS = ["EPS", "WMF", "MPEG", "FITS", "HDF5", "GRIB", "BUFR", "PDF", "FPX", "MIC"]
FORMATS = tuple(name for name in Image.OPEN if name not in _EXCLUDED_FORMATS)
"""Names of the formats that are read."""
_EXTENSIONS = {suffix for suffix, name in Image.EXTENSION.items() if name in FORMATS}

N_MAGIC_BYTES = 512
"""Bytes of a file's start that `begins_like_image` and `is_heic` need."""

HEIC = "HEIC, which is not read: convert it to JPEG, for example with heif-convert"
"""Reason for which a HEIC file is no image."""

_HEIC_BRANDS = frozenset(
    [b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"]
)
_AVIF_BRANDS = frozenset([b"avif", b"avis"])


def has_image_name(path: str) -> bool:
    """Return whether a file's extension is that of an image format that Pillow reads.

    Examples
    --------
    >>> has_image_name("a/b.JPG"), has_image_name("a/RENAME2")
    (True, False)
    """
    return PurePosixPath(path).suffix.lower() in _EXTENSIONS


def begins_like_image(start: bytes) -> bool:
    """Return whether a file that starts with these bytes may be in a format that Pillow reads.

    Examples
    --------
    >>> begins_like_image(bytes.fromhex("ffd8ffe0") + bytes(28)), begins_like_image(b"2 4 6 8")
    (True, False)
    """
    for name in FORMATS:
        accept = Image.OPEN[name][1]
        try:
            if accept is not None and accept(start[:16]) is True:
                return True
        except (IndexError, struct.error):  # fewer bytes than the format's signature
            continue
    return False


def is_heic(start: bytes) -> bool:
    r"""Return whether a file that starts with these bytes is HEIC, as its brands say.

    Examples
    --------
    >>> is_heic(b"\0\0\0\x14ftypmif1\0\0\0\0heic"), is_heic(b"\0\0\0\x14ftypmif1\0\0\0\0avif")
    (True, False)
    """
    if start[4:8] != b"ftyp":
        return False
    box = start[8 : int.from_bytes(start[:4], "big")]
    brands = {box[:4], *(box[i : i + 4] for i in range(8, len(box), 4))}
    return bool(brands & _HEIC_BRANDS) and not brands & _AVIF_BRANDS


def decode(
    data: bytes, size: tuple[int, int], *, resize: str = "stretch", max_pixels: int = 100_000_000
) -> NDArray[np.uint8]:
    """Decode an image file to RGB of the network's size.

    EXIF orientation is honoured, transparency lies over white, 16-bit grey keeps its upper bits,
    and an animation gives its first frame.

    Parameters
    ----------
    size : (height, width)
    resize : {"stretch", "crop"}
        Stretch to the size, or fit the short side and crop the middle; bilinear with antialiasing.
    max_pixels : int
        A larger image is refused before anything is decompressed.

    Returns
    -------
    (height, width, 3) uint8

    Raises
    ------
    UserError
        If the file is empty, no image, damaged or too large. The message fits into a report.
    """
    height, width = size
    # A JPEG decoder scales by 1/2, 1/4, 1/8 at nearly no cost. Twice the size is enough for a
    # resize to make no difference.
    image = _open(data, (2 * width, 2 * height), max_pixels)
    if resize == "crop":
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    else:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def thumbnail(data: bytes, side: int, *, max_pixels: int = 100_000_000) -> bytes:
    """Make a small JPEG of an image file, its longer side at most `side` pixels; see `decode`."""
    image = _open(data, (side, side), max_pixels)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def hash_content(data: bytes) -> int:
    """Return the first 64 bits of a file's BLAKE2b, which are equal only for equal files.

    Examples
    --------
    >>> hash_content(b"same") == hash_content(b"same") != hash_content(b"other")
    True
    """
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _open(data: bytes, least_size: tuple[int, int], max_pixels: int) -> Image.Image:
    """Decode to RGB, upright, of `least_size` (width, height) or larger where the file is."""
    if not data:
        raise UserError("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            n_pixels = opened.width * opened.height
            if n_pixels > max_pixels:
                raise UserError(
                    f"{opened.width} x {opened.height} pixels, more than images.max_pixels = "
                    f"{max_pixels}"
                )
            opened.draft(None, least_size)
            return _to_rgb(ImageOps.exif_transpose(opened))
    except ValueError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"not an image that Pillow reads (starts with {data[:8]!r})") from None
    except Exception as error:  # decoders raise anything on damaged files
        raise UserError(f"damaged: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits per pixel: Pillow's own conversion clips at 255 instead of scaling.
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise UserError("floating-point pixels have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
