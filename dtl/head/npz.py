"""Named arrays and JSON as the bytes of one .npz file, without pickles.

What a file says of its sizes is compared with what it has before any of its numbers are read: a few
kilobytes must not become gigabytes.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtl.config.errors import UserError

_LONGEST_HEADER = 10_000
"""Bytes of an .npy header; NumPy's own limit. An array of numbers takes some hundred."""

_HEADER = re.compile(
    rb"\{\s*'descr':\s*'([<>=|]?[A-Za-z]\d*)',\s*'fortran_order':\s*(?:True|False),"
    rb"\s*'shape':\s*\((\d[\d,\s]*)?\),?\s*\}\s*"
)
"""A header of numbers as NumPy writes it; of nothing else, for NumPy reads it by `eval`'s rules."""

_PLAIN = "biufSU"
"""Kinds of `numpy.dtype` that are bytes and nothing more: numbers and texts."""


@dataclass(frozen=True)
class Header:
    """An array of an .npz file before its numbers are read."""

    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def to_npz(arrays: Mapping[str, ArrayLike], meta: Mapping[str, Any]) -> bytes:
    """Write arrays and JSON; the same content gives the same bytes.

    Examples
    --------
    >>> arrays, meta = from_npz(to_npz({"bias": [0.5]}, {"classes": ["cat"]}))
    >>> arrays["bias"].tolist(), meta
    ([0.5], {'classes': ['cat']})
    """
    buffer = io.BytesIO()
    text = json.dumps(meta, sort_keys=True).encode()
    values: dict[str, Any] = {**arrays, "meta": np.frombuffer(text, np.uint8)}
    np.savez(buffer, **values)
    return buffer.getvalue()


def from_npz(data: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what `to_npz` wrote; it takes no more memory than the bytes do.

    Raises
    ------
    ValueError, or one of those that `reading` turns into a `UserError`
        If the bytes are something else.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its arrays are compressed, which dtl never does")
        if sum(member.file_size for member in members) > len(data):
            raise ValueError(f"its arrays are larger than all of its {len(data)} bytes")
        headers = read_headers(archive)
        arrays = {name: read_array(archive, header) for name, header in headers.items()}
    meta = json.loads(arrays.pop("meta").tobytes())
    if not isinstance(meta, dict):
        raise ValueError("its meta is no JSON object")
    return arrays, meta


def read_headers(archive: zipfile.ZipFile) -> dict[str, Header]:
    """Read what an .npz file says of its arrays, by name, without reading their numbers.

    Raises
    ------
    ValueError
        If a member is no array of numbers or texts, or not as long as its header says.
    """
    found: dict[str, Header] = {}
    for info in archive.infolist():
        with archive.open(info) as file:
            dtype, shape = _read_header(file, info.filename)
            n_bytes = file.tell() + dtype.itemsize * math.prod(shape)
        if n_bytes != info.file_size:
            raise ValueError(
                f"{info.filename} is of shape {shape} and {dtype}, which takes {n_bytes} bytes; it "
                f"has {info.file_size}"
            )
        name = info.filename.removesuffix(".npy")
        if name in found:
            raise ValueError(f"it has two arrays {name}")
        found[name] = Header(info.filename, shape, dtype)
    return found


def read_array(archive: zipfile.ZipFile, header: Header) -> NDArray[Any]:
    """Read an array whose header has been read, and compare its checksum."""
    with archive.open(header.member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_header(file: IO[bytes], name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    start = file.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise ValueError(f"{name} is no .npy file")
    n_bytes = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
    text = file.read(n_bytes) if n_bytes <= _LONGEST_HEADER else b""
    if (match := _HEADER.fullmatch(text)) is None:
        raise ValueError(f"{name} has a header that no array of numbers has")
    code = match[1].decode()
    kind = code.lstrip("<>=|")[0]
    if kind == "O":
        raise ValueError(f"{name} holds Python objects, which are never loaded: allow_pickle=False")
    try:
        dtype = np.dtype(code if kind in _PLAIN else "none")
    except TypeError:
        raise ValueError(f"{name} holds {code!r}, not numbers") from None
    return dtype, tuple(map(int, re.findall(rb"\d+", match[2] or b"")))


def join_groups(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Name the arrays of groups ``group.name``, such as ``params.bias``."""
    return {f"{group}.{name}": v for group, part in groups.items() for name, v in part.items()}


def split_groups(arrays: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, NDArray[Any]]]:
    """Return the groups that `join_groups` joined, without those that were empty."""
    groups: dict[str, dict[str, NDArray[Any]]] = {}
    for name, value in arrays.items():
        group, _, key = name.partition(".")
        groups.setdefault(group, {})[key] = value
    return groups


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn what NumPy, JSON and zipfile raise for other or damaged bytes into a `UserError`."""
    try:
        yield
    except (
        ValueError, KeyError, IndexError, TypeError, AttributeError, OSError, EOFError,
        RuntimeError, OverflowError, struct.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise UserError(f"Not a {what} that dtl wrote: {error}.") from error
