"""Byte ranges of files: members of tars, neighbours in one request, reading ahead."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import merge_offset_ranges

from dtl.storage.files import TooLargeError, cat_range, read_bytes, size
from dtl.storage.hdfs import Hdfs
from dtl.storage.places import filesystem
from dtl.storage.retries import ask

__all__ = ["Extent", "Ranges", "Reader", "Window", "read_ahead", "read_file"]


class Extent(NamedTuple):
    """Byte range of a file, such as an image in a tar."""

    url: str
    offset: int
    n_bytes: int


Read = Callable[[int, int], bytes]
"""Reads from an offset at most so many bytes."""

_HEADER_BYTES = 4096
_AHEAD_BYTES = 256 << 10
"""Read from one header of a tar on to the next, where the tar is not on this machine."""
_REQUEST_BYTES = 1 << 20
"""The most that one request reads from a tar: it takes about as long as half of it."""
_GAP_BYTES = 16 << 10
"""The most between two images of one request: their headers, and other files of a sample."""


class Window:
    """File of `n_bytes` for `tarfile` that reads byte ranges and keeps the last one.

    Where the next header follows within `ahead_bytes`, as many are read at once. That costs less
    than another request where requests take long.
    """

    def __init__(self, read: Read, n_bytes: int, ahead_bytes: int = 0) -> None:
        self._read, self._n_bytes, self._ahead_bytes = read, n_bytes, ahead_bytes
        self._start, self._buffer, self._position = 0, b"", 0

    def at(self, offset: int, n_bytes: int) -> bytes:
        """Read from an offset; fewer bytes at the end of the file."""
        n_bytes = min(n_bytes, self._n_bytes - offset)
        if n_bytes <= 0:
            return b""
        end = self._start + len(self._buffer)
        if not self._start <= offset <= offset + n_bytes <= end:
            near = end <= offset <= end + self._ahead_bytes or self._start <= offset < end
            n_read = max(n_bytes, self._ahead_bytes if near else 0, _HEADER_BYTES)
            self._buffer = self._read(offset, min(n_read, self._n_bytes - offset))
            self._start = offset
        first = offset - self._start
        return self._buffer[first : first + n_bytes]

    def tell(self) -> int:
        """Return the place where `read` goes on."""
        return self._position

    def seek(self, position: int) -> int:
        """Set the place where `read` goes on."""
        self._position = position
        return position

    def read(self, n_bytes: int) -> bytes:
        """Read the next bytes."""
        data = self.at(self._position, n_bytes)
        self._position += len(data)
        return data


class Ranges:
    """One file, opened once, whose byte ranges several threads read."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._path = filesystem(url)
        self._file: Any = None
        if isinstance(self._fs, LocalFileSystem | Hdfs):
            self._file = ask(self._fs, url, self._open)

    def _open(self) -> Any:
        return self._fs.open(self._path, "rb")

    def __enter__(self) -> Ranges:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Read from an offset; fewer bytes at the end of the file."""
        return ask(self._fs, self.url, self._read, offset, n_bytes)

    def _read(self, offset: int, n_bytes: int) -> bytes:
        if self._file is None:  # a web server or object store: each range is a request
            return bytes(cat_range(self._fs, self._path, offset, offset + n_bytes))
        try:
            if isinstance(self._fs, LocalFileSystem):
                return os.pread(self._file.fileno(), n_bytes, offset)
            n_bytes = max(min(n_bytes, len(self._file) - offset), 0)
            return bytes(self._file.read_range(offset, n_bytes))
        except (OSError, RuntimeError):
            # A stale handle stays so. It is not closed here, for other threads may use it.
            self._file = self._open()
            raise

    def window(self) -> Window:
        """Return the window through which `tarfile` reads the headers."""
        local = isinstance(self._fs, LocalFileSystem)
        return Window(self.read, size(self.url), 0 if local else _AHEAD_BYTES)


class _Request:
    """Byte range that holds neighbouring extents, read when the first of them is wanted."""

    def __init__(self, url: str, start: int, stop: int) -> None:
        self.url, self.start, self.stop = url, start, stop
        self.lock = threading.Lock()
        self.data: bytes | None = None

    def covers(self, extent: Extent) -> bool:
        stop = extent.offset + extent.n_bytes
        return extent.url == self.url and self.start <= extent.offset and stop <= self.stop


def plan_requests(
    files: Sequence[str | Extent], most_bytes: int = _REQUEST_BYTES
) -> dict[int, _Request]:
    """Merge extents that follow each other in a tar; return the request of each extent's row."""
    extents = {row: file for row, file in enumerate(files) if isinstance(file, Extent)}
    merged = merge_offset_ranges(
        [extent.url for extent in extents.values()],
        [extent.offset for extent in extents.values()],
        [extent.offset + extent.n_bytes for extent in extents.values()],
        max_gap=_GAP_BYTES,
        max_block=most_bytes,
        sort=False,  # the rows' order, or a request would be held until its last row is wanted
    )
    requests = [_Request(*parts) for parts in zip(*merged, strict=True)]
    request_of, current = {}, 0
    for row, extent in extents.items():
        while not requests[current].covers(extent):
            current += 1
        request_of[row] = requests[current]
    return request_of


class Reader:
    """Files and extents of tars, each read once, by several threads.

    Every tar is opened once, and one request reads neighbours in it. Its bytes stay in memory until
    the last of its extents is read, so `files` are roughly in the order in which they are read.

    A file or member of a tar of more than `most_bytes` is a `TooLargeError`, and not read.
    """

    def __init__(self, files: Sequence[str | Extent], most_bytes: int | None = None) -> None:
        self._files, self._most_bytes = files, most_bytes
        self._lock = threading.Lock()
        self._tars: dict[str, Ranges] = {}
        self._requests = plan_requests(files)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in self._tars.values():
            opened.__exit__()

    def read(self, row: int) -> bytes:
        """Read one file's bytes; `OSError` also if a tar is shorter than when it was listed."""
        file = self._files[row]
        if isinstance(file, str):
            return read_bytes(file, self._most_bytes)
        request = self._requests.pop(row)
        if self._most_bytes is not None and file.n_bytes > self._most_bytes:
            raise TooLargeError.of(
                f"{file.url} from byte {file.offset}", file.n_bytes, self._most_bytes
            )
        with request.lock:
            if request.data is None:
                n_bytes = request.stop - request.start
                request.data = self._open(file.url).read(request.start, n_bytes)
            start = file.offset - request.start
            data = request.data[start : start + file.n_bytes]
        if len(data) < file.n_bytes:
            raise OSError(
                f"{file.url} has {len(data)} of {file.n_bytes} bytes at {file.offset}. It was "
                "changed since it was listed: start again."
            )
        return data

    def _open(self, url: str) -> Ranges:
        with self._lock:
            if url not in self._tars:
                self._tars[url] = Ranges(url)
            return self._tars[url]


def read_file(file: str | Extent) -> bytes:
    """Read the bytes of a file or of a tar's member."""
    with Reader([file]) as reader:
        return reader.read(0)


def read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[int], Any], rows: Sequence[int], window: int
) -> Iterator[Any]:
    """Yield results in order; at most `window` are read and not yet taken. Starts at once."""
    waiting: deque[ThreadFuture[Any]] = deque(pool.submit(read, row) for row in rows[:window])

    def results() -> Iterator[Any]:
        for row in rows[window:]:
            yield waiting.popleft().result()
            waiting.append(pool.submit(read, row))
        while waiting:
            yield waiting.popleft().result()

    return results()
