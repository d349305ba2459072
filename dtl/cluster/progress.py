"""Progress of a long stage: a bar on a terminal, a line now and then in a log, the live page."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dtl.cluster import live

log = logging.getLogger(__name__)

_LINE_EVERY_S = 15.0


class Advance(Protocol):
    """Callback that takes how many units were done since its last call, and a note to show."""

    def __call__(self, n: int, note: str = "") -> None:
        """Count `n` more units as done."""


@contextmanager
def track(stage: str, total: int, unit: str, *, show: bool = True) -> Iterator[Advance]:
    """Show how far a stage is while the block runs.

    Parameters
    ----------
    unit : str
        Plural noun of the `total` things.

    Examples
    --------
    >>> with track("features", total=2, unit="images", show=False) as advance:
    ...     advance(1)
    ...     advance(1, "1 skipped")
    """
    started = last = time.monotonic()
    done = 0
    bar = _make_bar() if show and sys.stderr.isatty() else None
    with bar or nullcontext():
        task = bar.add_task(stage, total=total, note="", speed="") if bar else None

        def advance(n: int, note: str = "") -> None:
            nonlocal done, last
            done += n
            now = time.monotonic()
            per_second = done / max(now - started, 1e-9)
            speed = f"{per_second:.1f} {unit}/s"
            if show:
                so_far = {"name": stage, "unit": unit, "done": done, "total": total, "note": note}
                live.tell("stage", of=stage, **so_far)
            if bar and task is not None:
                bar.update(task, advance=n, note=note, speed=speed)
            elif show and (now - last >= _LINE_EVERY_S or done == total):
                last = now
                left = f", {(total - done) / per_second:.0f} s left" if 0 < done < total else ""
                note = f"; {note}" if note else ""
                log.info("%s: %d of %d %s, %s%s%s", stage, done, total, unit, speed, left, note)

        yield advance


def _make_bar() -> Progress:
    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
