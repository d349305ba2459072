"""The forecast of a run: its arithmetic, and a dry run that changes nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import COLOURS, CUT, THREADS, Run, contents, draw

from dtl.config import TrainConfig
from dtl.pipeline.forecast import costs, measuring, rehearsal
from dtl.pipeline.forecast.costs import Rates, Work, predict, predict_round
from dtl.training.spec import TrainingSpec
from dtl.training.values import Round

WORK = Work(
    n_images=30_000, n_pending=25_600, chunk_images=256, image_bytes=40_000, row_bytes=16_384,
    n_train=20_000, n_held_out=4000, n_shards=8, steps_per_round=10, n_rounds=780,
    n_validations=30,
)  # fmt: skip
RATES = Rates(
    n_workers=2, n_threads=2, start_s=4, listing_s=1, load_s=5, first_s=1, image_s=0.1,
    stored_bytes=4000, submit_s=0.002, train_s=1, step_s=0.004, round_s=0.05, evaluate_s=0.5,
    report_s=2,
)  # fmt: skip


def test_features_go_by_whole_chunks() -> None:
    # 100 chunks of 25.6 s.
    for n, busiest in ((1, 100), (2, 50), (3, 34), (100, 1), (1000, 1)):
        assert predict(WORK, RATES, n).features_s == pytest.approx(6 + busiest * 25.6)
    few = replace(WORK, n_pending=100)
    assert predict(few, RATES, 10).features_s == pytest.approx(6 + 10)
    assert predict(replace(WORK, n_pending=0), RATES).features_s == 0
    # A driver that takes longer to hand chunks out than workers to compute them.
    slow = replace(RATES, submit_s=1.0)
    assert predict(WORK, slow, 100).features_s == pytest.approx(6 + 100)


def test_rounds_follow_one_another_and_shards_those_of_their_thread() -> None:
    # 8 shards of 0.04 s: by 2 threads four in turn, by 4 two, by 8 or more one.
    for n, turns in ((1, 4), (2, 2), (4, 1), (100, 1)):
        assert predict_round(WORK, RATES, n) == pytest.approx(0.05 + turns * 0.04)
    assert predict(WORK, RATES, 4).train_s == pytest.approx(1 + 780 * 0.09)
    scored = replace(RATES, score_row_s=1e-5)
    assert predict(WORK, scored, 4).train_s - predict(WORK, RATES, 4).train_s == pytest.approx(
        30 * 24_000 * 1e-5 / 8
    )
    read = replace(RATES, read_byte_s=1e-9)
    assert predict(WORK, read, 4).train_s - predict(WORK, RATES, 4).train_s == pytest.approx(
        6 * 30_000 * 16_384e-9 / 8
    )


def test_a_finished_run_only_starts() -> None:
    done = replace(WORK, n_pending=0, n_rounds=0, n_validations=0, evaluates=False, reports=False)
    assert predict(done, RATES).total_s == 5
    assert costs.find_limits(done, RATES) == []


def test_an_iteration_of_the_exact_solver_is_a_product_on_all_threads() -> None:
    exact = replace(WORK, steps_per_round=0, round_flop=4e10)
    fast = replace(RATES, flop_s=1e-11)
    for n, threads in ((1, 2), (4, 8), (100, 8)):
        assert predict_round(exact, fast, n) == pytest.approx(0.05 + 0.4 / threads)


def test_limits_are_named_in_their_order() -> None:
    limits = costs.find_limits(WORK, RATES)
    assert [(limit.stage, limit.n_workers) for limit in limits] == [
        ("training", 4), ("features", 100), ("features", 12_800),
    ]  # fmt: skip
    assert "each of 8 replicas has a thread" in limits[0].reason
    assert "56% of a round are its tasks and its average" in limits[0].reason
    assert "100 whole chunks of 256 images" in limits[1].reason
    assert "features.chunk_images = 25 makes 1,024" in limits[1].reason
    assert "hands out 500 chunks per second" in limits[2].reason


def test_rows_in_memory() -> None:
    assert costs.count_rows_in_memory(WORK, RATES, 1) == 24_000 * 16_384
    assert costs.count_rows_in_memory(WORK, RATES, 2) == 24_000 * 16_384 / 2
    assert costs.count_rows_in_memory(WORK, RATES, 100) == 24_000 * 16_384 / 8


def test_the_cost_of_rounds_is_found_again() -> None:
    """Rounds as `predict_round` has them, of 8 shards and 4 threads, give its numbers back."""

    class Spec:
        n_shards = 8
        config = replace(TrainConfig(), averaging_frequency=10)
        split = np.zeros(1000, np.int8)

    def a_round(k: int) -> Round:
        scored = 0.25 if k % 2 else 0.0
        loss = 1.0 if k % 2 else float("nan")
        return Round(k, k, 1.0, (), 0.1, 0.1, 0.1, step_s=0.08, average_s=0.02,
                     wait_s=0.03 + scored, train_loss=loss)  # fmt: skip

    spec: TrainingSpec = Spec  # type: ignore[assignment]
    found = rehearsal.fit_rounds([a_round(k) for k in range(1, 21)], spec, 4)
    assert found.step_s == pytest.approx(0.004)  # two shards in turn took 0.08
    assert found.round_s == pytest.approx(0.05)
    assert found.score_row_s == pytest.approx(0.25 * 4 / 1000)
    assert found.seconds == pytest.approx(20 * 0.13 + 10 * 0.25)


def test_a_dry_run_changes_nothing(
    tmp_path: Path, here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "pictures", COLOURS, 16)
    monkeypatch.setattr(rehearsal, "_ROUNDS_S", 0.1)
    out = tmp_path / "out"
    options = ("--images", tmp_path / "pictures", "--out", out, *CUT, *THREADS)
    done = here("run", "--dry-run", *options)
    assert done.returncode == 0, done.stderr
    assert not out.exists()
    for line in (
        rf"Dry run: nothing was written to {out}\. Done before: nothing\.",
        r"features +48 images in 6 chunks +\S+ s +\d+ ms an image, of 20 computed now",
        r"training +\d+ rounds? of 10 steps, 6 replicas +\S+ s +\d+ ms a round, rehearsed\*",
        r"evaluation +48 rows +\S+ s", r"report +report\.html +\S+ s", r"all +\S+ s",
        r"\* with made-up rows on the workers",
        rf"reads +\d+\.\d KiB from {tmp_path}/pictures",
        rf"writes +\d+\.\d KiB to {out}; .* free",
        r"workers +each takes \d+\.\d GiB for the network and \d+\.\d KiB for rows",
        r"driver +\d+\.\d .iB so far",
        r" 1,000 +\S+ s +\S+ s +\S+ s", r"features from 6 workers on: 6 whole chunks of 8 images",
        r"training from 3 workers on: each of 6 replicas has a thread",
    ):  # fmt: skip
        assert re.search(line, done.stdout), (line, done.stdout)
    assert here("run", *options).returncode == 0
    before = contents(out)
    done = here("run", "--dry-run", *options)
    assert (
        "Done before: features of 48 of 48 images, the head, its scores, the report" in done.stdout
    )
    assert "dashboard" not in done.stderr
    monkeypatch.setattr(measuring, "_see", lambda *_: [False])  # workers on other machines
    other = here("run", "--dry-run", *options, "--train.solver", "lbfgs")
    assert "* with made-up rows on this machine alone, whose folders the workers do" in other.stdout
    assert "Done before: features of 48 of 48 images.\n" in other.stdout
    assert not re.search(r"^features", other.stdout, re.M)
    assert re.search(r"training +L-BFGS, if it takes 100 iterations +\S+ s +\d+ ms", other.stdout)
    refused = here("run", "--dry-run", *options, "--features.layers", "block1_conv1")
    assert refused.returncode == 1
    assert "layers: asked for ['block1_conv1']" in refused.stderr
    assert contents(out) == before
