"""What the live page shows, kept in bounded memory from the events of a run."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

_MOST_ROUNDS = 2000
"""Rounds that are kept: of more, every second, then every fourth, and so on; and the last one."""

_MOST_CELLS = 1000
"""Cells of the grid of chunks: of more chunks, each stands for several."""

_MOST_SHARDS = 1000
_SMOOTHED = 20
"""Rounds that the means of a task's seconds are of, or so."""
_ROUNDS_AT_ONCE = 4
"""Rounds of which the end of the slowest task is known."""
_MOST_SKIPPED, _MOST_STAGES = 50, 100

SERIES = (
    "round", "epoch", "loss", "train_accuracy", "validation_accuracy", "validation_loss",
    "update_ratio", "spread", "step_s", "average_s", "wait_s",
)  # fmt: skip
"""Fields of `dtl.training.values.Round` that the page draws."""


class State:
    """A run as its events have told it so far.

    Each event is a dict with its ``kind`` and the time ``at`` which it happened, in seconds since
    1970; the methods `on_…` say what else it has.

    Examples
    --------
    >>> state = State()
    >>> state.add({"kind": "round", "at": 0.0, "round": 1, "loss": 2.5, "shard_loss": [2.0, 3.0]})
    >>> state.to_dict()["rounds"]["loss"]
    [2.5]
    """

    def __init__(self) -> None:
        self._clear(time.time())

    def _clear(self, at: float) -> None:
        self._began = self._now = at
        self._ended: float | None = None
        self._stages: dict[str, dict[str, Any]] = {}
        self._rounds: list[list[float | None]] = []
        self._last: list[float | None] | None = None
        self._stride, self._n_told, self._n_rounds = 1, 0, 0
        self._shard_loss: list[float | None] = []
        self._steps: dict[int, dict[str, Any]] = {}
        self._ends: dict[str, float] = {}
        self._n_chunks, self._cells, self._sizes = 0, [0], [0]
        self._n_skipped = 0
        self._skipped: deque[tuple[str, str]] = deque(maxlen=_MOST_SKIPPED)

    def add(self, event: Mapping[str, Any]) -> None:
        """Take an event; one of an unknown kind is passed over, for another dtl may send it."""
        take = getattr(self, f"on_{event['kind']}", None)
        if take is not None:
            values = {name: value for name, value in event.items() if name not in ("kind", "at")}
            self._now = float(event["at"])
            with contextlib.suppress(TypeError):  # fields of another dtl
                take(**values)

    def on_begin(self) -> None:
        """Forget the run before."""
        self._clear(self._now)

    def on_end(self) -> None:
        """Note that the run has ended."""
        self._ended = self._now

    def on_stage(self, name: str, unit: str, done: int, total: int, note: str = "") -> None:
        """Note how far a stage is; a stage that begins again, as each trial's, is one."""
        known = self._stages.get(name)
        if known is None or done < known["done"]:
            if len(self._stages) >= _MOST_STAGES:
                return
            # What is done when it is first heard of took no time: a training may be a resumed one.
            known = self._stages[name] = {"name": name, "began": self._now, "before": done}
        known.update(unit=unit, done=done, total=total, note=note, at=self._now)

    def on_round(self, *, shard_loss: Iterable[float] = (), **values: Any) -> None:
        """Take a round of training."""
        row = [_finite(values.get(name)) for name in SERIES]
        self._last, self._shard_loss = row, [_finite(x) for x in [*shard_loss][:_MOST_SHARDS]]
        if self._n_told % self._stride == 0:
            self._rounds.append(row)
        self._n_told, self._n_rounds = self._n_told + 1, int(row[0] or 0)
        if len(self._rounds) >= _MOST_ROUNDS:
            self._rounds = self._rounds[::2]
            self._stride *= 2

    def on_training(self) -> None:
        """Forget the rounds of a training before: another one begins."""
        self._rounds, self._last = [], None
        self._stride, self._n_told, self._n_rounds = 1, 0, 0
        self._steps.clear()
        self._ends.clear()

    def on_chunks(self, n: int, pending: Iterable[Iterable[int]]) -> None:
        """Take the number of a store's chunks, and [first, end) of those that are not done."""
        self._n_chunks, n_cells = n, max(1, min(n, _MOST_CELLS))
        self._sizes = [0] * n_cells
        for chunk in range(n):
            self._sizes[chunk * n_cells // n] += 1
        self._cells = [*self._sizes]
        for first, end in pending:
            for chunk in range(first, end):
                self._cells[chunk * n_cells // n] -= 1

    def on_chunk(self, chunk: int, n_skipped: int) -> None:
        """Note that a chunk is done, and how many images were skipped in all."""
        if chunk < self._n_chunks:
            cell = chunk * len(self._cells) // self._n_chunks
            self._cells[cell] = min(self._cells[cell] + 1, self._sizes[cell])
        self._n_skipped = n_skipped

    def on_skipped(self, path: str, reason: str) -> None:
        """Take an image that could not be read."""
        self._skipped.append((path, reason))

    def add_step(self, round_: str, group: int, worker: str, began: float, ended: float) -> None:
        """Take a task that trained a group of neighbouring shards in a round, in turn.

        Until the group's next one it waits for the round's slowest task, and then for the average,
        for one round's steps begin when the steps of the one before are averaged.
        """
        known = self._steps.get(group)
        if known is None:
            if len(self._steps) >= _MOST_SHARDS:
                return
            known = self._steps[group] = {"n": 0, "step": 0.0, "wait": 0.0, "average": 0.0}
        elif known["round"] in self._ends and known["round"] != round_:
            slowest = self._ends[known["round"]]
            _smooth(known, "wait", max(slowest - known["ended"], 0.0), known["n"])
            _smooth(known, "average", max(began - slowest, 0.0), known["n"])
        known["n"] += 1
        _smooth(known, "step", ended - began, known["n"])
        known.update(worker=worker, round=round_, ended=ended)
        self._ends[round_] = max(self._ends.pop(round_, ended), ended)
        while len(self._ends) > _ROUNDS_AT_ONCE:
            self._ends.pop(next(iter(self._ends)))

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, of JSON's types."""
        rows = self._rounds
        if self._last is not None and (not rows or rows[-1] is not self._last):
            rows = [*rows, self._last]
        columns = zip(*rows, strict=True) if rows else ([] for _ in SERIES)
        return {
            "began": self._began,
            "ended": self._ended,
            "stages": [*self._stages.values()],
            "rounds": {name: [*column] for name, column in zip(SERIES, columns, strict=True)},
            "n_rounds": self._n_rounds,
            "every": self._stride,
            "shard_loss": self._shard_loss,
            "steps": [{"group": group, **self._steps[group]} for group in sorted(self._steps)],
            "n_chunks": self._n_chunks,
            "cells": [done / size if size else 0 for done, size in zip(
                self._cells, self._sizes, strict=True)] if self._n_chunks else [],
            "n_skipped": self._n_skipped,
            "skipped": [*self._skipped],
        }  # fmt: skip


def _finite(value: Any) -> float | None:
    """Return a number that JSON has, or None."""
    return float(value) if value is not None and math.isfinite(value) else None


def _smooth(known: dict[str, Any], name: str, value: float, n: int) -> None:
    """Take the n-th value into a mean that forgets old ones."""
    known[name] += (value - known[name]) / min(n, _SMOOTHED)
