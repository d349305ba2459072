"""Errors that end a command, in words."""

from __future__ import annotations

import errno
import sys

from dtl import storage
from dtl.config.errors import UserError

_ADVICE = {
    errno.ENOENT: "Check the name.",
    errno.EACCES: "Ask for permission, or give another place.",
    errno.EPERM: "Ask for permission, or give another place.",
    errno.EIO: "The disk, or the connection to it, fails: see the log of the system.",
    errno.EMFILE: "Too many files are open: raise the limit with `ulimit -n`.",
    errno.ENFILE: "Too many files are open on this machine.",
    errno.EISDIR: "Give a file.",
    errno.ENOTDIR: "Give a folder.",
    errno.ENAMETOOLONG: "Give a shorter name.",
    errno.ECONNREFUSED: "Is the server running, and is its address right?",
    errno.ETIMEDOUT: "Is the server running, and is its address right?",
    errno.EHOSTUNREACH: "Is the server running, and is its address right?",
    errno.ENETUNREACH: "Is the network up, and is the address right?",
    errno.ELOOP: "A link leads to itself: remove it.",
}
"""Advice on errors of the system that nobody has put into words."""

_STORAGE = {"aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "hdfs_native", "s3fs"}
"""Packages that reach storage; not all of their exceptions are `OSError`."""


def describe(error: BaseException, advice: str = "") -> str:
    """Say what has happened: in the words of the error if a person can mend it.

    It ends with `advice` where a machine failed rather than the input.
    """
    text = str(error) or type(error).__name__
    if isinstance(error, UserError):
        return text
    if isinstance(error, MemoryError):
        return f"This machine has too little memory ({text}). Free some.{advice}"
    # Dask is loaded if, and only if, the command came to need workers.
    if "distributed" in sys.modules:
        from dtl.cluster import losses

        if (lost := losses.explain(error)) is not None:
            return f"{lost}{advice}"
    if isinstance(error, FileNotFoundError) and " " not in text:  # fsspec's have the path alone
        return f"No such file or folder: {text}. Check the name."
    if isinstance(error, OSError):
        if not text.startswith("[Errno"):  # it is in words
            return text
        if full := storage.describe_full(error.filename or "A file", error.errno):
            return f"{full}{advice}"
        known = _ADVICE.get(error.errno or 0)
        return f"{text}. {known}{advice}" if known else text
    if isinstance(error, ImportError):
        return f"{text}. Install what is missing."
    if type(error).__module__.partition(".")[0] in _STORAGE:
        return (
            f"The storage failed: {type(error).__name__}: {text}. Check its address, and the "
            f"credentials of this machine.{advice}"
        )
    return (
        f"{type(error).__name__}: {text}: this is a fault of dtl. "
        "Run again with --debug to see where."
    )
