"""Disturbances of a run, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STAGES = ("listing", "featurize", "train", "evaluate", "report")
CI_SEEDS = range(3)

Kinds = Mapping[str, Sequence[str]]
"""Kinds of disturbances, and the stages in which each may come."""


@dataclass(frozen=True)
class Event:
    """One disturbance.

    It comes when `fraction` of the time that its stage takes undisturbed has passed; some last
    `seconds`, and `pick` chooses among several workers or daemons.
    """

    kind: str
    stage: str
    fraction: float
    seconds: float
    pick: int

    def __str__(self) -> str:
        return f"{self.kind} in {self.stage} at {self.fraction:.2f} ({self.seconds:.1f} s)"


def draw_events(seed: int, kinds: Kinds) -> list[Event]:
    """Draw one event of each kind, in the order in which a run comes to them."""
    rng = random.Random(seed)
    events = [
        Event(
            kind=kind,
            stage=rng.choice(stages),
            fraction=rng.random(),
            # Longer than Dask's and the lock's patience only where time is not short.
            seconds=rng.uniform(1, 3) if seed in CI_SEEDS else rng.choice([1.0, 5.0, 40.0]),
            pick=rng.randrange(1000),
        )
        for kind, stages in kinds.items()
    ]
    return sorted(events, key=lambda event: (STAGES.index(event.stage), event.fraction))
