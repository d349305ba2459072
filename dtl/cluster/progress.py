"""Progress of a long stage: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    started = time.monotonic()
    done = 0
    if show and sys.stderr.isatty():
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(stage, total=total, note="", speed="")

            def advance_bar(n: int, note: str = "") -> None:
                nonlocal done
                done += n
                speed = f"{done / max(time.monotonic() - started, 1e-9):.1f} {unit}/s"
                bar.update(task, advance=n, note=note, speed=speed)

            yield advance_bar
        return
    last = started

    def advance_log(n: int, note: str = "") -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if show and (now - last >= _LINE_EVERY_S or done == total):
            last = now
            speed = done / max(now - started, 1e-9)
            left = f", {(total - done) / speed:.0f} s left" if 0 < done < total else ""
            log.info(
                "%s: %d of %d %s, %.1f %s/s%s%s",
                stage, done, total, unit, speed, unit, left, f"; {note}" if note else "",
            )  # fmt: skip

    yield advance_log
