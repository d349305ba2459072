"""Schedules: what rounds and rates add up to, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtl.config import TrainConfig
from dtl.config.sections import parse_steps
from dtl.head.schedules import Plan, round_lengths, with_batch_size


@given(st.integers(1, 3000), st.integers(1, 60), st.integers(1, 60))
def test_rounds_cover_all_steps_and_get_shorter(n_steps: int, first: int, last: int) -> None:
    last = min(first, last)
    lengths = round_lengths(n_steps, first, last)
    assert sum(lengths) == n_steps
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == min(first, n_steps)
    assert min(lengths[:-1], default=last) >= last  # only what is left may be less


def test_rounds_shrink_geometrically() -> None:
    lengths = round_lengths(100_000, 64, 1)
    quarter = [0, 0, 0, 0]
    done = 0
    for length in lengths:
        quarter[min(done * 4 // 100_000, 3)] += 1
        done += length
    # Rounds in a part of the training are the integral of 1 / frequency; each is 64 ** (1/4) more.
    for earlier, later in itertools.pairwise(quarter):
        assert later / earlier == pytest.approx(64**0.25, rel=0.1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"schedule": "constant"}, {0: 0.1, 20: 0.1, 39: 0.1}),
        ({"schedule": "cosine"}, {0: 0.1, 20: 0.05, 30: 0.014645, 39: 0.000154}),
        ({"schedule": "exponential"}, {0: 0.1, 20: 0.01, 30: 0.003162}),
        (
            {"schedule": "steps", "learning_rate_steps": "10:0.01,20:0.001"},
            {0: 0.1, 9: 0.1, 10: 0.01, 19: 0.01, 20: 0.001, 39: 0.001},
        ),
        (
            {"schedule": "constant", "warmup_epochs": 4.0},
            {0: 0.025, 1: 0.05, 3: 0.1, 4: 0.1, 9: 0.1},
        ),
        ({"schedule": "cosine", "warmup_epochs": 20.0}, {0: 0.005, 20: 0.1, 30: 0.05}),
    ],
)
def test_rates_follow_the_schedule(options: dict[str, Any], expected: dict[int, float]) -> None:
    config = TrainConfig(epochs=40, batch_size=10, learning_rate=0.1, **options)
    plan = Plan.make(np.array([10]), config, 0)  # a step is an epoch
    rates = [rate for index in range(plan.n_rounds) for rate in plan.learning_rates(index)]
    assert {step: rates[step] for step in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "a pair is not of two numbers"),
        ("10", "a pair is not of two numbers"),
        ("1:2:3", "a pair is not of two numbers"),
        ("10:x", "a pair is not of two numbers"),
        ("10:0.1,", "a pair is not of two numbers"),
        ("20:0.1,10:0.2", "the epochs do not grow"),
        ("10:0.1,10:0.2", "the epochs do not grow"),
        ("-1:0.1", "an epoch is below 0"),
        ("nan:0.1", "an epoch is below 0 or not finite"),
        ("1:0", "a rate is not above 0"),
        ("1:inf", "a rate is not above 0, or not finite"),
    ],
)
def test_steps_that_are_none(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=rf"steps must be epoch:rate.*{told}"):
        parse_steps(text)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"averaging_frequency_end": 11}, r"averaging_frequency_end must be at most .* = 10"),
        ({"warmup_epochs": 40.0}, r"warmup_epochs must be below train.epochs = 40"),
        ({"schedule": "steps"}, r"schedule = steps and train.learning_rate_steps go together"),
        ({"learning_rate_steps": "1:0.1"}, r"go together\. Received: schedule = cosine"),
        ({"schedule": "steps", "learning_rate_steps": "1"}, r"learning_rate_steps must be epoch"),
        (
            {"schedule": "steps", "learning_rate_steps": "1:0.1,40:0.1"},
            r"a rate for epoch 40, but training ends after train.epochs = 40",
        ),
        ({"solver": "lbfgs", "dropout": 0.5}, r"train.dropout is for train.solver = averaging"),
        ({"solver": "lbfgs", "class_weights": "balanced"}, r"train.class_weights is for"),
        ({"optimizer": "adamw"}, r"train.optimizer must be one of nesterov, adam"),
        ({"outer_momentum": 1.0}, r"outer_momentum must be from 0 to below 1"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TrainConfig(**options)


@pytest.mark.parametrize("most", [0, 1, 511, 1023, 1024, 2047, 2048, 10**6])
def test_batches_grow_with_the_rows_of_a_replica(most: int) -> None:
    n_rows = np.array([most, most // 2, 0])
    size = with_batch_size(TrainConfig(), n_rows).batch_size
    assert size in (32, 64, 128)
    assert size == 32 or most / size >= 16
    assert size == 128 or most / (2 * size) < 16
    given_size = TrainConfig(batch_size=7)
    assert with_batch_size(given_size, n_rows) is given_size


def test_a_plan_has_the_batches_that_follow_from_its_rows() -> None:
    plan = Plan.make(np.array([900, 1100]), TrainConfig(epochs=1.0), 0)
    assert plan.config.batch_size == plan.steps(0).config.batch_size == 64
    assert plan.first_steps[-1] == 18  # of the larger shard
