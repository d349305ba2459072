"""Byte ranges of files: members of tars, neighbours read in one request, reading ahead."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from dtl.storage import hdfs
from dtl.storage.files import filesystem, read_bytes, size
from dtl.storage.hdfs import Hdfs


class Extent(NamedTuple):
    """A part of a file: an image in a tar."""

    url: str
    offset: int
    n_bytes: int


_FEW_BYTES = 4096
_NEAR_BYTES = 16 << 10
"""Between two images of one request: their headers, and what a sample has besides."""

Read = Callable[[int, int], bytes]
"""A file's bytes from an offset, at most so many."""


class Window:
    """What `tarfile` needs of a file, from byte ranges, of which it keeps the last.

    Parameters
    ----------
    read : callable (offset, n_bytes) -> bytes
    n_bytes : int
        Of the file.
    ahead_bytes : int
        Read on for as many where one header follows another within as many; else only a few: it
        costs less than another request where requests take long.
    """

    def __init__(self, read: Read, n_bytes: int, ahead_bytes: int = 0) -> None:
        self._read, self._n_bytes, self._ahead_bytes = read, n_bytes, ahead_bytes
        self._start, self._buffer, self._position = 0, b"", 0

    def at(self, offset: int, n_bytes: int) -> bytes:
        """Bytes from an offset; fewer at the end of the file."""
        n_bytes = min(n_bytes, self._n_bytes - offset)
        if n_bytes <= 0:
            return b""
        end = self._start + len(self._buffer)
        if not self._start <= offset <= offset + n_bytes <= end:
            near = end <= offset <= end + self._ahead_bytes or self._start <= offset < end
            n_read = max(n_bytes, self._ahead_bytes if near else _FEW_BYTES, _FEW_BYTES)
            self._buffer = self._read(offset, min(n_read, self._n_bytes - offset))
            self._start = offset
        first = offset - self._start
        return self._buffer[first : first + n_bytes]

    def tell(self) -> int:
        """Where `read` goes on."""
        return self._position

    def seek(self, position: int) -> int:
        """Go elsewhere."""
        self._position = position
        return position

    def read(self, n_bytes: int) -> bytes:
        """Read the next bytes."""
        data = self.at(self._position, n_bytes)
        self._position += len(data)
        return data


def spans(files: Sequence[str | Extent], most_bytes: int) -> list[range]:
    """Group neighbours that one request reads: in one tar, one right after the other.

    Examples
    --------
    >>> files = [Extent("0.tar", 512, 100), Extent("0.tar", 1536, 100), Extent("1.tar", 512, 100)]
    >>> spans(files, 4096)
    [range(0, 2), range(2, 3)]
    """
    grouped: list[range] = []
    for row, file in enumerate(files):
        first = files[grouped[-1].start] if grouped else ""
        if (
            isinstance(file, Extent)
            and isinstance(first, Extent)
            and file.url == first.url
            and _end(files[row - 1]) <= file.offset <= _end(files[row - 1]) + _NEAR_BYTES
            and _end(file) - first.offset <= most_bytes
        ):
            grouped[-1] = range(grouped[-1].start, row + 1)
        else:
            grouped.append(range(row, row + 1))
    return grouped


def _end(file: str | Extent) -> int:
    assert isinstance(file, Extent)
    return file.offset + file.n_bytes


_SPAN_BYTES = 1 << 20
"""Read at once from a tar: a request takes about as long as half of it."""
_AHEAD_BYTES = 256 << 10
"""Read on for from one header of a tar to the next, where it is not on this machine."""


class Ranges:
    """Byte ranges of one file: one open handle, which threads share."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._path = filesystem(url)
        self._file = None
        if isinstance(self._fs, LocalFileSystem | Hdfs):
            with self._translated():
                self._file = self._fs.open(self._path, "rb")

    def __enter__(self) -> Ranges:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Read from an offset; fewer bytes at the end of the file."""
        if self._file is None:  # what is a request each in any case
            return bytes(self._fs.cat_file(self._path, start=offset, end=offset + n_bytes))
        if isinstance(self._fs, LocalFileSystem):
            return os.pread(self._file.fileno(), n_bytes, offset)
        with self._translated():
            n_bytes = max(min(n_bytes, len(self._file) - offset), 0)
            return bytes(self._file.read_range(offset, n_bytes))

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise hdfs.translate(error, self.url) from error

    def window(self) -> Window:
        """What reads the headers of a tar."""
        local = isinstance(self._fs, LocalFileSystem)
        return Window(self.read, size(self.url), 0 if local else _AHEAD_BYTES)


class Reader:
    """Files and extents of tars, each read once, by several threads.

    Every tar is opened once, and neighbours in it are one request.

    Parameters
    ----------
    files : sequence of str or Extent
        In the order in which they are read, more or less: what is read at once is kept until the
        last of it is asked for.
    """

    def __init__(self, files: Sequence[str | Extent]) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._tars: dict[str, Ranges] = {}
        self._spans: dict[int, _Span] = {}
        for rows in spans(files, _SPAN_BYTES):
            if isinstance(files[rows.start], Extent):
                self._spans |= dict.fromkeys(rows, _Span(rows))

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in self._tars.values():
            opened.__exit__()

    def read(self, row: int) -> bytes:
        """Read one file's bytes.

        Raises
        ------
        OSError
            As the storage does; and if a tar is shorter than it was.
        """
        file = self._files[row]
        if isinstance(file, str):
            return read_bytes(file)
        span = self._spans.pop(row)
        with span.lock:
            last = self._files[span.rows.stop - 1]
            first = self._files[span.rows.start]
            assert isinstance(first, Extent)
            assert isinstance(last, Extent)
            if span.data is None:
                end = last.offset + last.n_bytes
                span.data = self._open(file.url).read(first.offset, end - first.offset)
            start = file.offset - first.offset
            data = span.data[start : start + file.n_bytes]
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


class _Span:
    """Rows of one request, and its bytes as long as one of them is to be taken."""

    def __init__(self, rows: range) -> None:
        self.rows = rows
        self.lock = threading.Lock()
        self.data: bytes | None = None


def read_file(file: str | Extent) -> bytes:
    """A file's bytes, or a tar member's."""
    with Reader([file]) as reader:
        return reader.read(0)


def read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[int], Any], rows: Sequence[int], window: int
) -> Iterator[Any]:
    """Results in order, with at most `window` of them read but not taken. Starts at once."""
    waiting: deque[ThreadFuture[Any]] = deque(pool.submit(read, row) for row in rows[:window])

    def results() -> Iterator[Any]:
        for row in rows[window:]:
            yield waiting.popleft().result()
            waiting.append(pool.submit(read, row))
        while waiting:
            yield waiting.popleft().result()

    return results()
