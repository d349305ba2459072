"""Tar files that hold images: reading and writing their headers.

Nothing here opens a file. Bytes come from a callable, so that headers are read without the data.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dtl.images.values import ImageList
from dtl.storage import Extent
from dtl.storage.ranges import Window

BLOCK_BYTES = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK_BYTES)
"""Bytes that follow the last member."""

SIDECARS = frozenset({".cls", ".json", ".txt"})
"""Files beside an image KEY.jpg: class (WebDataset), metadata and caption (img2dataset)."""

_CLASS_KEYS = ("cls", "class", "label")
_MOST_SIDECAR_BYTES = 1 << 20


class Member(NamedTuple):
    """One entry of a tar: its name without ``./``, and the place of its data in the tar.

    `problem` says why it must not be used: a link, a device, a name that leads elsewhere. Its name
    is then unchanged.
    """

    name: str
    offset: int
    n_bytes: int
    problem: str = ""


def read_members(window: Window) -> Iterator[Member]:
    """Yield all entries of a tar but its folders, from its headers.

    Raises `ValueError` if the file is no tar, or damaged, or shorter than its headers say.
    """
    position = 0
    try:
        tar = tarfile.TarFile(fileobj=window)  # type: ignore[arg-type]
        while info := tar.next():
            tar.members = []  # type: ignore[attr-defined]  # which would keep every header
            if info.size < 0 or tar.offset <= position:
                raise ValueError("a header with a negative size")
            position = tar.offset
            if not info.isdir():
                yield _member(info)
    except (tarfile.TarError, ValueError, RecursionError, OverflowError) as error:
        compressed = "" if position else " A compressed tar is to be unpacked first."
        raise ValueError(f"not a whole tar: {error} after byte {position}.{compressed}") from error
    # tarfile takes a damaged header for the end, and a file that was cut off before a header, too.
    if window.at(tar.offset, BLOCK_BYTES) != END[:BLOCK_BYTES]:
        raise ValueError(f"not a whole tar: it has no end, or is damaged, after byte {tar.offset}.")


def _member(info: tarfile.TarInfo) -> Member:
    problem = ""
    parts = [part for part in info.name.split("/") if part not in ("", ".")]
    if info.issym() or info.islnk():
        problem = "a link in a tar"
    elif not info.isreg() or info.issparse():
        problem = "not a plain file in the tar"
    elif info.name.startswith("/") or ".." in parts or "\0" in info.name or not parts:
        problem = "unsafe name in a tar"
    elif any("\ud800" <= character <= "\udfff" for character in info.name):
        problem = "name in a tar that is not UTF-8"
    shown = info.name.encode("utf-8", "backslashreplace").decode()
    return Member(shown if problem else "/".join(parts), info.offset_data, info.size, problem)


def read_key(name: str) -> str:
    """Return the part of a name that an image and its sidecars have in common.

    Examples
    --------
    >>> read_key("a/0001.jpg"), read_key("a/0001.cls"), read_key("a/0001.seg.png")
    ('a/0001', 'a/0001', 'a/0001.seg')
    """
    return str(PurePosixPath(name).with_suffix(""))


def read_class(window: Window, member: Member) -> str | None:
    """Return the class that a ``.cls`` or ``.json`` beside an image names, or None.

    Slashes become underlines, because the class becomes a folder in the image's path.
    """
    if member.n_bytes > _MOST_SIDECAR_BYTES or member.name.endswith(".txt"):
        return None
    data = window.at(member.offset, member.n_bytes)
    try:
        named = json.loads(data) if member.name.lower().endswith(".json") else data.decode()
    except ValueError:
        return None
    if isinstance(named, dict):
        named = next((named[k] for k in _CLASS_KEYS if _is_class(named.get(k))), None)
    if not _is_class(named):
        return None
    name = str(named).strip().replace("/", "_")
    return name if name and name.isprintable() and name not in (".", "..") else None


def _is_class(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


# --- writing -------------------------------------------------------------------------------------


def make_header(name: str, n_bytes: int) -> bytes:
    """Return the bytes before a member's data; the same for the same name and size.

    Examples
    --------
    >>> len(make_header("003.backpack/003_0001.jpg", 10))
    512
    """
    info = tarfile.TarInfo(name)
    info.size, info.mode = n_bytes, 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def make_padding(n_bytes: int) -> bytes:
    """Return the bytes after a member's data.

    Examples
    --------
    >>> len(make_padding(500)), len(make_padding(512))
    (12, 0)
    """
    return bytes(-n_bytes % BLOCK_BYTES)


def plan_tars(
    size_bytes: NDArray[np.int64], tar_bytes: int, most_images: int = 10_000
) -> list[range]:
    """Divide rows, in their order, into tars of at most `tar_bytes` if no image is larger.

    Examples
    --------
    >>> plan_tars(np.array([500, 500, 500, 9000, 1]), 2048)
    [range(0, 2), range(2, 3), range(3, 4), range(4, 5)]
    """
    ends = np.cumsum(BLOCK_BYTES + size_bytes + -size_bytes % BLOCK_BYTES)
    planned, start = [], 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        fit = int(np.searchsorted(ends, before + tar_bytes, "right"))
        stop = max(min(fit, start + most_images), start + 1)
        planned.append(range(start, stop))
        start = stop
    return planned


def tar_name(index: int) -> str:
    """Return the name of a tar that `dtl.images.packing` writes; names sort as numbers do.

    Examples
    --------
    >>> tar_name(3)
    'shard-000003.tar'
    """
    return f"shard-{index:06d}.tar"


# --- where images are ----------------------------------------------------------------------------


def locate(
    root: str,
    path: Iterable[str],
    tar_names: Sequence[str] = (),
    tar: Iterable[int] = (),
    offset: Iterable[int] = (),
    size_bytes: Iterable[int] = (),
) -> list[str | Extent]:
    """Return URLs of files, and extents of tars; arguments as the columns of an `ImageList`.

    Examples
    --------
    >>> locate("/photos", ["a/1.jpg", "a/2.jpg"], ["0.tar"], [0, -1], [512, 0], [9, 9])
    [Extent(url='/photos/0.tar', offset=512, n_bytes=9), '/photos/a/2.jpg']
    """
    root = root.rstrip("/")
    if not tar_names:
        return [f"{root}/{name}" for name in path]
    urls = [f"{root}/{name}" for name in tar_names]
    return [
        Extent(urls[k], int(first), int(n)) if k >= 0 else f"{root}/{name}"
        for name, k, first, n in zip(path, tar, offset, size_bytes, strict=True)
    ]


def locate_listed(images: ImageList, rows: slice = slice(None)) -> list[str | Extent]:
    """Return where the bytes of listed images are."""
    columns = (images.tar, images.offset, images.size_bytes) if images.tar_names else ()
    return locate(
        images.root,
        images.path[rows].tolist(),
        images.tar_names,
        *(column[rows].tolist() for column in columns),
    )


def is_clumped(column: NDArray[np.integer]) -> bool:
    """Return whether equal values are neighbours far more often than in a random order.

    In a random order, two neighbours are equal with the sum of the squared shares of the values.
    Far more is above it by five standard deviations and by a twentieth of the rest up to 1.

    Examples
    --------
    >>> is_clumped(np.repeat([0, 1, 2], 20)), is_clumped(np.tile([0, 1, 2], 20))
    (True, False)
    """
    if len(column) < 2:
        return False
    shares = np.unique(column, return_counts=True)[1] / len(column)
    chance = float((shares**2).sum())
    deviation: float = (chance * (1 - chance) / (len(column) - 1)) ** 0.5
    together = float((column[1:] == column[:-1]).mean())
    return together > chance + max(5 * deviation, 0.05 * (1 - chance))
