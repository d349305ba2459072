"""Colours of decoded images: pixels of any mode to RGB of 8 bits."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from dtl.config.errors import UserError

_USED_BITS = (8, 10, 12, 16)
"""Bits that cameras and scanners use of 16 or 32."""

_WITH_KNOWN_WHITE = ("PPM", "JPEG2000")
"""Formats whose header says how many bits are used; Pillow scales them to 16."""

_WITH_HALVES = ("TIFF", "PNG")
_OTHER_ORDER = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B" if sys.byteorder == "little" else "RGB;16L",
}
"""Orders of two bytes: Pillow keeps the upper one, which is the lower in the other order."""

_MAX_SAMPLE_VALUE, _SMAX_SAMPLE_VALUE = 281, 341
"""Tags of a TIFF."""

_STRIP_PIXELS = 1 << 20
"""Pixels that are laid over white at a time: it takes several times their memory."""

_DARK = 16
"""Upper byte of 16 bits below which an image in colours uses 12 bits or fewer."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode; transparency lies over white, and more bits are scaled to 8."""
    if image.mode.startswith("I"):
        image = Image.fromarray(_scale_to_8_bits(image))
    elif image.mode == "F":
        raise UserError("floating-point pixels have no known range")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgb = Image.new("RGB", image.size)
    n_rows = max(_STRIP_PIXELS // image.width, 1)
    for top in range(0, image.height, n_rows):
        box = (0, top, image.width, min(top + n_rows, image.height))
        strip = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        rgb.paste(Image.alpha_composite(white, strip).convert("RGB"), box)
    return rgb


def _scale_to_8_bits(image: Image.Image, values: NDArray[Any] | None = None) -> NDArray[np.uint8]:
    """Scale values of more bits by what is in them, where the format does not say what is white."""
    values = np.asarray(image) if values is None else values
    top = max(int(values.max()), min(_read_declared_top(image), np.iinfo(values.dtype).max))
    n_bits = next((n for n in _USED_BITS if top < 1 << n), 0)
    if image.format in _WITH_KNOWN_WHITE:
        n_bits = 16
    if n_bits:
        return (values.clip(0, (1 << n_bits) - 1) >> (n_bits - 8)).astype(np.uint8)
    return (values.clip(0) / (top / 255)).astype(np.uint8)


def find_lower_halves(opened: ImageFile.ImageFile) -> list[Any]:
    """Return the tiles with which Pillow gives the lower 8 of a colour's 16 bits, not the upper."""
    swapped = []
    for tile in opened.tile if opened.mode == "RGB" and opened.format in _WITH_HALVES else []:
        raw, *others = (tile.args,) if isinstance(tile.args, str) else (tile.args or ("",))
        order = _OTHER_ORDER.get(str(raw))
        if order is None:
            return []
        swapped.append(
            tile._replace(args=order if isinstance(tile.args, str) else (order, *others))
        )
    return swapped


def is_dark(image: Image.Image) -> bool:
    """Return whether the upper halves of 16 bits say little, for fewer bits are used."""
    return bool(np.asarray(image).max() < _DARK)


def join_halves(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """Make an image of the upper and the lower 8 of a colour's 16 bits."""
    values = np.asarray(upper).astype(np.uint16) << 8 | np.asarray(lower)
    return Image.fromarray(_scale_to_8_bits(upper, values))


def _read_declared_top(image: Image.Image) -> int:
    tags = getattr(image, "tag_v2", {})
    tops = [tags.get(tag, 0) for tag in (_MAX_SAMPLE_VALUE, _SMAX_SAMPLE_VALUE)]
    flat = [value for top in tops for value in (top if isinstance(top, tuple) else (top,))]
    known = [value for value in flat if isinstance(value, int | float) and 0 <= value < 1 << 32]
    return int(max(known, default=0))
