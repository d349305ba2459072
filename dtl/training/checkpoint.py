"""What work that is killed goes on from: for a training, parameters and history after a round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

from dtl import storage
from dtl.config.provenance import differences
from dtl.head.npz import from_npz, to_npz, whole
from dtl.head.softmax import Params
from dtl.training.values import Round


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
        meta = {"seconds": self.seconds, "provenance": self.provenance}
        history = {f.name: [getattr(row, f.name) for row in self.history] for f in fields(Round)}
        return to_npz(meta, {"params": self.params, "best": self.best, "history": history})

    @classmethod
    def from_bytes(cls, data: bytes) -> Checkpoint:
        """Read what `to_bytes` wrote.

        Raises
        ------
        ValueError
            For other or damaged bytes.
        """
        with whole():
            meta, groups = from_npz(data)
            columns = {key: value.tolist() for key, value in groups["history"].items()}
            columns["shard_loss"] = [tuple(losses) for losses in columns["shard_loss"]]
            return cls(
                params=groups["params"],
                best=groups.get("best", {}),
                history=tuple(
                    Round(**dict(zip(columns, row, strict=True)))
                    for row in zip(*columns.values(), strict=True)
                ),
                seconds=float(meta["seconds"]),
                provenance=meta["provenance"],
            )


class Kept(Protocol):
    """What was done so far, and all that it follows from."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """As JSON's types."""


Some = TypeVar("Some", bound=Kept)


def resume(
    url: str, asked: Mapping[str, Any], read: Callable[[bytes], Some], *, overwrite: bool = False
) -> Some | None:
    """What there is to go on from at a URL.

    Parameters
    ----------
    asked : dict
        The provenance of what is to go on.
    read : callable
        Reads the file's bytes; ValueError for those that it did not write.
    overwrite : bool
        Leave one alone that cannot be used.

    Raises
    ------
    ValueError
        If it is of other settings, naming each difference, or damaged.
    """
    if not storage.exists(url):
        return None
    try:
        found = read(storage.read_bytes(url))
        if other := differences(asked, found.provenance):
            raise ValueError("It was made with other settings:\n  " + "\n  ".join(other))
    except ValueError as error:
        if overwrite:
            return None
        raise ValueError(
            f"Cannot go on from {url}. {error}\nGive the settings that it was made with, or remove "
            "that file to start again."
        ) from error
    return found


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
        """The checkpoint to go on from, if there is one; as `resume`."""
        return resume(self.url, self.provenance, Checkpoint.from_bytes, overwrite=overwrite)

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
