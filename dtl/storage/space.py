"""Free space where results are written."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

from dtl.config.errors import Fault, refuse
from dtl.storage.hadoop import count_copies
from dtl.storage.hdfs import Hdfs, find_server
from dtl.storage.local import Local
from dtl.storage.places import filesystem

__all__ = ["check_space", "find_free_bytes", "format_bytes"]

_HDFS_ANSWER_S = 30.0


def find_free_bytes(url: str, *, ask_hdfs: bool = True) -> int | None:
    """Return how many bytes can be written to a place; None if that is not known.

    On HDFS that is the least of what quotas of space leave to the folders of the place, and of what
    ``hdfs dfs -df`` says, where that command is, in seconds, if `ask_hdfs` is set. Both count the
    copies of each block, and this does not. Object stores have no end that could be asked for.
    """
    fs, path = filesystem(url)
    if isinstance(fs, Local):
        return shutil.disk_usage(_find_existing(path)).free
    if isinstance(fs, Hdfs):
        known = [_find_quota(fs, path), _ask_hdfs(url) if ask_hdfs else None]
        return min((n for n in known if n is not None), default=None)
    return None


def _find_existing(path: str) -> str:
    while not os.path.exists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def _find_quota(fs: Any, path: str) -> int | None:
    """Return the least that quotas leave, of one copy of each block."""
    left = []
    parts = path.strip("/").split("/")
    folders = ["/" + "/".join(parts[:n]) for n in range(len(parts), 0, -1)]
    there = [folder for folder in folders if fs.exists(folder)]
    # A NameNode adds up a whole tree for this: not those at the root, which hold everything.
    for folder in there[:1] + [f for f in there[1:] if f.count("/") > 1]:
        found = fs.attempt(folder, fs.client.get_content_summary, folder)
        if found.space_quota >= 0:
            left.append(max(found.space_quota - found.space_consumed, 0))
    return min(left) // count_copies() if left else None


def _ask_hdfs(url: str) -> int | None:
    """Return what the DataNodes have left, if Hadoop's own command is there to say so."""
    if shutil.which("hdfs") is None:
        return None
    try:
        done = subprocess.run(
            ["hdfs", "dfs", "-df", find_server(url)], capture_output=True, text=True, check=True,
            timeout=_HDFS_ANSWER_S,
        )  # fmt: skip
        return int(done.stdout.splitlines()[-1].split()[3]) // count_copies()
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None


def check_space(url: str, needed_bytes: int, what: str = "") -> int | None:
    """Refuse a place with less free space than will be written; return what is free, if known.

    Raises
    ------
    FaultsError
        With the check ``space``.
    """
    free = find_free_bytes(url)
    if free is not None and free < needed_bytes:
        message = (
            f"{url} has {format_bytes(free)} of free space, and {format_bytes(needed_bytes)} will "
            f"be written{what}."
        )
        advice = "Free some, or choose another `out`, or set `features.dtype` = float16."
        refuse([Fault("space", message, advice)])
    return free


def format_bytes(n_bytes: float) -> str:
    """Return an amount of bytes as people read it.

    Examples
    --------
    >>> format_bytes(1536), format_bytes(3 << 30), format_bytes(12)
    ('1.5 KiB', '3.0 GiB', '12 bytes')
    """
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes:.0f} bytes"
