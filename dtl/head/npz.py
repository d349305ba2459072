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
from numpy.typing import NDArray


def to_npz(meta: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Groups of named arrays, and what is told of them as JSON, as the bytes of an .npz file."""
    arrays = {"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)}
    for group, members in groups.items():
        arrays |= {f"{group}.{name}": np.asarray(value) for name, value in members.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def from_npz(data: bytes) -> tuple[dict[str, Any], dict[str, dict[str, NDArray[Any]]]]:
    """Read what `to_npz` wrote; a group that was empty is not there."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = dict(file)
    meta = json.loads(arrays.pop("meta").tobytes())
    groups: dict[str, dict[str, NDArray[Any]]] = {}
    for name, value in arrays.items():
        group, _, key = name.partition(".")
        groups.setdefault(group, {})[key] = value
    return meta, groups


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Where bytes are read: what NumPy, JSON and zipfile raise for others becomes a ValueError."""
    try:
        yield
    except (
        ValueError, KeyError, IndexError, TypeError, OSError, EOFError, RuntimeError, struct.error,
        zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise ValueError(f"Not a whole checkpoint that dtl wrote: {error}.") from error
