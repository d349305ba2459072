"""Named arrays and JSON as the bytes of one .npz file, without pickles."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtl.config.errors import UserError


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
    """Read what `to_npz` wrote."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = dict(file)
    return arrays, json.loads(arrays.pop("meta").tobytes())


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
        RuntimeError, struct.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise UserError(f"Not a {what} that dtl wrote: {error}.") from error
