"""The pixels of a JPEG as `dtl.images.decoding` makes them, by operations of TensorFlow's graphs.

Decoder and scaling are those of Pillow: TensorFlow has the same libjpeg-turbo, but its own resizing
computes in floats, which moves probabilities by a hundredth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dtl.features.network.classifiers.quiet_tensorflow import tf

_PRECISION_BITS = 22
"""Of Pillow's weights, which are whole numbers."""

_HEAD_BYTES = 1 << 22
"""EXIF lies in one of the first segments, each of less than 64 KiB; cameras may write many."""

_APP1, _SCAN = 0xE1, 0xDA
_ORIENTATION = 0x112
_LONG = 4


def read_jpeg(data: Any, sizes: Sequence[tuple[int, int]], resize: str) -> list[Any]:
    """Decode a JPEG, turn it upright, and resize it.

    Parameters
    ----------
    data : () string tensor
        A file; one of another format, or in CMYK, raises an error when the graph runs.
    sizes : sequence of (height, width)
    resize : {"stretch", "crop"}

    Returns
    -------
    list of (height, width, 3) float32 tensor
        Whole numbers from 0 to 255.

    References
    ----------
    Pillow, ``JpegImagePlugin.draft``, ``ImageOps.fit`` and ``libImaging/Resample.c``.
    """
    shape = tf.io.extract_jpeg_shape(data)
    with tf.control_dependencies(
        [tf.debugging.assert_less(shape[2], 4, "A JPEG in CMYK: convert it to RGB first.")]
    ):
        upright = _turn(_decode_scaled(data, shape, sizes), _find_orientation(data))
    return [_fit(upright, size, resize) for size in sizes]


def _decode_scaled(data: Any, shape: Any, sizes: Sequence[tuple[int, int]]) -> Any:
    """Decode at 1/1, 1/2, 1/4 or 1/8, but to no less than twice the size."""
    least = [2 * max(sides) for sides in zip(*sizes, strict=True)]
    ratio = tf.reduce_min(shape[:2] // least)

    def decode(by: int) -> Any:
        # Cast in here, where no optimiser moves it: oneDNN logs that it turns no bytes.
        return lambda: tf.cast(
            tf.io.decode_jpeg(data, 3, by, dct_method="INTEGER_ACCURATE"), tf.float64
        )

    chosen = tf.reduce_sum(tf.cast(ratio >= [2, 4, 8], tf.int32))
    return tf.switch_case(chosen, [decode(by) for by in (1, 2, 4, 8)])


def _turn(image: Any, orientation: Any) -> Any:
    """Turn an image (height, width, 3) as an EXIF orientation says (EXIF 2.32, table 6)."""
    swapped = tf.transpose(image, (1, 0, 2))
    ways = [
        image, image[:, ::-1], image[::-1, ::-1], image[::-1],
        swapped, swapped[:, ::-1], swapped[::-1, ::-1], swapped[::-1],
    ]  # fmt: skip
    return tf.switch_case(orientation - 1, [lambda way=way: way for way in ways])


def _find_orientation(data: Any) -> Any:
    """Return the EXIF orientation, from 1 to 8; 1 where there is none."""
    head = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, _HEAD_BYTES), tf.uint8), tf.int32)
    head = tf.pad(head, [[0, 16]])  # what is read lies in it
    n_bytes = tf.size(head) - 16

    def read(at: Any, n: int, little: Any = False) -> Any:
        part = head[at : at + n]
        part = tf.where(little, part, part[::-1])
        return tf.reduce_sum(tf.bitwise.left_shift(part, tf.range(0, 8 * n, 8)))

    def is_exif(at: Any) -> Any:
        return (head[at + 1] == _APP1) & tf.reduce_all(head[at + 4 : at + 8] == [*b"Exif"])

    def goes_on(at: Any) -> Any:
        is_segment = (at + 10 < n_bytes) & (head[tf.minimum(at, n_bytes)] == 0xFF)
        at = tf.minimum(at, n_bytes - 1)
        return is_segment & (head[at + 1] != _SCAN) & ~is_exif(at)

    def skip(at: Any) -> list[Any]:
        is_filled = head[at + 1] == 0xFF  # any number of such bytes may come before a marker
        return [at + tf.where(is_filled, 1, 2 + read(at + 2, 2))]

    (at,) = tf.while_loop(goes_on, skip, [2])

    def read_tag() -> Any:
        tiff = at + 10
        little = head[tiff] == ord("I")
        first = tiff + read(tiff + 4, 4, little)
        known = (first >= tiff) & (first + 2 < n_bytes)
        first = tf.where(known, first, 0)
        n_tags = tf.where(known, tf.minimum(read(first, 2, little), 200), 0)

        def step(k: Any, found: Any) -> tuple[Any, Any]:
            entry = first + 2 + 12 * k
            is_it = read(entry, 2, little) == _ORIENTATION
            is_long = read(entry + 2, 2, little) == _LONG
            value = tf.where(is_long, read(entry + 8, 4, little), read(entry + 8, 2, little))
            return k + 1, tf.where(is_it, value, found)

        _, found = tf.while_loop(
            lambda k, _: (k < n_tags) & (first + 14 + 12 * k < n_bytes), step, [0, 1]
        )
        return tf.where((found >= 1) & (found <= 8), found, 1)

    return tf.cond((at + 20 < n_bytes) & is_exif(tf.minimum(at, n_bytes - 1)), read_tag, lambda: 1)


def _fit(image: Any, size: tuple[int, int], resize: str) -> Any:
    """Resize an image (height, width, 3), or the middle of it that has the shape of `size`."""
    shape = tf.shape(image)[:2]
    sides = tf.cast(shape, tf.float64)
    margins = tf.zeros(2, tf.float64)
    if resize == "crop":
        ratio = tf.constant(size[1] / size[0], tf.float64)
        kept = tf.stack([sides[1] / ratio, ratio * sides[0]])
        margins = tf.maximum((sides - kept) * 0.5, 0)
    # Pillow keeps them in single precision.
    starts, ends = tf.cast(margins, tf.float32), tf.cast(sides - margins, tf.float32)
    rows, columns = (_weigh(shape[k], starts[k], ends[k], size[k]) for k in (0, 1))

    def across(pixels: Any) -> Any:
        return _round(tf.einsum("yxc,ox->yoc", pixels, columns))

    def down(pixels: Any) -> Any:
        return _round(tf.einsum("yxc,oy->oxc", pixels, rows))

    # In the order of `dtl.images.decoding.formats`; all products and sums are exact.
    fitted = tf.cond(
        size[1] * shape[0] <= size[0] * shape[1],
        lambda: down(across(image)),
        lambda: across(down(image)),
    )
    return tf.ensure_shape(tf.cast(fitted, tf.float32), (*size, 3))


def _weigh(n_pixels: Any, start: Any, end: Any, n_out: int) -> Any:
    """Return the weights (n_out, n_pixels), whole numbers, of a triangle as wide as it must be."""
    scale = tf.cast(end - start, tf.float64) / n_out
    support = tf.maximum(scale, 1.0)
    middle = tf.range(n_out, dtype=tf.float64) + 0.5
    centre = (tf.cast(start, tf.float64) + middle * scale)[:, None]
    low, high = (tf.floor(centre + side * support + 0.5) for side in (-1, 1))
    x = tf.cast(tf.range(n_pixels), tf.float64)[None]
    weight = tf.maximum(1 - tf.abs((x - centre + 0.5) * (1 / support)), 0)
    weight = tf.where((x >= low) & (x < high), weight, 0)
    weight /= tf.reduce_sum(weight, axis=1, keepdims=True)
    return tf.floor(0.5 + weight * 2.0**_PRECISION_BITS)


def _round(sums: Any) -> Any:
    half = 2.0 ** (_PRECISION_BITS - 1)
    return tf.clip_by_value(tf.floor((sums + half) / 2.0**_PRECISION_BITS), 0, 255)
