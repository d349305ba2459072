"""A rehearsal of what follows the features, with made-up rows in a temporary folder.

It trains a few rounds, evaluates and renders a report by the run's own functions, on rows as wide
as the run's, in as many replicas and with batches as large.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dtl.cluster.spread import choose_group_size
from dtl.config import TrainConfig
from dtl.features.store import FeatureStore
from dtl.head.schedules import with_batch_size
from dtl.images.values import NO_SPLIT, SPLITS, ImageList
from dtl.pipeline.forecast.costs import Rates, Work
from dtl.pipeline.results import Results
from dtl.pipeline.run import Run
from dtl.training.spec import TrainingSpec
from dtl.training.values import Round

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("dtl.pipeline")

_FEWEST_ROUNDS, _MOST_ROUNDS, _ROUNDS_S = 12, 80, 3.0
"""Rounds of the rehearsal: as many as take some seconds."""

_TASKS_S = 0.02
"""What the tasks of a round take at least, to begin with."""

_MOST_STEPS = 16
"""Steps of an epoch of a shard in the rehearsal: no more rows are made up."""


def rehearse(
    run: Run, images: ImageList, work: Work, rates: Rates, folder: Path, client: Client
) -> Rates:
    """Train, evaluate and report on made-up rows, and find out what each part takes."""
    if not work.trains and not work.evaluates:
        return rates
    from dtl.evaluation import scoring
    from dtl.neighbours import novelty
    from dtl.pipeline.gather import gather_report
    from dtl.report import page
    from dtl.training import trainer

    log.info("rehearsing the training and the report with made-up rows")
    with _silenced():
        results = Results(str(folder))
        layer = run.options.layer
        store = make_rows(results.features, images, work, layer, run.extraction.options)
        read_byte_s = _time_reading(store, layer)
        spec = TrainingSpec(store, run.options.train, layer, run.options.seed)
        spec = replace(spec, config=shorten(spec, work, rates.flop_s))
        began = time.monotonic()
        trained = trainer.train(spec, client)
        results.write_novelty(novelty.fit_novelty(store, layer, client))
        results.write_head(trained.head, trained.history)
        train_s = time.monotonic() - began
        fitted = fit_rounds(trained.history, spec, _count_threads(client))
        began = time.monotonic()
        scores = scoring.evaluate(store, trained.head, client)
        results.write_evaluation(scores)
        evaluate_s = time.monotonic() - began
        began = time.monotonic()
        gathered = gather_report(results, run.options, store, trained.head, scores)
        page.render(gathered)
        report_s = time.monotonic() - began
    return replace(
        rates, read_byte_s=read_byte_s, evaluate_s=evaluate_s, report_s=report_s,
        step_s=fitted.step_s, round_s=fitted.round_s, score_row_s=fitted.score_row_s,
        train_s=max(train_s - fitted.seconds, 0.0),
    )  # fmt: skip


def shorten(spec: TrainingSpec, work: Work, flop_s: float) -> TrainConfig:
    """Return the options of a training of few rounds, with the batches of the whole one."""
    config = spec.config
    per_shard = np.array([-(-work.n_train // work.n_shards)])
    batch_size = with_batch_size(config, per_shard).batch_size
    steps_per_epoch = math.ceil(int(spec.n_train.max()) / batch_size)
    # Two products for the gradient, and one for the loss, on one thread for all shards.
    flop = 6 * batch_size * work.row_bytes / 4 * len(spec.store.class_names) * work.n_shards
    n_rounds = int(_ROUNDS_S / (flop * config.averaging_frequency * flop_s + _TASKS_S))
    n_rounds = min(max(n_rounds, _FEWEST_ROUNDS), _MOST_ROUNDS)
    epochs = n_rounds * config.averaging_frequency / steps_per_epoch
    return replace(
        config, batch_size=batch_size, epochs=epochs, n_shards=work.n_shards, patience=0,
        warmup_epochs=0.0, schedule="constant", learning_rate_steps="", start_from="",
        hidden_start="random", averaging_frequency_end=0, keep="last", solver="averaging",
    )  # fmt: skip


@dataclass(frozen=True)
class Rounds:
    """The cost of rounds, fitted to some: ``round_s + turns * steps * step_s``, and scores."""

    step_s: float
    round_s: float
    score_row_s: float
    seconds: float
    """Of all of them."""


def fit_rounds(history: Sequence[Round], spec: TrainingSpec, n_threads: int) -> Rounds:
    """Fit the cost of rounds to those of a rehearsal."""
    seconds = [r.step_s + r.average_s + r.wait_s for r in history]
    n_shards = spec.n_shards
    size = choose_group_size(n_shards, n_threads)
    n_in_turn = math.ceil(math.ceil(n_shards / size) / n_threads)
    # The first rounds begin late, and rounds with scores take longer. Means, for some results of
    # rounds that were submitted ahead come together.
    later = list(zip(seconds, history, strict=True))[len(history) // 4 :]
    plain = [s for s, r in later if math.isnan(r.train_loss)]
    scored = [s for s, r in later if not math.isnan(r.train_loss)]
    round_s = float(np.mean(plain or scored))
    steps_s = statistics.median(r.step_s for r in history)  # of a group's shards, one after another
    n_steps = spec.config.averaging_frequency
    n_rows = int((spec.split != NO_SPLIT).sum())
    score_s = max(float(np.mean(scored)) - round_s, 0.0) if plain else 0.0
    return Rounds(
        steps_s / (size * n_steps), max(round_s - n_in_turn * steps_s, 0.0),
        score_s * min(n_threads, n_shards) / max(n_rows, 1), sum(seconds),
    )  # fmt: skip


def _count_threads(client: Client) -> int:
    from dtl.cluster.workers import known_workers

    return sum(int(worker["nthreads"]) for worker in known_workers(client).values())


def make_rows(
    url: str, images: ImageList, work: Work, layer: str, options: Mapping[str, Any]
) -> FeatureStore:
    """Write a store of made-up features of listed images, a chunk for each shard."""
    rng = np.random.default_rng(0)
    n_features = work.row_bytes // 4
    share = max(work.n_train / max(work.n_images, 1), 0.01)
    train_rows = min(-(-work.n_train // work.n_shards), _MOST_STEPS * _BATCH_ROWS)
    per_chunk = max(math.ceil(train_rows / share), 8)
    n_rows = per_chunk * work.n_shards
    rows = np.arange(n_rows) % len(images)
    listed = replace(images.take(rows), left_out=(), empty_folders=())
    attrs = {
        "settings": {**options, "layers": [layer], "precision": ""}, "weights": "made up",
        "weights_sha256": "0", "seed": 0, "root": images.root, "left_out": [], "n_left_out": 0,
        "versions": {},
    }  # fmt: skip
    store = FeatureStore.create(
        url, listed, {layer: n_features}, dtype="float32", chunk_images=per_chunk, attrs=attrs
    )
    for chunk in range(store.n_chunks):
        features = np.maximum(rng.normal(size=(per_chunk, n_features)), 0).astype(np.float32)
        hashes = rng.integers(1, 1 << 63, per_chunk, dtype=np.uint64)
        store.write_chunk(chunk, {layer: features}, hashes, [""] * per_chunk)
    shares = np.array([work.n_train, work.n_held_out], float) / work.n_images
    of_rows = rng.choice(len(SPLITS), n_rows, p=[*shares, max(1 - shares.sum(), 0)])
    store.write_split(of_rows.astype(np.int8), {"made": "for a rehearsal"})
    return store


_BATCH_ROWS = 128


def _time_reading(store: FeatureStore, layer: str) -> float:
    """Return what a byte of stored features takes to be read and decoded, in seconds."""
    store.read(layer, 0)
    began = time.perf_counter()
    values = [store.read(layer, chunk) for chunk in range(store.n_chunks)]
    return (time.perf_counter() - began) / sum(v.nbytes for v in values)


@contextmanager
def _silenced() -> Iterator[None]:
    """Say nothing of a training that nobody asked for."""
    ours = logging.getLogger("dtl")
    before = ours.level
    ours.setLevel(logging.ERROR)
    try:
        yield
    finally:
        ours.setLevel(before)
