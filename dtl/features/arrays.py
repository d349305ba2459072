"""Arrays of a Zarr group, in which a file that is missing or damaged is an error.

Zarr itself reads a missing file as the array's fill value. No other module imports Zarr.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import zarr
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec
from zarr.storage import FsspecStore, StorePath, WrapperStore

from dtl import storage
from dtl.cluster.memory import has_memory
from dtl.config.errors import UserError

_READERS = 16
"""Threads that read small files; they wait for the storage."""

_LEVEL = 1
"""Of compression: a higher one takes longer to compress than it saves in writing."""

MayBeAbsent = Callable[[int], bool]
"""Whether a file, by its number, may be missing: then its rows have the fill value."""


class DamagedError(UserError):
    """A file of a feature store that is missing, or holds something else than was written."""


class ArrayLayout(NamedTuple):
    """How one array lies in files, along its rows."""

    shape: tuple[int, ...]
    dtype: str
    fill_value: Any
    chunk_rows: int
    shard_rows: int | None
    """Rows of a file of several chunks, a Zarr shard; None: each chunk is a file."""
    dimension_names: tuple[str, ...]


class Arrays:
    """The arrays of a Zarr group, each file of which is checked as it is read.

    Whoever opens them may set: `advice`, which ends the message about a file that is missing or
    damaged, and `dtypes` that arrays must have. Chunks of fill values are written, too, so that
    none is missing.
    """

    def __init__(self, url: str, group: zarr.Group) -> None:
        self.url, self.group = url, group
        self.advice = ""
        self.dtypes: Mapping[str, str] = {}
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._no_fill = _NoFill(_backing(url))

    @classmethod
    def create(cls, url: str, attributes: Mapping[str, Any]) -> Arrays:
        """Make an empty group."""
        group = zarr.create_group(_backing(url), zarr_format=3, attributes=dict(attributes))
        return cls(url, group)

    @classmethod
    def open(cls, url: str) -> Arrays:
        """Open a group; without a zarr.json `FileNotFoundError`, with another `ValueError`."""
        try:
            return cls(url, zarr.open_group(_backing(url), mode="r+", zarr_format=3))
        except OSError:
            raise
        except Exception as error:  # Zarr raises whatever a wrong zarr.json leads to
            raise ValueError(f"its zarr.json is damaged ({error}).") from error

    def __contains__(self, name: str) -> bool:
        return storage.exists(storage.join(self.url, f"{name}/zarr.json"))

    def list_names(self) -> list[str]:
        """List the arrays, also those whose description is missing or damaged."""
        return [name for name in storage.list_names(self.url) if name != "zarr.json"]

    def array(self, name: str) -> zarr.Array[Any]:
        """Return an array as Zarr has it: what is missing has the fill value."""
        if name not in self._arrays:
            try:
                found: Any = self.group[name]
                self._check_description(name, found)
            except KeyError:
                raise self._damaged(f"{name}/zarr.json") from None
            except OSError:
                raise
            except Exception as error:  # Zarr raises whatever a wrong zarr.json leads to
                raise self._damaged(f"{name}/zarr.json", error) from error
            self._arrays[name] = found
        return self._arrays[name]

    def _check_description(self, name: str, array: Any) -> None:
        if not isinstance(array, zarr.Array):
            raise TypeError("it describes no array")
        if 0 in (*array.chunks, *(array.shards or ())) or not array.shape:
            raise ValueError(f"it describes {array.shape} in chunks of {array.chunks}")
        found, wanted = _name(array.dtype), self.dtypes.get(name)
        if wanted not in (None, found):
            raise ValueError(f"it describes {found} instead of {wanted}")
        for other in list(self._arrays.values()):  # which other threads add to
            if (array.shape[0], array.chunks[0]) != (other.shape[0], other.chunks[0]):
                raise ValueError(
                    f"it describes {array.shape[0]} rows in chunks of {array.chunks[0]}, and that "
                    f"of {other.path} {other.shape[0]} in chunks of {other.chunks[0]}"
                )

    def create_array(self, name: str, layout: ArrayLayout) -> None:
        """Make an array; files of it that are there already stay."""
        n_rows, *others = layout.shape
        self._arrays[name] = self.group.create_array(
            name,
            shape=(n_rows, *others),
            dtype=layout.dtype,
            chunks=(layout.chunk_rows, *others),
            shards=None if layout.shard_rows is None else (layout.shard_rows, *others),
            compressors=ZstdCodec(level=_LEVEL, checksum=True),  # which finds flipped bytes
            fill_value=layout.fill_value,
            dimension_names=layout.dimension_names,
        )

    def fits(self, name: str, layout: ArrayLayout) -> bool:
        """Return whether an array is there, and lies in files as it should."""
        try:
            array = self.array(name)
        except DamagedError:
            return False
        n_rows, *others = array.shape
        shard_rows = None if array.shards is None else array.shards[0]
        found = ((n_rows, *others), array.chunks, shard_rows, _name(array.dtype))
        chunks = (layout.chunk_rows, *others)
        return found == (layout.shape, chunks, layout.shard_rows, layout.dtype)

    def read_attributes(self, name: str) -> dict[str, Any]:
        """Read the attributes of an array as they are now."""
        self._arrays.pop(name, None)
        return dict(self.array(name).attrs)

    def remove_array(self, name: str) -> None:
        """Remove the description of an array; its files stay."""
        self._arrays.pop(name, None)
        storage.remove(storage.join(self.url, f"{name}/zarr.json"))

    def files(self, name: str) -> list[slice]:
        """List the rows of each file of an array, in order."""
        array = self.array(name)
        n_rows, file_rows = array.shape[0], (array.shards or array.chunks)[0]
        return [slice(i, min(i + file_rows, n_rows)) for i in range(0, n_rows, file_rows)]

    def file_url(self, name: str, file: int) -> str:
        """Return where a file of an array lies."""
        return storage.join(self.url, self._key(name, file))

    def list_files(self, name: str) -> set[int]:
        """List the files of a column that are there, by number."""
        found = storage.list_names(storage.join(self.url, f"{name}/c"))
        return {int(n) for n in found if n.isdecimal()}

    def remove_file(self, name: str, file: int) -> None:
        """Remove a file of an array, if it is there."""
        storage.remove(self.file_url(name, file))

    def remove_files(self, name: str) -> None:
        """Remove all files of an array; its description stays."""
        storage.remove(storage.join(self.url, f"{name}/c"))

    def read(
        self, name: str, rows: slice | None = None, may_be_absent: MayBeAbsent | None = None
    ) -> NDArray[Any]:
        """Read rows of an array.

        Raises
        ------
        DamagedError
            If a file is damaged, or missing and `may_be_absent` does not allow it.
        OSError
            If the storage failed.
        """
        array = self.array(name)
        if rows is None:
            rows = slice(0, array.shape[0])
            if array.ndim == 1 and array.shards is None and array.dtype.kind in "iu":
                return self._read_small_files(name, may_be_absent)
        if may_be_absent is None:
            try:
                return self._read_strictly(name, rows)
            except OSError:
                raise
            except Exception:
                pass  # found out below, file by file, so that the message names one
        parts = []
        for file, of_file in enumerate(self.files(name)):
            start, stop = max(rows.start, of_file.start), min(rows.stop, of_file.stop)
            if start < stop:
                parts.append(self._read_file(name, file, slice(start, stop), may_be_absent))
        return np.concatenate(parts) if parts else np.asarray(array[rows])

    def write(self, name: str, rows: slice, values: Any) -> None:
        """Write rows: all of a file, or of several."""
        self.array(name).with_config({"write_empty_chunks": True})[rows] = values

    def replace(self, name: str, values: Any) -> None:
        """Write all rows of an array in place of those that are there."""
        for file in range(len(self.files(name))):
            self.remove_file(name, file)  # Zarr would read it to write it
        self.write(name, slice(None), values)

    def extend(self, name: str, n_rows: int) -> None:
        """Give an array more rows, which have the fill value."""
        self._arrays.clear()  # the others may still have fewer
        array = self.array(name)
        array.resize((n_rows, *array.shape[1:]))
        self._arrays.clear()

    def _read_strictly(self, name: str, rows: slice) -> NDArray[Any]:
        array = self.array(name)
        place = StorePath(self._no_fill, array.path)
        strict: zarr.Array[Any] = zarr.Array(zarr.AsyncArray(array.metadata, store_path=place))
        values = np.asarray(strict[rows])
        # A chunk may be missing inside of a file, too. Its fill value is one that no row has.
        if array.shards is not None and (values == array.fill_value).any():
            raise ValueError("a chunk in it is missing")
        return values

    def _read_file(
        self, name: str, file: int, rows: slice, may_be_absent: MayBeAbsent | None
    ) -> NDArray[Any]:
        try:
            return self._read_strictly(name, rows)
        except OSError:
            raise
        except MemoryError as error:
            if not has_memory(self._enough_memory(name)):
                raise
            # Damaged texts ask for any amount: before them stands how many they are.
            raise self._damaged(self._key(name, file), error) from error
        except _MissingError:
            if may_be_absent is None or not may_be_absent(file):
                raise self._damaged(self._key(name, file)) from None
            return np.asarray(self.array(name)[rows])
        except Exception as error:
            raise self._damaged(self._key(name, file), error) from error

    def _enough_memory(self, name: str) -> int:
        """Return bytes that suffice by far to read a file that is whole."""
        array = self.array(name)
        return max(1 << 28, 4 * math.prod(array.shards or array.chunks) * array.dtype.itemsize)

    def _read_small_files(self, name: str, may_be_absent: MayBeAbsent | None) -> NDArray[Any]:
        """Read a column of many small files; Zarr takes a millisecond for each."""
        array, files = self.array(name), self.files(name)
        values = np.full(array.shape, array.fill_value, array.dtype)
        chunk_rows, stored = array.chunks[0], array.dtype.newbyteorder("<")
        there = range(len(files)) if may_be_absent is None else self.list_files(name)

        def read(file: int) -> None:
            try:
                data = storage.read_bytes(self.file_url(name, file))
                decoded = np.frombuffer(Zstd().decode(data), stored)
                if len(decoded) != chunk_rows:
                    raise ValueError(f"{len(decoded)} rows instead of {chunk_rows}")
            except FileNotFoundError:
                raise self._damaged(self._key(name, file)) from None
            except (OSError, MemoryError):
                raise
            except Exception as error:
                raise self._damaged(self._key(name, file), error) from error
            values[files[file]] = decoded[: files[file].stop - files[file].start]

        def read_each(share: Sequence[int]) -> None:
            for file in share:
                read(file)

        with ThreadPoolExecutor(_READERS) as pool:
            for file in range(len(files)):
                if file not in there and not (may_be_absent and may_be_absent(file)):
                    raise self._damaged(self._key(name, file))
            # A share for each thread: a task for each file would take longer than to read it.
            list(pool.map(read_each, (sorted(there)[i::_READERS] for i in range(_READERS))))
        return values

    def _key(self, name: str, file: int) -> str:
        array = self.array(name)
        coordinates = (file, *(0 for _ in array.shape[1:]))
        return f"{name}/{array.metadata.encode_chunk_key(coordinates)}"

    def _damaged(self, key: str, error: Exception | None = None) -> DamagedError:
        what = "is missing" if error is None else f"is damaged ({str(error) or repr(error)})"
        return DamagedError(f"{storage.join(self.url, key)} {what}. {self.advice}")


def count_stored_bytes(values: NDArray[Any]) -> int:
    """Return how many bytes a file of a layer's rows has."""
    return len(Zstd(level=_LEVEL, checksum=True).encode(np.ascontiguousarray(values)))


class _MissingError(Exception):
    """A chunk's file is not there."""


class _NoFill(WrapperStore[FsspecStore]):
    """Store that gives no fill value: a chunk's file that is missing is an error."""

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        value = await self._store.get(key, *args, **kwargs)
        if "/c/" in key:
            if value is None:
                raise _MissingError(key)
            if not len(value):  # which Zarr takes for a missing one in places
                raise ValueError("it is empty")
        return value


def _name(dtype: np.dtype[Any]) -> str:
    return "str" if dtype.kind == "T" else dtype.name


class _Guarded(FsspecStore):
    """Store whose changes pass the guards of its folder."""

    url = ""

    async def set(self, *args: Any, **kwargs: Any) -> None:
        await asyncio.to_thread(storage.check_guards, self.url)
        await super().set(*args, **kwargs)

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(storage.check_guards, self.url)
        await super().delete(key)


def _backing(url: str) -> FsspecStore:
    fs, path = storage.asynchronous(url)
    store = _Guarded(fs, path=path)
    store.url = url
    return store
