"""The files of a dataset of predictions: what is in them, and what another list changes."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dtl import storage
from dtl.images.listing import ImageFiles
from dtl.storage.ledger import read_parsed

_NAME = re.compile(r"part-(\d{6,})\.parquet")
_THREADS = 16
"""They wait for the storage."""

_SCORE = {"class": pa.string(), "probability": pa.float64()}
_COLUMNS = {
    "path": pa.string(), **_SCORE, "top5": pa.list_(pa.struct(_SCORE)), "error": pa.string(),
    "size_bytes": pa.int64(), "modified": pa.timestamp("us", "UTC"), "content_hash": pa.string(),
}  # fmt: skip
OPTIONAL = {
    "set": pa.list_(pa.string()), "answer": pa.string(), "novelty": pa.float64(),
    "unlike": pa.bool_(),
}  # fmt: skip
"""Columns that a dataset has where they are asked for; all of its files have the same ones."""


def make_schema(optional: Iterable[str] = ()) -> pa.Schema:
    """Make the schema of a dataset's files.

    Examples
    --------
    >>> make_schema(["answer"]).names[-2:]
    ['content_hash', 'answer']
    """
    return pa.schema(_COLUMNS | {name: OPTIONAL[name] for name in optional})


class Version(NamedTuple):
    """An image as it was listed; if nothing of this differs, its file is taken to be the same."""

    path: str
    size_bytes: int
    modified: int  # microseconds since 1970, of the file or its tar; 0 if unknown


class Row(NamedTuple):
    """What else a command has to know of a row."""

    unread: bool
    content_hash: str | None  # None without bytes


class Part(NamedTuple):
    """What a file is to hold: rows that it has, and then rows of images to classify."""

    number: int
    kept: list[Version]
    new: list[Version]


class Changes(NamedTuple):
    """How many images of a list differ from those that have rows."""

    new: int
    changed: int
    removed: int
    as_before: int

    def __str__(self) -> str:
        if not any(self[:3]):
            return f"nothing new, {self.as_before:,} as before"
        return (
            f"{self.new:,} new, {self.changed:,} changed, {self.removed:,} removed, "
            f"{self.as_before:,} as before"
        )


def list_versions(images: ImageFiles) -> list[Version]:
    """List the images of a source, in its order."""
    columns = zip(images.paths, images.sizes, images.modified, strict=True)
    return [Version(*column) for column in columns]


def hash_versions(images: Iterable[Version]) -> str:
    """Return the SHA-256 of a list of images, and of its order, in hexadecimal digits."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.path}\0{image.size_bytes}\0{image.modified}\n".encode())
    return digest.hexdigest()


def match_touched(
    stored: Mapping[int, Mapping[Version, Row]], listed: Iterable[Version]
) -> dict[Version, tuple[Version, str]]:
    """Match listed images of which only the time differs with their rows, and content hashes.

    Examples
    --------
    >>> a, b = Version("a", 1, 5), Version("b", 2, 5)
    >>> rows = {0: {a: Row(False, "c0ffee"), b: Row(False, "facade")}}
    >>> match_touched(rows, [Version("a", 1, 6), b])[Version("a", 1, 6)]
    (Version(path='a', size_bytes=1, modified=5), 'c0ffee')
    """
    rows = {
        (image.path, image.size_bytes): (image, row.content_hash)
        for part in stored.values()
        for image, row in part.items()
    }
    touched = {}
    for image in listed:
        before, content_hash = rows.get(image[:2], (image, None))
        if before != image and content_hash:
            touched[image] = before, content_hash
    return touched


def compare(stored: Iterable[Version], listed: Iterable[Version]) -> Changes:
    """Count how a list differs from the stored rows.

    Examples
    --------
    >>> a, b, c = Version("a", 1, 5), Version("b", 2, 5), Version("c", 3, 5)
    >>> print(compare([a, b], [a, Version("b", 2, 6), c]))
    1 new, 1 changed, 0 removed, 1 as before
    """
    before, now = set(stored), set(listed)
    paths_before, paths_now = ({image.path for image in images} for images in (before, now))
    n_both, as_before = len(paths_before & paths_now), len(before & now)
    return Changes(
        len(paths_now) - n_both, n_both - as_before, len(paths_before) - n_both, as_before
    )


def plan(
    stored: Mapping[int, Collection[Version]],
    listed: Sequence[Version],
    first: int,
    chunk_images: int,
) -> list[Part]:
    """Plan which rows each file keeps, and which images it gets.

    New images fill the file `first` up to `chunk_images` rows, then the files after it. Those have
    no other rows, and files before it get none. So the plan that a killed command began follows
    from what it left, the list and `first`: those files are whole already, or not there.

    Parameters
    ----------
    stored : mapping of int to Version
        Rows of each file that is there, by its number.

    Examples
    --------
    >>> a, b, c, d, e = (Version(name, 1, 5) for name in "abcde")
    >>> for part in plan({0: [a, b], 1: [c]}, [b, c, d, e], first=1, chunk_images=2):
    ...     print(part.number, *(image.path for image in part.kept + part.new))
    0 b
    1 c d
    2 e
    """
    waiting = set(listed)
    kept: dict[int, list[Version]] = {}
    for number in sorted(number for number in stored if number <= first):
        kept[number] = [image for image in stored[number] if image in waiting]
        waiting.difference_update(kept[number])
    new = [image for image in listed if image in waiting]
    room = max(chunk_images - len(kept.setdefault(first, [])), 0)
    parts = [
        Part(number, rows, new[:room] if number == first else []) for number, rows in kept.items()
    ]
    starts = range(room, len(new), chunk_images)
    for number, start in enumerate(starts, first + 1):
        wanted = new[start : start + chunk_images]
        there = stored.get(number, ())
        parts.append(
            Part(number, [i for i in wanted if i in there], [i for i in wanted if i not in there])
        )
    beyond = [Part(number, [], []) for number in stored if number > first + len(starts)]
    return parts + beyond


def name_part(url: str, number: int) -> str:
    """Return the URL of a file in a dataset's folder."""
    return storage.join(url, f"part-{number:06d}.parquet")


def read_parts(url: str) -> dict[int, dict[Version, Row]]:
    """Read which rows the files in a dataset's folder have, by the files' numbers.

    Raises `UserError`, which says what to do, if one is damaged.
    """
    names = filter(None, map(_NAME.fullmatch, storage.list_names(url)))
    numbers = sorted(int(name[1]) for name in names)
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = pool.map(_read_part, (name_part(url, number) for number in numbers))
        return dict(zip(numbers, parts, strict=True))


def _read_part(url: str) -> dict[Version, Row]:
    table = _read(url, ["path", "size_bytes", "modified", "error", "content_hash"])
    modified = table["modified"].cast(pa.int64()).fill_null(0)
    columns = (
        table["path"], table["size_bytes"], modified, table["error"].is_valid(),
        table["content_hash"],
    )  # fmt: skip
    return {
        Version(path, n_bytes, time): Row(unread, content_hash)
        for path, n_bytes, time, unread, content_hash in zip(
            *(column.to_pylist() for column in columns), strict=True
        )
    }


def _read(url: str, names: Sequence[str]) -> pa.Table:
    def parse(data: bytes) -> pa.Table:
        return pq.read_table(io.BytesIO(data), columns=[*names]).select(names)

    table = read_parsed(url, parse, "Remove it, and the same command makes it again.")
    if table is None:
        raise FileNotFoundError(f"{url} was there a moment ago. Does another command remove it?")
    return table


def read_rows(url: str, kept: Sequence[Version], schema: pa.Schema) -> pa.Table:
    """Read the rows of some images from a file, in their order, with their times as given."""
    table = _read(url, schema.names)
    row_of = {path: row for row, path in enumerate(table["path"].to_pylist())}
    table = table.take(np.array([row_of[image.path] for image in kept], np.int64))
    field = schema.field("modified")
    times = pa.array([image.modified or None for image in kept], field.type)
    return table.set_column(table.schema.get_field_index(field.name), field, times)


def write(url: str, table: pa.Table) -> None:
    """Write a file, in place of the one that is there; a reader finds one of the two."""
    buffer = io.BytesIO()
    pq.write_table(table.combine_chunks(), buffer)
    storage.write_bytes(url, buffer.getvalue())


def drop_rows(
    url: str,
    stored: Mapping[int, Collection[Version]],
    planned: Iterable[Part],
    schema: pa.Schema,
) -> None:
    """Remove rows that are not kept, and files without any; give the others their files' times."""

    def drop(part: Part) -> None:
        place = name_part(url, part.number)
        if part.kept:
            write(place, read_rows(place, part.kept, schema))
        else:
            storage.remove(place)

    differing = [
        part
        for part in planned
        if part.number in stored and set(part.kept) != set(stored[part.number])
    ]
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(drop, differing):
            pass
