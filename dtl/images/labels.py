"""Labels from a table: the class of each image, and its split, by path.

A table is read row by row into one mapping. Paths are compared in one form: relative to the folder
of the images, with slashes, composed as NFC says. A path that no image has may be one without its
extension, as the ids of many tables are.
"""

from __future__ import annotations

import codecs
import csv
import functools
import gzip
import io
import json
import math
import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from dtl import storage
from dtl.config import ImagesConfig
from dtl.config.errors import UserError
from dtl.config.text import printable
from dtl.images import tars
from dtl.images.decoding import formats
from dtl.images.layout import compose, read_split
from dtl.images.values import NO_SPLIT, SPLITS
from dtl.storage.ledger import read_parsed

_MOST_BYTES = 1 << 31
_ROWS_AT_ONCE = 1 << 16
_MOST_SHOWN = 8
_ADVICE = "Mend the table, or check `images.labels`"
_UNTIDY = re.compile(r"^/|://|\\|(?:^|/)\.{0,2}(?:/|$)")
"""Found in every path that is not relative, or has other than names between single slashes."""
_WHOLE = re.compile(r"(-?\d+)(?:\.0*)?")

Place: TypeAlias = tuple[int, str | None]
"""Split, as in `ImageList.given_split`, and class of an image; no class where it has no label."""


class _Rows(NamedTuple):
    """Rows of a table: number, path, label and split; the last is None without such a column."""

    rows: Iterable[tuple[int, Any, Any, Any]]
    unit: str  # of the numbers
    has_splits: bool


@dataclass(frozen=True)
class LabelTable:
    """Split and class of images, by path in the form of `_tidy`."""

    url: str
    places: dict[str, Place]
    has_splits: bool

    def match(self, paths: Sequence[str], top: str = "") -> tuple[list[Place | None], list[str]]:
        """Find the rows of images.

        Parameters
        ----------
        top : str
            Folder that rows may be relative to, too.

        Returns
        -------
        places : list
            Of each image; None for one that no row names.
        missing : list of str
            Paths of rows that name no image.

        Raises
        ------
        UserError
            If a row may be of two images, or two rows of one image differ.
        """
        keys = [compose(path).replace("\\", "/") for path in paths]
        places = [self.places.get(key) for key in keys]
        rest = self.places.keys() - keys
        named: dict[str, list[int]] = {}  # images by the path of their row
        if len({*keys}) < len(keys):
            for k, key in enumerate(keys):
                if places[k] is not None:
                    named.setdefault(key, []).append(k)
        if rest:
            for k, key in enumerate(keys):
                for alias in _list_aliases(key, f"{top}/" if top else ""):
                    if alias in rest:
                        named.setdefault(alias, []).append(k)
        for name, (k, *others) in named.items():
            if others:
                some = ", ".join(printable(paths[i]) for i in (k, *others[:_MOST_SHOWN]))
                raise UserError(
                    f"{self.url}: {printable(name)} stands for {1 + len(others)} images: {some}. "
                    "Give their whole paths, or rename images whose names differ only in how "
                    "Unicode composes them."
                )
            if places[k] not in (None, self.places[name]):
                raise UserError(
                    f"{self.url}: {printable(paths[k])} is given twice, as "
                    f"{_show(places[k])} and, as {printable(name)}, as "
                    f"{_show(self.places[name])}. {_ADVICE}."
                )
            places[k] = self.places[name]
        return places, [path for path in self.places if path in rest and path not in named]


def _list_aliases(key: str, above: str) -> Iterator[str]:
    """Yield the other paths by which a row may name an image."""
    inside = key.removeprefix(above)
    if inside != key:
        yield inside
    for path in {key, inside}:
        # An id is no name of an image: a.jpg is not a.jpg.png.
        if (stem := tars.read_key(path)) != path and not formats.has_image_name(stem):
            yield stem


def read_table(config: ImagesConfig) -> LabelTable:
    """Read the table ``images.labels``.

    A label is a text, or a whole number as a text: 3, and 3.0 if all labels are whole numbers.
    Spaces around it do not count. Rows that repeat others count once. An empty label is none, and
    so is an empty split.

    Raises
    ------
    FileNotFoundError
        If there is no such table.
    UserError
        With the line or row, if it is damaged, has no such columns or no rows, is not UTF-8, or has
        a label or split that is none, a path outside the folder, or two labels of one path.
    """
    url = config.labels
    shown = url if storage.has_folders(url) else url.partition("?")[0]
    name = shown.lower().removesuffix(".gz")
    read = next((read for ending, read in _READERS.items() if name.endswith(ending)), None)
    if read is None:
        raise UserError(
            f"`images.labels` must end in {', '.join(_READERS)}, or in one of these and .gz. "
            f"Received: {url}."
        )

    def parse(data: bytes) -> LabelTable:
        return _collect(read(_unzip(data, shown), config), config)

    table = read_parsed(url, parse, f"{_ADVICE}.", _MOST_BYTES)
    if table is None:
        raise FileNotFoundError(f"No such file: {url}. Check `images.labels`.")
    return table


def _unzip(data: bytes, url: str) -> bytes:
    if not url.lower().endswith(".gz"):
        return data
    with gzip.open(io.BytesIO(data)) as file:
        unzipped = file.read(_MOST_BYTES + 1)
    if len(unzipped) > _MOST_BYTES:
        raise UserError(f"it has over {_MOST_BYTES} bytes, which are the most that are read")
    return unzipped


def _collect(table: _Rows, config: ImagesConfig) -> LabelTable:
    roots = _list_roots(config.url)
    places: dict[str, Place] = {}
    for number, path, label, split in table.rows:
        try:
            place = _read_place(label, split)
            key = _tidy(path, roots)
            if places.setdefault(key, place) != place:
                raise ValueError(
                    f"{printable(path)} is given twice, as {_show(places[key])} and as "
                    f"{_show(place)}"
                )
        except ValueError as error:
            raise UserError(f"{table.unit} {number}: {error}") from error
    if not places:
        raise UserError("it has no rows")
    known = {*places.values()}
    names = {name for _, name in known if name is not None}
    whole = {name: found[1] for name in names if (found := _WHOLE.fullmatch(name))}
    if len(whole) == len(names) and any("." in name for name in names):
        # Numbers of a column with missing values, which Pandas writes as 3.0.
        numbered = {place: (place[0], whole.get(place[1] or "")) for place in known}
        places = {key: numbered[place] for key, place in places.items()}
    return LabelTable(config.labels, places, table.has_splits)


# --- cells ---------------------------------------------------------------------------------------


def _list_roots(url: str) -> list[str]:
    """Return what absolute paths of images may begin with."""
    place = storage.absolute(url)
    places = [place, url.rstrip("/")]
    if place.lower().endswith(".tar"):  # its images lie beside it, as if it were unpacked there
        places.append(place.rsplit("/", 1)[0])
    local = [f"file://{path}" for path in places if storage.is_local(path) and "://" not in path]
    return [compose(root) + "/" for root in places + local]


def _tidy(path: Any, roots: Sequence[str]) -> str:
    r"""Return the one form in which paths are compared; a `ValueError` if it leads elsewhere.

    Examples
    --------
    >>> _tidy("./ant\\1.jpg", []), _tidy("/photos/ant/1.jpg", ["/photos/"])
    ('ant/1.jpg', 'ant/1.jpg')
    >>> _tidy("../1.jpg", [])
    Traceback (most recent call last):
        ...
    ValueError: the path ../1.jpg leads out of the folder of the images
    """
    if path is None or path == "":
        raise ValueError("it has no path")
    if isinstance(path, int):
        path = str(path)
    if not isinstance(path, str):
        raise ValueError(f"the path {path!r} is no text")
    key = compose(path)
    if _UNTIDY.search(key) is None:
        return key
    key = key.replace("\\", "/")
    root = next((root for root in roots if key.startswith(root)), "")
    key = posixpath.normpath(key.removeprefix(root))
    if key.startswith(("/", "../")) or key == ".." or "://" in path.removeprefix(root):
        raise ValueError(f"the path {printable(path)} leads out of the folder of the images")
    return key


def _read_place(label: Any, split: Any) -> Place:
    hashable = not isinstance(label, list | dict) and not isinstance(split, list | dict)
    return (_read_known if hashable else _read_cells)(label, split)


def _read_cells(label: Any, split: Any) -> Place:
    return _read_split(split), _read_label(label)


# So that a million rows share the few places that there are.
_read_known = functools.lru_cache(1 << 16, typed=True)(_read_cells)


def _read_label(value: Any) -> str | None:
    """Return the class that a label names; None if it is empty.

    Examples
    --------
    >>> _read_label(" ant "), _read_label(3), _read_label(3.0), _read_label(float("nan"))
    ('ant', '3', '3', None)
    >>> _read_label(["ant", "bee"])
    Traceback (most recent call last):
        ...
    ValueError: the label ['ant', 'bee'] is neither a text nor a whole number
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int):
        raise ValueError(f"the label {value!r} is neither a text nor a whole number")
    return str(value).strip() or None


def _read_split(value: Any) -> int:
    word = "" if value is None else value
    if not isinstance(word, str) or ((split := read_split(word.strip())) is None and word.strip()):
        raise ValueError(
            f"the split {value!r} is none of {', '.join(SPLITS)}, and not empty, for none"
        )
    return NO_SPLIT if split is None else split


def _show(place: Place | None) -> str:
    split, name = place or (NO_SPLIT, None)
    of_split = f" in {SPLITS[split]}" if split != NO_SPLIT else ""
    return ("no label" if name is None else repr(name)) + of_split


# --- formats -------------------------------------------------------------------------------------


def _read_csv(data: bytes, config: ImagesConfig) -> _Rows:
    _check_text(data)
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline="")
    header = next((line for line in text if line.strip()), "")
    for delimiter in ",;\t":
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        if config.path_column in names:
            break
    else:
        names = [name.strip() for name in re.split("[,;\t]", header.strip())] if header else []
    _check_columns(names, config)
    for name in (config.path_column, config.label_column, config.split_column):
        if names.count(name) > 1:
            raise UserError(f"it has {names.count(name)} columns {name!r}")
    at = [names.index(name) for name in (config.path_column, config.label_column)]
    at += [names.index(config.split_column)] if config.split_column in names else []
    text.seek(0)
    has_splits = len(at) > 2

    def read() -> Iterator[tuple[int, Any, Any, Any]]:
        lines = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            next(row for row in lines if any(map(str.strip, row)))  # the header
            for row in lines:
                if not any(map(str.strip, row)):
                    continue
                if len(row) != len(names):
                    raise UserError(
                        f"line {lines.line_num} has {len(row)} values, and the header has "
                        f"{len(names)}. Put values with {delimiter!r} in them in quotes"
                    )
                path, label, *split = (row[k] for k in at)
                yield lines.line_num, path, label, split[0] if has_splits else None
        except csv.Error as error:
            raise UserError(f"line {lines.line_num}: {error}") from error

    return _Rows(read(), "line", has_splits)


def _read_jsonl(data: bytes, config: ImagesConfig) -> _Rows:
    _check_text(data)
    columns = (config.path_column, config.label_column, config.split_column)
    names: set[str] = set()
    rows: list[tuple[int, Any, Any, Any]] = []
    for number, line in enumerate(io.BytesIO(data.removeprefix(codecs.BOM_UTF8)), 1):
        if line.isspace():
            continue
        try:
            row = json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            place = f"line {number}, column {error.colno}"
            raise UserError(f"{place}: {error.msg}. Each line must be a JSON object") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"line {number}: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"line {number}: each line must be a JSON object")
        names.update(row)
        path, label, split = map(row.get, columns)
        rows.append((number, path, label, split))
    _check_columns(sorted(names), config)
    return _Rows(rows, "line", config.split_column in names)


def _read_parquet(data: bytes, config: ImagesConfig) -> _Rows:
    import pyarrow.parquet as pq  # not for the other formats

    file = pq.ParquetFile(io.BytesIO(data))
    names = file.schema_arrow.names
    _check_columns(names, config)
    columns = [config.path_column, config.label_column]
    has_splits = config.split_column in names
    columns += [config.split_column] if has_splits else []

    def read() -> Iterator[tuple[int, Any, Any, Any]]:
        number = 0
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
            values = [batch.column(name).to_pylist() for name in columns]
            splits = values[2] if has_splits else [None] * len(batch)
            for path, label, split in zip(values[0], values[1], splits, strict=True):
                number += 1
                yield number, path, label, split

    return _Rows(read(), "row", has_splits)


_READERS: dict[str, Callable[[bytes, ImagesConfig], _Rows]] = {
    ".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet,
}  # fmt: skip


def _check_text(data: bytes) -> None:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:1024]:
        raise UserError("it is UTF-16, or no text. Save it as UTF-8")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"byte {error.start}, in line {line}, is none of UTF-8. Save it as UTF-8, and not as "
            "Latin-1 or the like"
        ) from error


def _check_columns(names: Collection[str], config: ImagesConfig) -> None:
    if not names:
        raise UserError("it is empty")
    default = ImagesConfig().split_column
    for key in ("path_column", "label_column", "split_column"):
        name = getattr(config, key)
        if name not in names and (key != "split_column" or name != default):
            some = [repr(printable(n)) for n in names][:_MOST_SHOWN]
            more = ", ..." * (len(names) > len(some))
            raise UserError(
                f"it has no column {name!r}, and begins with the columns {', '.join(some)}{more}. "
                f"Name the right one in `images.{key}`; the first row must be the columns' names"
            )
