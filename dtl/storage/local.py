"""Files of this machine, or of a network file system mounted on it, on disk once written."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Iterator
from typing import IO, Any

from fsspec.implementations.local import LocalFileSystem

from dtl.storage.retries import naming_full

_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS}
"""Errors of file systems that have no fsync, or none for folders."""

_BLOCK_BYTES = 1 << 16


class Local(LocalFileSystem):  # type: ignore[misc]
    """Filesystem that storage uses for paths: a file appears whole, and lasts once it is there."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        """Write a whole file: readers find all of it, or the file before it."""
        with write_whole(path) as file:
            file.write(value)


@contextlib.contextmanager
def write_whole(path: str) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` at the end of the context, after its bytes.

    File and folder are synced, so that neither the machine's end nor the order in which its disk
    writes leaves less than was said to be there.
    """
    folder = os.path.dirname(path)
    _make_folders(folder)
    partial = f"{path}.{uuid.uuid4().hex}.partial"
    with naming_full(path):
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                _sync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
        _sync_folder(folder)


def read_regular(path: str, n_bytes: int) -> bytes:
    """Read the first bytes of a file; `OSError` for a pipe or a device, which could wait for ever.

    `n_bytes` may be more than there is memory for: no more is asked for than the file has.
    """
    # Without O_NONBLOCK, opening a pipe waits until somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", path)
        parts = []
        block_bytes = max(found.st_size + 1, _BLOCK_BYTES)  # files of /proc say 0, and have bytes
        while n_bytes > 0 and (part := file.read(min(n_bytes, block_bytes))):
            parts.append(part)
            n_bytes -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _make_folders(folder: str) -> None:
    if not folder or os.path.isdir(folder):
        return
    above = os.path.dirname(folder)
    _make_folders(above)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)
    _sync_folder(above)


def _sync_folder(folder: str) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # one may write to it, and not list it
        return
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
