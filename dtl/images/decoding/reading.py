"""Reading of image files on a worker: bytes from the storage, decoded ahead of their use."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dtl import storage
from dtl.cluster import memory
from dtl.config import ImagesConfig
from dtl.images.decoding import formats
from dtl.images.decoding.figures import UNKNOWN, Figures
from dtl.storage import Extent, read_ahead

_READERS = 8
"""Threads that read and decode: reading waits for the storage, decoding releases the GIL."""

_LARGE_BYTES = 32 << 20
"""Size of files above which they have to wait for memory: few images are so large."""

_PIXEL_BYTES = 8
_METADATA_BYTES = 64 << 20
"""Limit on the size of a file: so much per pixel of `max_pixels`, plus metadata."""

_OF_ONE_FILE = {
    errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ESTALE, errno.ELOOP, errno.EISDIR, errno.EINVAL,
    errno.ENXIO, errno.ENODEV, errno.ENAMETOOLONG, errno.EREMOTEIO,
}  # fmt: skip
"""Errors of a single file, such as bad sectors or a link to itself.

All others are errors of the storage, or of this process.
"""

_HEADER_BYTES = 64 << 10
_N_COSTLIEST = 5
"""Images that are named where a worker was lost."""

_MOST_IN_A_ROW = 4
"""Files in a row that may fail; if more do, it is the storage that fails."""


_decoding = threading.Event()
"""Set where images may be decoded: always, but while `pause_decoding` forbids it."""
_decoding.set()


@contextlib.contextmanager
def pause_decoding() -> Iterator[None]:
    """Begin to decode no image of this process; files are read all the same.

    For work that takes all processors in parts that wait for each other, as networks do: a decoder
    beside it holds all parts up.
    """
    _decoding.clear()
    try:
        yield
    finally:
        _decoding.set()


class ReadImage(NamedTuple):
    """An image file that was read."""

    content_hash: int  # `formats.hash_content` of the bytes; 0 where there are none
    error: str  # why the image cannot be used; empty if it can
    pixels: tuple[NDArray[np.uint8], ...]  # (height, width, 3) by size; none if there is an error
    figures: Figures = UNKNOWN


@contextlib.contextmanager
def open_images(
    files: Sequence[str | Extent],
    sizes: Sequence[tuple[int, int]],
    config: ImagesConfig,
    *,
    n_ahead: int,
) -> Iterator[Iterator[ReadImage]]:
    """Start to read and decode images in threads; yield an iterator of them in order.

    Each is read and decoded once, and resized to every (height, width) of `sizes`; without any, it
    is read, and not decoded. At most
    `n_ahead` are read and not yet taken. Neighbours in a tar are one request. `config` gives
    ``resize`` and ``max_pixels``. Images that are decoded at the same time fit into a quarter of
    the worker's memory; a larger one is decoded alone.

    Raises
    ------
    OSError
        By the iterator, if the storage failed; a note names the file. A file that is gone, that may
        not be read, or that fails alone among others, is no such failure but has an ``error``.
    MemoryError
        By the iterator, if there is too little memory even for one image; a note names the file.
    """
    memory.fit_to_worker()
    with (
        storage.Reader(files, _LARGE_BYTES) as reader,
        ThreadPoolExecutor(_READERS, initializer=_lower_priority) as pool,
    ):
        failures = _Failures()

        def read(row: int) -> ReadImage:
            try:
                return _read_image(reader, row, files[row], sizes, config, failures)
            except (OSError, MemoryError) as error:
                error.add_note(f"while reading {_name_place(files[row])}")
                raise

        yield read_ahead(pool, read, range(len(files)), n_ahead)


def describe_costliest(files: Sequence[str | Extent]) -> str:
    """Name the images whose decoding takes most memory, as their files' first bytes say."""
    with ThreadPoolExecutor(_READERS) as pool:
        measured = pool.map(lambda file: formats.measure(_read_start(file)), files)
        known = [(size, file) for file, size in zip(files, measured, strict=True) if size]
    known.sort(key=lambda pair: pair[0][2], reverse=True)
    lines = [
        f"{_name_place(file)}: {width} x {height} pixels, about {n_bytes >> 20} MiB to decode"
        for (width, height, n_bytes), file in known[:_N_COSTLIEST]
    ]
    return (
        "\n  ".join(["Its costliest images:", *lines]) if lines else "None of its images is known."
    )


def _read_start(file: str | Extent) -> bytes:
    try:
        if isinstance(file, str):
            return storage.read_start(file, _HEADER_BYTES)
        with storage.Ranges(file.url) as tar:
            return tar.read(file.offset, min(file.n_bytes, _HEADER_BYTES))
    except OSError:
        return b""


class _Failures:
    """Count of files that failed one after the other, in all threads."""

    def __init__(self) -> None:
        self._n_in_a_row = 0

    def reset(self) -> None:
        self._n_in_a_row = 0

    def add(self, error: OSError) -> str:
        """Return the reason why a file cannot be used; raise where it is the storage that fails."""
        if error.errno not in _OF_ONE_FILE:
            raise error
        self._n_in_a_row += 1
        if self._n_in_a_row > _MOST_IN_A_ROW:
            raise error
        if error.errno == errno.EINVAL:
            return "not a regular file"
        return f"{os.strerror(error.errno).lower()}, each time it was read"


def _read_image(
    reader: storage.Reader,
    row: int,
    file: str | Extent,
    sizes: Sequence[tuple[int, int]],
    c: ImagesConfig,
    failures: _Failures,
) -> ReadImage:
    try:
        with _read_bytes(reader, row, file, c.max_pixels) as data:
            failures.reset()
            content_hash = formats.hash_content(data)
            if not sizes:
                return ReadImage(content_hash, "", ())
            _decoding.wait()
            try:
                picture = formats.decode_sizes(
                    data, sizes, resize=c.resize, max_pixels=c.max_pixels
                )
            except ValueError as error:
                return ReadImage(content_hash, str(error) or "damaged", ())
            return ReadImage(content_hash, "", *picture)
    except storage.TooLargeError as error:
        return ReadImage(0, str(error), ())
    except FileNotFoundError:
        return ReadImage(0, "the file is gone", ())
    except PermissionError:
        return ReadImage(0, "no permission to read", ())
    except OSError as error:
        return ReadImage(0, failures.add(error), ())


@contextlib.contextmanager
def _read_bytes(
    reader: storage.Reader, row: int, file: str | Extent, max_pixels: int
) -> Iterator[bytes]:
    """Yield a file's bytes; a large one has memory of its own for the context."""
    most_bytes = _PIXEL_BYTES * max_pixels + _METADATA_BYTES
    with contextlib.ExitStack() as stack:
        try:
            data = reader.read(row)
        except storage.TooLargeError:
            n_bytes = most_bytes if isinstance(file, str) else file.n_bytes
            stack.enter_context(memory.READING.hold(n_bytes))
            data = _read_large(file, most_bytes)
        except OSError as error:
            if isinstance(file, str) or error.errno not in _OF_ONE_FILE:
                raise
            data = storage.read_file(file)  # the request before was for its neighbours, too
        yield data


def _read_large(file: str | Extent, most_bytes: int) -> bytes:
    try:
        with storage.Reader([file], most_bytes) as reader:
            return reader.read(0)
    except storage.TooLargeError:
        raise storage.TooLargeError(
            f"more than {most_bytes >> 20} MiB, too many for images.max_pixels"
        ) from None


def _name_place(file: str | Extent) -> str:
    return file if isinstance(file, str) else f"{file.url} from byte {file.offset}"


def _lower_priority() -> None:
    """Let the network's threads go first: the network waits for its slowest thread."""
    if sys.platform == "linux":  # elsewhere a priority is the whole process's
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
