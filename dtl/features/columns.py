"""The columns and attributes of a feature store, and how they lie in files."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dtl import storage
from dtl.config.errors import UserError
from dtl.features.arrays import ArrayLayout, Arrays, DamagedError
from dtl.images.decoding.figures import FIGURES
from dtl.images.values import NO_SPLIT, ImageList

# Columns that the driver writes at once lie in files of about this many rows: HDFS takes half a
# second to close a file, however small.
_ROWS_PER_FILE = 65_536

FORMAT = 4
"""Format of the stores that are read and written. Before 3 they knew no sizes and times of files,
without which nothing tells whether an image has changed; before 4 no figures of the pictures.
"""

GROWING, PLAN = "growing", "growth.parquet"
"""The attribute ``dtl`` of a store that is taking in a longer list, and the file that says what it
becomes: `dtl.features.growth`.
"""

_LIST_COLUMNS = {
    "path": "str", "label": "int32", "given_split": "int8", "size_bytes": "int64",
    "modified": "int64", "split": "int8",
}  # fmt: skip
TASK_COLUMNS = {
    "content_hash": "uint64", "error": "str", "status": "int8", "instruction_set": "int8",
    "figures": "float32",
}  # fmt: skip
COMPUTED_COLUMNS = ("content_hash", "error", "instruction_set", "figures")
"""What a task writes beside features and status, in the order that `write_chunk` takes them."""
TAR_COLUMNS = {"shard": "int32", "offset": "int64"}
COLUMNS = _LIST_COLUMNS | TASK_COLUMNS | TAR_COLUMNS
"""Types of all arrays but the layers."""

ROW_BYTES = 300
"""Of a row besides its features, at most: path, label, split and the like."""

_NO_ROW = -128
"""No row's value: it tells a chunk that is missing in a file of several."""


_ATTRIBUTES: Mapping[str, type] = {
    "settings": dict, "class_names": list, "weights_sha256": str, "weights": str, "seed": int,
    "root": str, "left_out": list, "n_left_out": int, "left_out_counts": dict,
    "empty_folders": list, "versions": dict, "shards": list, "generations": list, "earlier": list,
}  # fmt: skip
_NEEDED = ("settings", "class_names")

_NEVER_REPLACED = "Choose another `out`, or remove it yourself: it is never replaced."


def list_columns(images: ImageList) -> dict[str, NDArray[Any]]:
    """Return the columns that follow from the list, and the split before there is one."""
    names = [name for name in _LIST_COLUMNS if name != "split"]
    columns = {name: getattr(images, name) for name in names}
    if not len(images.modified):
        columns["modified"] = np.zeros(len(images), np.int64)
    columns["split"] = np.full(len(images), NO_SPLIT, np.int8)
    return columns | (list_extents(images) if images.tar_names else {})


def list_extents(images: ImageList) -> dict[str, NDArray[Any]]:
    """Return the columns that say where in tars the images lie."""
    return {"shard": images.tar, "offset": images.offset}


def lay_out(
    images: ImageList,
    layers: Mapping[str, int],
    dtype: str,
    chunk_images: int,
) -> dict[str, ArrayLayout]:
    """Return the layout of every array of a store, for layers of n_features each."""
    n_images = len(images)
    by_driver = _LIST_COLUMNS | (TAR_COLUMNS if images.tar_names else {})
    file_rows = chunk_images * max(1, _ROWS_PER_FILE // chunk_images)

    def column(name: str, kind: str) -> ArrayLayout:
        fill = "" if kind == "str" else 0 if name in TASK_COLUMNS else _NO_ROW
        shard_rows = None if name in TASK_COLUMNS else file_rows
        if name == "figures":  # in one file: HDFS takes half a second to close each
            shape = (n_images, len(FIGURES))
            return ArrayLayout(shape, kind, np.nan, chunk_images, None, ("image", "figure"))
        return ArrayLayout((n_images,), kind, fill, chunk_images, shard_rows, ("image",))

    def layer(name: str, n_features: int) -> ArrayLayout:
        dimensions = ("image", f"{name}_feature" if len(layers) > 1 else "feature")
        # Whoever reads the array without dtl gets no zeros for a file that is missing, either.
        shape = (n_images, n_features)
        return ArrayLayout(shape, dtype, np.nan, chunk_images, None, dimensions)

    columns = {name: column(name, kind) for name, kind in (by_driver | TASK_COLUMNS).items()}
    return columns | {name: layer(name, n) for name, n in layers.items()}


class Attributes(dict[str, Any]):
    """Attributes of a store, of which one that is missing is an error with its place."""

    def __init__(self, values: Any = (), url: str = "") -> None:
        super().__init__(values)  # alone, as `dataclasses.asdict` copies it
        self._url = url

    def __missing__(self, name: str) -> Any:
        raise DamagedError(
            f"{storage.join(self._url, 'zarr.json')} is damaged: it has no {name!r}. Put back a "
            f"copy of it. {_NEVER_REPLACED}"
        )


class Opened(NamedTuple):
    """A store that is open in this process."""

    arrays: Arrays
    attrs: Attributes


@functools.lru_cache(maxsize=16)
def open_store(url: str, opening: str) -> Opened:
    """Open a store for the tasks of this process."""
    if not storage.exists(url):
        raise FileNotFoundError(f"No feature store at {url}. Run the featurize stage first.")
    try:
        arrays = Arrays.open(url)
    except FileNotFoundError:
        begun = all(name.endswith(".partial") for name in storage.list_names(url))
        if begun and not storage.is_file(url):
            raise FileNotFoundError(f"The feature store at {url} is empty.") from None
        raise UserError(
            f"{url} is no feature store: it has no zarr.json. If it had one, put back a copy. "
            f"{_NEVER_REPLACED}"
        ) from None
    except ValueError as error:
        raise UserError(f"{url} is no feature store: {error} {_NEVER_REPLACED}") from error
    attrs = Attributes(arrays.group.attrs, url)
    if attrs.get("dtl") == "unfinished" and not arrays.list_files("status"):
        raise FileNotFoundError(f"The feature store at {url} was interrupted while made.")
    if attrs.get("dtl") not in ("features", GROWING, "unfinished"):
        raise UserError(f"{url} is a Zarr group that dtl did not make. {_NEVER_REPLACED}")
    if attrs.get("dtl") != "unfinished" and attrs.get("format") != FORMAT:
        raise UserError(
            f"{url} was made by another version of dtl: its format is {attrs.get('format', 1)}, "
            f"and this version reads {FORMAT}. Compute the features again. {_NEVER_REPLACED}"
        )
    for name, kind in _ATTRIBUTES.items():
        if (name in attrs or name in _NEEDED) and not isinstance(attrs[name], kind):
            raise DamagedError(
                f"{storage.join(url, 'zarr.json')} is damaged: {name!r} is {attrs[name]!r}, which "
                f"is no {kind.__name__}. Put back a copy of it. {_NEVER_REPLACED}"
            )
    stage = "derive" if "derived_from" in attrs else "the featurize stage"
    arrays.advice = (
        f"Run {stage} with `repair`: it makes again just what is missing or damaged, in the same "
        "bytes."
    )
    arrays.dtypes = COLUMNS
    return Opened(arrays, attrs)


def remove_store(url: str) -> None:
    """Remove a store, whole or not.

    Where that is interrupted, what is left is a store with fewer finished chunks, or one that
    `open_store` takes for one whose making was interrupted: the same command goes on.
    """
    with contextlib.suppress(FileNotFoundError):  # nothing is there, or an empty folder
        arrays = Arrays.open(url)
        arrays.remove_files("status")
        arrays.group.attrs.put({"dtl": "unfinished"})
        storage.empty_folder(url, keep="zarr.json")
    storage.remove(url)
