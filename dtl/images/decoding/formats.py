"""Formats of image files: which files are images, and their pixels."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from dtl.cluster import memory
from dtl.config.errors import UserError
from dtl.images.decoding import colours, containers
from dtl.images.decoding.figures import Figures, compute_figures

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

_USUAL_SIZE = (448, 448)
"""Size that a JPEG is scaled to for most networks."""

_LARGE_BYTES = 64 << 20


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


class Picture(NamedTuple):
    """A decoded image in several sizes, and its figures."""

    pixels: tuple[NDArray[np.uint8], ...]
    """(height, width, 3) in RGB, by size."""
    figures: Figures
    """Of the first size."""


def decode(
    data: bytes, size: tuple[int, int], *, resize: str = "stretch", max_pixels: int = 100_000_000
) -> NDArray[np.uint8]:
    """Decode an image file to RGB (height, width, 3) of one size; see `decode_sizes`."""
    return decode_sizes(data, [size], resize=resize, max_pixels=max_pixels).pixels[0]


def decode_sizes(
    data: bytes, sizes: Sequence[tuple[int, int]], *, resize: str, max_pixels: int
) -> Picture:
    """Decode an image file once, for the largest size, to RGB of each of the sizes.

    EXIF orientation is honoured, transparency lies over white, and an animation gives its first
    frame. Values of 16 or 32 bits are scaled by what is in them: the largest one, or the one that
    the file declares, says whether 8, 10, 12 or all 16 bits are used. (14 bits, and a dark image of
    16, cannot be told apart, and count as 16.) Above 16 bits, the largest value is white. Metadata
    that is broken costs no image, nor does a JPEG's end marker that is missing.

    Parameters
    ----------
    sizes : sequence of (height, width)
    resize : {"stretch", "crop"}
        Stretch to the size, or fit the short side and crop the middle; bilinear with antialiasing.
    max_pixels : int
        A larger image is refused before anything is decompressed.

    Raises
    ------
    UserError
        If the file is empty, no image, damaged or too large. The message fits into a report.
    MemoryError
        If there is too little memory now, also for the image alone.
    OSError
        If the system fails otherwise, with its ``errno``.
    """
    # A JPEG decoder scales by 1/2, 1/4, 1/8 at nearly no cost. Twice the size is enough for a
    # resize to make no difference.
    height, width = (2 * max(sides) for sides in zip(*sizes, strict=True))
    wanted = _Wanted((width, height), max_pixels)

    def finish(image: Image.Image, in_file: tuple[int, int]) -> Picture:
        fitted = [_fit(image, size, resize) for size in sizes]
        figures = compute_figures(fitted[0], in_file)
        return Picture(tuple(map(np.asarray, fitted)), figures)

    return _process(data, wanted, finish)


def _fit(image: Image.Image, size: tuple[int, int], resize: str) -> Image.Image:
    height, width = size
    left = top = 0.0
    if resize == "crop":  # as `PIL.ImageOps.fit` does
        ratio = width / height
        if image.width / image.height >= ratio:
            left = max((image.width - ratio * image.height) * 0.5, 0)
        else:
            top = max((image.height - image.width / ratio) * 0.5, 0)

    def across(image: Image.Image) -> Image.Image:
        box = (left, 0, image.width - left, image.height)
        return image.resize((width, image.height), Image.Resampling.BILINEAR, box)

    def down(image: Image.Image) -> Image.Image:
        box = (0, top, image.width, image.height - top)
        return image.resize((image.width, height), Image.Resampling.BILINEAR, box)

    # In an order of our own, by which less lies between: versions of Pillow have other orders, and
    # what is rounded between both moves pixels by one level.
    if width * image.height <= image.width * height:
        return down(across(image))
    return across(down(image))


def thumbnail(data: bytes, side: int, *, max_pixels: int = 100_000_000) -> bytes:
    """Make a small JPEG of an image file, its longer side at most `side` pixels; see `decode`."""

    def shrink(image: Image.Image, _: tuple[int, int]) -> bytes:
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        return buffer.getvalue()

    return _process(data, _Wanted((side, side), max_pixels), shrink)


def hash_content(data: bytes) -> int:
    """Return the first 64 bits of a file's BLAKE2b, which are equal only for equal files.

    Examples
    --------
    >>> hash_content(b"same") == hash_content(b"same") != hash_content(b"other")
    True
    """
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def describe_unknown(data: bytes) -> str:
    """Say why a file that Pillow does not know is no image here, from its first bytes."""
    if is_heic(data[:N_MAGIC_BYTES]):
        return HEIC
    return f"not an image that Pillow reads (starts with {data[:8]!r})"


def measure(start: bytes) -> tuple[int, int, int] | None:
    """Return an image's width, height, and about how many bytes it takes to decode it.

    From the first bytes of its file, which are not decoded; None if they do not tell.
    """
    try:
        if sizes := containers.read_inner_sizes(start):
            return *max(sizes), containers.estimate_inner_bytes(start, sizes)
        with _identify(start) as opened:
            width, height = opened.size
            opened.draft(None, _USUAL_SIZE)
            return width, height, containers.estimate_bytes(opened, width * height)
    except Exception:  # Pillow raises anything on damaged files
        return None


# --- pixels --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wanted:
    """Request for an image of a file."""

    least_size: tuple[int, int]  # width and height; a JPEG may be scaled down to no less
    max_pixels: int
    orientation: int | None = None  # in place of the file's own


class _DecodingError(Exception):
    """Error of a decoder, which may be damage or a lack of memory."""

    def __init__(self, cause: Exception, n_bytes: int = 0) -> None:
        self.cause = cause.with_traceback(None)  # whose frames would hold the image
        self.n_bytes = n_bytes

    def lacked_memory(self) -> bool:
        """Return whether memory lacked; decoders in C call that damage, too."""
        # Twice: an estimate that is too low would call a good image damaged for ever.
        return isinstance(self.cause, MemoryError) or not memory.has_memory(2 * self.n_bytes)


_Result = TypeVar("_Result")
_Finish: TypeAlias = Callable[[Image.Image, tuple[int, int]], _Result]
"""Makes of the image in RGB, and its width and height in the file, all that is to be kept of it.

Both are upright; a JPEG's image may be scaled down.
"""


def _process(data: bytes, wanted: _Wanted, finish: _Finish[_Result]) -> _Result:
    if not data:
        raise UserError("empty file")
    try:
        return _decode_whole(data, wanted, finish)
    except _DecodingError as error:
        cause = error.cause
    # Decoders refuse files for metadata, and for junk before them, that nobody needs here.
    stripped, metadata = containers.take_metadata_out(data)
    if stripped is not data:
        if metadata:
            wanted = replace(wanted, orientation=containers.find_orientation(metadata))
        with suppress(_DecodingError):
            return _decode_whole(stripped, wanted, finish)
    if isinstance(cause, UnidentifiedImageError):
        raise UserError(describe_unknown(data))
    raise UserError(f"damaged: {cause}") from cause


def _decode_whole(data: bytes, wanted: _Wanted, finish: _Finish[_Result]) -> _Result:
    """Decode a file; put the end of a JPEG back if it lacks that, and no more."""
    if containers.lacks_end(data):
        for endings in containers.vary_end(data):
            if _has_all_pixels(endings, wanted):
                return _decode(endings.same[0], wanted, finish)
        raise _DecodingError(OSError("image file is truncated"))
    return _decode(data, wanted, finish)


def _has_all_pixels(endings: containers.Endings, wanted: _Wanted) -> bool:
    unscaled = replace(wanted, least_size=(1 << 16, 1 << 16))

    def read(data: bytes) -> int:
        try:
            return _decode(data, unscaled, lambda image, _: hash_content(image.tobytes()))
        except _DecodingError:
            return -1

    found = read(endings.same[0])
    return (
        found >= 0
        and all(read(data) == found for data in endings.same[1:])
        and any(read(data) != found for data in endings.other)
    )


def _decode(data: bytes, wanted: _Wanted, finish: _Finish[_Result]) -> _Result:
    """Decode a file, alone in this process if it lacks memory otherwise."""
    try:
        return _decode_once(data, wanted, finish, memory.DECODING)
    except _DecodingError as error:
        failure = error
    if failure.lacked_memory():
        with memory.DECODING.hold_all():
            try:
                return _decode_once(data, wanted, finish, memory.UNLIMITED)
            except _DecodingError as error:
                failure = error
            if failure.lacked_memory():
                raise MemoryError(
                    f"No memory to decode an image, which takes about {failure.n_bytes >> 20} MiB."
                ) from failure.cause
    if isinstance(failure.cause, OSError) and failure.cause.errno is not None:
        raise failure.cause  # the system's: decoders' own have no number
    raise failure


def _decode_once(
    data: bytes, wanted: _Wanted, finish: _Finish[_Result], budget: memory.Budget
) -> _Result:
    n_bytes, opened = 0, None
    if (Image.MAX_IMAGE_PIXELS or wanted.max_pixels) < wanted.max_pixels:
        Image.MAX_IMAGE_PIXELS = wanted.max_pixels
    with ExitStack() as stack:
        try:
            inner_sizes = containers.read_inner_sizes(data)
            for size in inner_sizes:
                containers.check_pixels(*size, wanted.max_pixels)
            if inner_sizes:
                n_bytes = containers.estimate_inner_bytes(data, inner_sizes)
                stack.enter_context(budget.hold(n_bytes))
            opened = _identify(data)
            in_file = opened.size
            containers.check_pixels(*in_file, wanted.max_pixels)
            containers.check_tile(opened, wanted.max_pixels)
            if not inner_sizes:
                n_pixels = opened.width * opened.height
                opened.draft(None, wanted.least_size)
                n_bytes = containers.estimate_bytes(opened, n_pixels)
                stack.enter_context(budget.hold(n_bytes))
            lower = colours.find_lower_halves(opened)
            opened.load()
            orientation = wanted.orientation or _read_orientation(opened, data)
            if orientation in _ON_THE_SIDE:
                in_file = in_file[::-1]
            if lower and colours.is_dark(opened):
                again = _identify(data)
                again.tile = lower
                again.load()
                return finish(_turn(colours.join_halves(opened, again), orientation), in_file)
            return finish(_turn(colours.to_rgb(opened), orientation), in_file)
        except UserError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise UserError(
                f"more pixels in it than images.max_pixels = {wanted.max_pixels}"
            ) from None
        except Exception as error:  # decoders raise anything on damaged files
            raise _DecodingError(error, n_bytes) from None
        finally:
            opened = None  # or the next to hold the memory may begin before it is free
            if n_bytes > _LARGE_BYTES:
                memory.return_freed()


def _identify(data: bytes) -> ImageFile.ImageFile:
    """Open an image as `PIL.Image.open` does, but for its check of the size, which warns first."""
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        try:
            if accept is None or accept(data[:16]) is True:
                return factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # of another format
            continue
    raise UnidentifiedImageError


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn an image of an EXIF orientation (EXIF 2.32, table 6)."""

_ON_THE_SIDE = (5, 6, 7, 8)
"""Orientations in which width and height are exchanged."""


def _read_orientation(opened: Image.Image, data: bytes) -> int:
    try:
        found = opened.getexif().get(containers.ORIENTATION, 1)
        return found if found in _UPRIGHT else 1
    except MemoryError:
        raise
    except Exception:  # Pillow's parser raises anything on damaged blocks
        return containers.find_orientation(containers.take_metadata_out(data)[1])


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)
