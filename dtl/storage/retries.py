"""Calls to a filesystem that may fail or wait: transient errors are tried again, slow ones told.

An error that stays is raised as it came; a note, or its own text, names the place. Only a full
place is an error of its own.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from dtl.storage.hdfs import Hdfs
from dtl.storage.slow import tell_slow

log = logging.getLogger(__name__)

__all__ = ["FullError", "describe_full", "naming_full"]

_T = TypeVar("_T")

_PAUSES_S = (0.1, 0.4, 1.0, 2.0)
"""Pauses before each further try: an NFS server that blinks, a disk that reads a sector again."""

_TRANSIENT = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EREMOTEIO,
    errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
    errno.ENETRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE,
    None,  # a filesystem that does not say
}  # fmt: skip
_LASTING = (
    FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError, PermissionError,
    io.UnsupportedOperation,
)  # fmt: skip

_FULL = {
    errno.ENOSPC: "no space is left there",
    errno.EDQUOT: "the quota there is used up",
    errno.EROFS: "its file system is read-only now",
}


def ask(fs: Any, url: str, method: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
    """Call a method of a filesystem; try again while the error is one that passes.

    `Hdfs` has rules of its own, and clients of object stores try again by themselves. A call that
    takes long is told.
    """
    # Object stores' clients are the asynchronous ones.
    pauses = () if isinstance(fs, Hdfs) or fs.async_impl else _PAUSES_S
    if isinstance(fs, Hdfs):
        method = functools.partial(fs.attempt, url, method)
    with tell_slow(url):
        for pause in (*pauses, None):
            try:
                return method(*args, **kwargs)
            except Exception as error:
                if pause is None or not is_transient(error):
                    if url not in f"{error} {getattr(error, '__notes__', '')}":
                        error.add_note(f"at {url}")
                    raise
                log.warning("%s: %s. Trying again in %.1f s.", url, error, pause)
                time.sleep(pause)
        raise AssertionError  # the last try returns or raises


def is_transient(error: Exception) -> bool:
    """Return whether an error may be gone at the next try."""
    return (
        isinstance(error, OSError) and error.errno in _TRANSIENT and not isinstance(error, _LASTING)
    )


def describe_full(place: str, error_number: int | None, other: str = "choose another place") -> str:
    """Say that a place is full, and what to do; empty if the error is another.

    Examples
    --------
    >>> describe_full("/data/x", errno.ENOSPC)
    '/data/x cannot be written: no space is left there. Free some, or choose another place.'
    """
    if error_number not in _FULL:
        return ""
    return f"{place} cannot be written: {_FULL[error_number]}. Free some, or {other}."


class FullError(OSError):
    """A place where nothing can be written any more."""


@contextlib.contextmanager
def naming_full(place: str) -> Iterator[None]:
    """Raise `FullError`, which names the place and what to do, if it is full while written to."""
    try:
        yield
    except FullError:
        raise
    except OSError as error:
        if error.errno not in _FULL:
            raise
        full = FullError(
            f"{describe_full(place, error.errno)} Then give the same command again: what is done "
            "stays done."
        )
        full.errno = error.errno
        raise full from error
