"""What a training that is killed goes on from: its parameters and history after some round."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from dtl import storage
from dtl.softmax import Params
from dtl.types import Round, differences


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A training after a round.

    Parameters
    ----------
    params : Params
        All that the next round starts from.
    best : Params
        The weights of the best validation so far; empty before the first.
    history : tuple of Round
        The rounds so far, at least one.
    seconds : float
        What they took.
    provenance : dict
        All that the head will follow from, as JSON's types.
    """

    params: Params
    best: Params
    history: tuple[Round, ...]
    seconds: float
    provenance: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """The bytes of an .npz file, without pickles."""
        meta = json.dumps({"seconds": self.seconds, "provenance": self.provenance})
        arrays = {
            "meta": np.frombuffer(meta.encode(), np.uint8),
            **{f"params.{name}": value for name, value in self.params.items()},
            **{f"best.{name}": value for name, value in self.best.items()},
        }
        for field in fields(Round):
            column = [getattr(row, field.name) for row in self.history]
            arrays[f"history.{field.name}"] = np.array(column)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Checkpoint:
        """Read what `to_bytes` wrote.

        Raises
        ------
        ValueError
            For other or damaged bytes.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = dict(file)
            meta = json.loads(arrays.pop("meta").tobytes())
            groups: dict[str, dict[str, Any]] = {"params": {}, "best": {}, "history": {}}
            for name, value in arrays.items():
                group, _, key = name.partition(".")
                groups[group][key] = value
            columns = {key: value.tolist() for key, value in groups["history"].items()}
            columns["shard_loss"] = [tuple(losses) for losses in columns["shard_loss"]]
            return cls(
                params=groups["params"],
                best=groups["best"],
                history=tuple(
                    Round(**dict(zip(columns, row, strict=True)))
                    for row in zip(*columns.values(), strict=True)
                ),
                seconds=float(meta["seconds"]),
                provenance=meta["provenance"],
            )
        except (*_DAMAGES, zipfile.BadZipFile) as error:
            raise ValueError(f"Not a whole checkpoint that dtl wrote: {error}.") from error


_DAMAGES = (
    ValueError, KeyError, IndexError, TypeError, OSError, EOFError, RuntimeError, struct.error
)  # fmt: skip
"""What NumPy, JSON and zipfile raise for bytes that are not what they were."""


class Keeper:
    """The checkpoint of one training: one file, which is replaced as the training goes on.

    It is written by a thread, while the training goes on. Use it as a context, which ends when all
    is written.

    Parameters
    ----------
    url : str
    provenance : dict
        Of the training.
    """

    def __init__(self, url: str, provenance: Mapping[str, Any]) -> None:
        self.url = url
        self.provenance = provenance
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dtl-checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)
        self._finish()

    def load(self, *, overwrite: bool = False) -> Checkpoint | None:
        """The checkpoint to go on from, if there is one.

        Parameters
        ----------
        overwrite : bool
            Leave one alone that cannot be used.

        Raises
        ------
        ValueError
            If it is of other settings, naming each difference, or damaged.
        """
        if not storage.exists(self.url):
            return None
        try:
            found = Checkpoint.from_bytes(storage.read_bytes(self.url))
            if other := differences(self.provenance, found.provenance):
                raise ValueError(
                    "It is of a training with other settings:\n  " + "\n  ".join(other)
                )
        except ValueError as error:
            if overwrite:
                return None
            raise ValueError(
                f"Cannot go on from {self.url}. {error}\nGive the settings that it was made with, "
                "or --overwrite to start the training again."
            ) from error
        return found

    def save(self, params: Params, best: Params, history: list[Round], seconds: float) -> None:
        """Start to write a checkpoint, once the one before it is written.

        Raises
        ------
        OSError
            If the one before could not be written.
        """
        made = Checkpoint(params, best, tuple(history), seconds, self.provenance)
        self._finish()
        self._writing = self._thread.submit(lambda: storage.write_bytes(self.url, made.to_bytes()))

    def remove(self) -> None:
        """Remove the checkpoint, if there is one."""
        self._finish()
        storage.remove(self.url)

    def _finish(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()
