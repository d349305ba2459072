"""Tar files that hold images: reading and writing their headers.

Nothing here opens a file. Bytes come from a `Window`, so that headers are read without the data.
"""

from __future__ import annotations

import codecs
import functools
import json
import tarfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dtl.config.text import is_unicode, printable
from dtl.images.decoding import formats, recognition
from dtl.images.layout import is_split_name
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
_ZEROS_BYTES = 64 << 10
"""Read at once after the end of a tar, which is usually filled up to 10 KiB."""


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

    Where another tar follows, as after ``cat a.tar b.tar``, its entries are yielded, too. Other
    bytes after the end, if fewer than a block, are yielded as one entry with a problem.

    Raises `ValueError` if the file is no tar, is damaged, is shorter than its headers say, or has
    a block or more of other bytes after its end.
    """
    start: int | None = 0
    while start is not None:
        end = yield from _read_to_end(window, start)
        start = _find_after(window, end)
        if start is not None and not _is_header(window, start, end):
            rest = window.at(start, BLOCK_BYTES)
            if len(rest) == BLOCK_BYTES:
                raise ValueError(
                    f"not a whole tar: after its end, something that is no tar begins at byte "
                    f"{start}."
                )
            yield Member(f"byte {start}", start, len(rest), "after the end of the tar")
            return


def _read_to_end(window: Window, start: int) -> Generator[Member, None, int]:
    """Yield the entries of one tar, and return where its end begins."""
    position = start
    window.seek(start)
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
    return tar.offset


def _find_after(window: Window, position: int) -> int | None:
    """Return the place of the first byte that is not zero, or None to the end of the file."""
    while block := window.at(position, _ZEROS_BYTES):
        if rest := block.lstrip(b"\0"):
            return position + len(block) - len(rest)
        position += len(block)
    return None


def _is_header(window: Window, position: int, end: int) -> bool:
    """Return whether a header is at a position, which must be whole blocks after a tar's end."""
    try:
        tarfile.TarInfo.frombuf(window.at(position, BLOCK_BYTES), "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return (position - end) % BLOCK_BYTES == 0


def _member(info: tarfile.TarInfo) -> Member:
    problem = ""
    parts = [part for part in info.name.split("/") if part not in ("", ".")]
    if info.issym() or info.islnk():
        problem = "a link in a tar"
    elif not info.isreg() or info.issparse():
        problem = "not a plain file in the tar"
    elif info.name.startswith("/") or ".." in parts or "\0" in info.name or not parts:
        problem = "unsafe name in a tar"
    elif not is_unicode(info.name):
        problem = "name in a tar that is not UTF-8"
    name = "/".join(parts) if not problem else info.name
    shown = name if is_unicode(name) else printable(name)
    return Member(shown, info.offset_data, info.size, problem)


# --- images and the files beside them ------------------------------------------------------------


class Contents(NamedTuple):
    """Images of a tar, and its other files."""

    images: list[tuple[str, int, int]]  # path, size, and place of its bytes
    left_out: list[tuple[str, str, str]]  # name, reason, and the path that it has as an image


def list_contents(window: Window, folder: str = "") -> Contents:
    """List the images of a tar, each with the class beside it as the first folder of its path.

    A class beside it has the same name up to the last dot: KEY.jpg and KEY.cls. An image without
    one, and in no folder, may share the name up to the *first* dot, as samples of WebDataset do:
    KEY.input.jpg and KEY.cls. But then it must be the only such image.

    Parameters
    ----------
    folder : str
        Where the tar lies, which is the class of its images if it is no split.

    Raises
    ------
    ValueError
        As `read_members`.
    """
    images: list[Member] = []
    others: list[tuple[Member, str]] = []
    sidecars: list[Member] = []
    classes: dict[str, str] = {}
    for member in read_members(window):
        name = member.name
        if member.problem:
            others.append((member, member.problem))
        elif any(map(recognition.is_hidden, name.split("/"))):
            others.append((member, recognition.HIDDEN))
        elif formats.has_image_name(name):
            images.append(member)
        elif PurePosixPath(name).suffix.lower() in SIDECARS:
            key, is_cls = read_key(name), name.lower().endswith(".cls")
            named = read_class(window, member)
            if named and (is_cls or key not in classes):
                classes[key] = named
            if is_cls and not named:
                others.append((member, "no class in it: expected one line of UTF-8"))
            else:
                sidecars.append(member)
        elif reason := recognition.judge_name(name) or recognition.judge_content(
            functools.partial(_read_member, window, member), member.n_bytes
        ):
            others.append((member, reason))
        else:
            images.append(member)
    # Most tars have class folders and nothing beside the images, and millions of these.
    names = [member.name for member in images] if sidecars else []
    class_of = match_classes(names, classes, folder)
    keys = {read_key(name) for name in names} | {
        read_sample_key(name) for name in names if read_key(name) not in classes
    }
    others += [
        (member, recognition.NO_IMAGE)
        for member in sidecars
        if read_key(member.name) not in keys and read_sample_key(member.name) not in keys
    ]

    def place(name: str, named: str | None) -> str:
        return f"{named}/{name}" if named else name

    return Contents(
        [(place(m.name, class_of.get(m.name)), m.n_bytes, m.offset) for m in images],
        [(m.name, reason, place(m.name, classes.get(read_key(m.name)))) for m, reason in others],
    )


def _read_member(window: Window, member: Member, offset: int, n_bytes: int) -> bytes:
    return window.at(member.offset + offset, min(n_bytes, member.n_bytes - offset))


def match_classes(
    names: Sequence[str], classes: Mapping[str, str], folder: str = ""
) -> dict[str, str]:
    """Return the class beside each of the images that has one; see `list_contents`.

    Examples
    --------
    >>> match_classes(["1.jpg", "1.mask.png", "2.input.jpg"], {"1": "ant", "2": "bee"})
    {'1.jpg': 'ant', '2.input.jpg': 'bee'}
    """
    class_of = {name: classes[key] for name in names if (key := read_key(name)) in classes}
    matched = {read_key(name) for name in class_of}
    classes_of_sample: dict[str, set[str]] = {}
    for key, named in classes.items():
        if key not in matched:
            classes_of_sample.setdefault(read_sample_key(key), set()).add(named)
    images_of_sample: dict[str, list[str]] = {}
    if not folder or is_split_name(folder.split("/")[0]):
        for name in names:
            if "/" not in name and name not in class_of:
                images_of_sample.setdefault(read_sample_key(name), []).append(name)
    for sample, (first, *more) in images_of_sample.items():
        if not more and len(found := classes_of_sample.get(sample, set())) == 1:
            (class_of[first],) = found
    return class_of


def read_key(name: str) -> str:
    """Return the part of a name that an image and its sidecars have in common.

    Examples
    --------
    >>> read_key("a/0001.jpg"), read_key("a/0001.cls"), read_key("a/0001.seg.png")
    ('a/0001', 'a/0001', 'a/0001.seg')
    """
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.rpartition(".")
    return folder + slash + stem if stem and suffix else name


def read_sample_key(name: str) -> str:
    """Return the key of WebDataset, which ends at the first dot of the base name.

    Examples
    --------
    >>> read_sample_key("a.b/0001.seg.png")
    'a.b/0001'
    """
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def read_class(window: Window, member: Member) -> str | None:
    """Return the class that a ``.cls`` or ``.json`` beside an image names, or None.

    They are UTF-8, or begin with the byte-order mark of another encoding of Unicode. Slashes become
    underlines, because the class becomes a folder in the image's path.
    """
    name = member.name.lower()
    if member.n_bytes > _MOST_SIDECAR_BYTES or name.endswith(".txt"):
        return None
    data = window.at(member.offset, member.n_bytes)
    try:
        named = json.loads(data) if name.endswith(".json") else _decode(data)
    except (ValueError, RecursionError):
        return None
    if isinstance(named, dict):
        named = next((named[k] for k in _CLASS_KEYS if _is_class(named.get(k))), None)
    if not _is_class(named):
        return None
    name = str(named).strip().replace("/", "_")
    return name if name and name.isprintable() and name not in (".", "..") else None


def _decode(data: bytes) -> str:
    utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf_16 else "utf-8-sig")


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


def locate_listed(
    images: ImageList, rows: slice | NDArray[np.integer] = slice(None)
) -> list[str | Extent]:
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
