"""Checkpoints: files that interrupted work goes on from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from dtl import storage
from dtl.config.plain import from_plain
from dtl.config.provenance import Claim, claim
from dtl.head.npz import from_npz, join_groups, reading, split_groups, to_npz
from dtl.head.softmax import Params
from dtl.storage.ledger import read_parsed
from dtl.training.values import Round, from_columns, to_columns


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A training after a round.

    Parameters
    ----------
    params : Params
        Weights and the optimizer's state that the next round starts from.
    best : Params
        The weights of the best validation so far; empty before the first.
    history : tuple of Round
        The rounds so far, at least one.
    seconds : float
        Of training so far.
    """

    params: Params
    best: Params
    history: tuple[Round, ...]
    seconds: float
    provenance: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """Return the bytes of an .npz file, without pickles."""
        groups: dict[str, Any] = {"params": self.params, "best": self.best}
        groups["history"] = to_columns(self.history)
        meta = {"seconds": self.seconds, "provenance": self.provenance}
        return to_npz(join_groups(groups), meta)

    @classmethod
    def from_bytes(cls, data: bytes) -> Checkpoint:
        """Read what `to_bytes` wrote; other or damaged bytes are a `UserError`."""
        with reading("checkpoint"):
            arrays, meta = from_npz(data)
            groups = split_groups(arrays)
            history = {name: column.tolist() for name, column in groups["history"].items()}
            return cls(
                params=groups["params"],
                best=groups.get("best", {}),
                history=tuple(from_columns(history)),
                seconds=from_plain(float, meta["seconds"], "seconds"),
                provenance=from_plain(dict[str, Any], meta["provenance"], "provenance"),
            )


class Resumable(Protocol):
    """Work that can go on where it was interrupted."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The fingerprint of its result, as JSON's types."""


_Resumable = TypeVar("_Resumable", bound=Resumable)


def resume(
    url: str,
    wanted: Mapping[str, Any],
    from_bytes: Callable[[bytes], _Resumable],
    *,
    overwrite: bool = False,
) -> _Resumable | None:
    """Read the work at a URL to go on from, if there is any.

    Parameters
    ----------
    wanted : dict
        The fingerprint of the work that is to go on.
    from_bytes : callable
        Reads the file's bytes; raises UserError for damaged ones.
    overwrite : bool
        Begin again instead of raising for other settings.

    Raises
    ------
    DifferentSettingsError
        If it follows from other settings, naming each difference.
    UserError
        If it is damaged.
    """
    found = read_parsed(url, from_bytes, "Remove it to start again.")
    if found is None:
        return None
    decision = claim(
        wanted, found.provenance, url, overwrite=overwrite,
        # `overwrite` would replace features, too.
        advice="Give the settings as they were, or remove that file to start again.",
    )  # fmt: skip
    return None if decision is Claim.REPLACE else found


class Keeper:
    """The checkpoint of one training: one file, which is replaced as the training goes on.

    A thread writes it, while the training goes on. Use it as a context, which ends when all is
    written. `found` is the checkpoint to go on from, as `resume` reads it.
    """

    def __init__(self, url: str, provenance: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.found = resume(url, provenance, Checkpoint.from_bytes, overwrite=overwrite)
        self._url, self._provenance = url, provenance
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dtl-checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)
        self._finish()

    def save(self, params: Params, best: Params, history: list[Round], seconds: float) -> None:
        """Start to write a checkpoint, once the one before it is written, or raise its error."""
        made = Checkpoint(params, best, tuple(history), seconds, self._provenance)
        self._finish()
        self._writing = self._thread.submit(lambda: storage.write_bytes(self._url, made.to_bytes()))

    def remove(self) -> None:
        """Remove the checkpoint, if there is one."""
        self._finish()
        storage.remove(self._url)

    def _finish(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()
