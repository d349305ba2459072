"""Damaged files of every kind that is read are refused with a message: no hang, crash or traceback.

The seeds are the same every time; `make fuzz` goes on from others.
"""

from __future__ import annotations

import random

import fuzzing
import mutations
import pytest
from readers import READERS, SLOW

N_INPUTS = 100
N_SLOW = 12


@pytest.fixture(scope="module")
def outcomes() -> dict[str, fuzzing.Outcome]:
    """What became of the first seeds of all readers, in one process if none ends it."""
    return fuzzing.fuzz({name: range(N_SLOW if name in SLOW else N_INPUTS) for name in READERS})


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_refused_or_read(name: str, outcomes: dict[str, fuzzing.Outcome]) -> None:
    found = outcomes[name]
    print(name, dict(found.counts))
    assert not found.failures, "\n\n".join(found.failures)
    assert found.counts.total() == (N_SLOW if name in SLOW else N_INPUTS)


@pytest.mark.parametrize("name", READERS)
def test_whole_files_are_what_mutations_begin_with(name: str) -> None:
    reader = READERS[name]
    assert all(isinstance(sample, bytes) for sample in reader.samples())
    inputs = [reader.make_input(name, seed) for seed in range(20)]
    assert len(set(inputs)) > 10
    assert inputs == [reader.make_input(name, seed) for seed in range(20)]


def test_every_mutation_takes_any_bytes() -> None:
    for mutation in mutations.MUTATIONS:
        for data in (b"", b"x", b'{"a": 12}', bytes(2000)):
            for seed in range(20):
                assert isinstance(mutation(random.Random(seed), data, [data, b""]), bytes)
