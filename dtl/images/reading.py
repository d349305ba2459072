"""Reading of image files on a worker: bytes from the storage, decoded ahead of their use."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dtl import storage
from dtl.config import ImagesConfig
from dtl.images import formats
from dtl.storage import Extent, read_ahead

_READERS = 8
"""Threads that read and decode: reading waits for the storage, decoding releases the GIL."""


class ReadImage(NamedTuple):
    """An image file that was read."""

    content_hash: int  # `formats.hash_content` of the bytes; 0 where there are none
    error: str  # why the image cannot be used; empty if it can
    pixels: NDArray[np.uint8] | None  # (height, width, 3); None where there is an error


@contextlib.contextmanager
def open_images(
    files: Sequence[str | Extent], size: tuple[int, int], config: ImagesConfig, *, n_ahead: int
) -> Iterator[Iterator[ReadImage]]:
    """Start to read and decode images in threads; yield an iterator of them in order.

    At most `n_ahead` are read and not yet taken. Neighbours in a tar are one request. `config`
    gives ``resize`` and ``max_pixels``.

    Raises
    ------
    OSError
        By the iterator, if the storage failed; a note names the file. A file that is gone, or that
        may not be read, is no such failure but has an ``error``.
    """
    with (
        storage.Reader(files) as reader,
        ThreadPoolExecutor(_READERS, initializer=_lower_priority) as pool,
    ):

        def read(row: int) -> ReadImage:
            return _read_image(reader, row, files[row], size, config)

        yield read_ahead(pool, read, range(len(files)), n_ahead)


def _read_image(
    reader: storage.Reader, row: int, file: str | Extent, size: tuple[int, int], c: ImagesConfig
) -> ReadImage:
    try:
        data = reader.read(row)
    except FileNotFoundError:
        return ReadImage(0, "the file is gone", None)
    except PermissionError:
        return ReadImage(0, "no permission to read", None)
    except OSError as error:
        place = file if isinstance(file, str) else f"{file.url} from byte {file.offset}"
        error.add_note(f"while reading {place}")
        raise
    content_hash = formats.hash_content(data)
    try:
        pixels = formats.decode(data, size, resize=c.resize, max_pixels=c.max_pixels)
    except ValueError as error:
        return ReadImage(content_hash, str(error) or "damaged", None)
    return ReadImage(content_hash, "", pixels)


def _lower_priority() -> None:
    """Let the network's threads go first: the network waits for its slowest thread."""
    if sys.platform == "linux":  # elsewhere a priority is the whole process's
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
