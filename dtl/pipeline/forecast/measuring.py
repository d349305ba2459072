"""Measurements for a forecast: the run's own first steps, some of its images, and a rehearsal.

The cluster is started and the network loaded as the run does it. Every worker then computes some
batches of the images. A rehearsal, on made-up rows in a temporary folder, trains a few rounds,
evaluates and renders a report by the run's own functions. Nothing is written to the results.
"""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dtl import storage
from dtl.cluster.spread import choose_group_size
from dtl.config import TrainConfig
from dtl.config.errors import UserError
from dtl.config.provenance import differences
from dtl.features.store import FeatureStore
from dtl.head.schedules import Plan, with_batch_size
from dtl.images import listing, split
from dtl.images.values import NO_SPLIT, SPLITS, TRAIN, VALIDATION, ImageList
from dtl.pipeline.forecast.costs import Rates, Work, take_median
from dtl.pipeline.results import Results
from dtl.pipeline.run import Run
from dtl.training.checkpoint import Checkpoint
from dtl.training.spec import MOST_SHARDS, TrainingSpec
from dtl.training.values import Round

if TYPE_CHECKING:
    from distributed import Client

    from dtl.features.extraction import Extractor

log = logging.getLogger("dtl.pipeline")

_BATCHES = 4
"""Of the images, that each worker computes after a first one."""

_FEWEST_ROUNDS, _MOST_ROUNDS, _ROUNDS_S = 12, 80, 3.0
"""Rounds of the rehearsal: as many as take some seconds."""

LBFGS_ITERATIONS = 100
"""Of the exact solver, whose number nobody knows before: assumed."""

_TASKS_S = 0.02
"""What the tasks of a round take at least, to begin with."""

_MOST_STEPS = 16
"""Steps of an epoch of a shard in the rehearsal: no more rows are made up."""

_N_TASKS = 400
"""Empty ones, which tell what the driver and the scheduler take for one."""

_PRODUCT = 1024
_REFERENCE_BYTES = 32 << 20
_MOST_HELD_OUT = 20_000
"""Of `dtl.neighbours.novelty`: its reference, and the rows held against it."""


@dataclass(frozen=True)
class Measured:
    """What is left to do, what was measured, and where."""

    work: Work
    rates: Rates
    images: ImageList
    done: tuple[str, ...]
    """What a run finds done, in words."""
    where: str
    """Where the rehearsal took place."""
    n_tried: int
    """Images that were computed."""


def measure(run: Run) -> Measured:
    """List what is left to do, and measure what it costs."""
    o, results = run.options, run.results
    listing_began = time.monotonic()
    images = listing.list_images(o.images, o.seed)
    listing_s = time.monotonic() - listing_began
    of_rows = split.assign_splits(images, o.split, o.seed)
    # The same refusals as a run has.
    grows = not (o.exact or o.overwrite or o.repair or o.retry_skipped)
    wanted = run.extraction.fingerprint(images)
    store = FeatureStore.reuse(results.features, wanted, overwrite=o.overwrite, other_images=grows)
    n_done = 0 if store is None else min(store.n_done, len(images))
    work, done = find_work(run, images, of_rows, store, n_done)
    if not (work.n_pending or work.trains or work.evaluates):
        return Measured(
            work,
            Rates(0, 0, time.monotonic() - run.started - listing_s, listing_s),
            images,
            done,
            "",
            0,
        )
    from dtl.cluster.workers import known_workers, run_on_one_worker

    run.check_worker_memory()
    client = run.client
    workers = known_workers(client).values()
    rates = Rates(
        len(workers), min(worker["nthreads"] for worker in workers),
        time.monotonic() - run.started - listing_s, listing_s,
        limit_bytes=min(worker["memory_limit"] for worker in workers),
    )  # fmt: skip
    rates = replace(
        rates, submit_s=_time_tasks(client), flop_s=run_on_one_worker(client, time_product)
    )
    n_tried, width = 0, _find_width(store, o.layer)
    if work.n_pending:
        rates, extractor, n_tried = _try_images(run, images, rates)
        width = extractor.n_features[o.layer]
    row_bytes = width * 4
    work = replace(work, row_bytes=row_bytes, novelty_flop=_count_novelty(work, row_bytes))
    if work.trains and o.train.solver == "lbfgs":  # two products for loss and gradient
        flop = 4 * work.n_train * row_bytes / 4 * len(images.class_names)
        work = replace(work, round_flop=flop)
    with ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="dtl-rehearsal-")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        where, used = "on the workers", client
        if not all(_see(client, folder)):
            from dtl.cluster.connection import connect

            where = "on this machine alone, whose folders the workers do not see"
            local = replace(o.cluster, address="local", n_workers=1, processes=False,
                            dashboard_address=":0", memory_limit="auto")  # fmt: skip
            used = stack.enter_context(connect(local))
        log.info("rehearsing the training and the report with made-up rows")
        stack.enter_context(_silenced())
        rates = _rehearse(run, images, work, rates, Path(folder), used)
    return Measured(work, rates, images, done, where, n_tried)


def find_work(
    run: Run,
    images: ImageList,
    of_rows: NDArray[np.int8],
    store: FeatureStore | None,
    n_done: int,
) -> tuple[Work, tuple[str, ...]]:
    """Compare what is wanted with what is stored."""
    o, results = run.options, run.results
    chunk_images = store.chunk_images if store is not None else o.features.chunk_images
    n_images, done = len(images), []
    if n_done:
        done.append(f"features of {n_done:,} of {n_images:,} images")
    n_chunks = -(-n_images // chunk_images)
    n_shards = o.train.n_shards or min(MOST_SHARDS, n_chunks)
    chunk_of = np.arange(n_images) // chunk_images
    per_shard = np.bincount(chunk_of[of_rows == TRAIN] % n_shards, minlength=n_shards)
    plan = Plan.make(per_shard, o.train, o.seed)
    n_rounds, evaluates, reports = plan.n_rounds, True, True
    n_validations = math.ceil(n_rounds / plan.validate_every)
    steps_per_round = plan.first_steps[-1] / plan.n_rounds
    if o.train.solver == "lbfgs":
        n_rounds, n_validations, steps_per_round = LBFGS_ITERATIONS, 0, 0.0
    if store is not None and n_done == n_images and not store.is_growing:
        spec = run.training_spec(store)
        head = results.head()
        if store.split_fingerprint and head is not None:
            is_same = not differences(spec.provenance, head.provenance)
            if is_same:
                n_rounds = n_validations = 0
                done.append("the head")
            scores = results.evaluation()
            if is_same and scores and scores.provenance["head_sha256"] == head.fingerprint:
                evaluates = False
                done.append("its scores")
                if storage.is_file(results.report):
                    reports = False
                    done.append("the report")
        if n_rounds and (n_before := _count_rounds(results)):
            done.append(f"{n_before} of {n_rounds} rounds of training")
            n_validations = math.ceil(n_validations * (1 - n_before / n_rounds))
            n_rounds = max(n_rounds - n_before, 1)
    work = Work(
        n_images, n_images - n_done, chunk_images, float(images.size_bytes.mean()), 0,
        int((of_rows == TRAIN).sum()), int((of_rows == VALIDATION).sum()), n_shards,
        steps_per_round, n_rounds, n_validations,
        evaluates=evaluates, reports=reports,
    )  # fmt: skip
    return work, tuple(done)


def _count_rounds(results: Results) -> int:
    if not storage.exists(results.checkpoint):
        return 0
    return len(Checkpoint.from_bytes(storage.read_bytes(results.checkpoint)).history)


def _count_novelty(work: Work, row_bytes: int) -> float:
    n_reference = min(work.n_train, _REFERENCE_BYTES // row_bytes)
    return min(work.n_held_out, _MOST_HELD_OUT) * n_reference * row_bytes / 2


def _find_width(store: FeatureStore | None, layer: str) -> int:
    return 0 if store is None else store.n_features(layer)


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


def _see(client: Client, folder: str) -> list[bool]:
    from dtl.cluster.workers import run_on_each_worker

    return [*run_on_each_worker(client, storage.exists, folder).values()]


def _time_tasks(client: Client) -> float:
    client.gather(client.map(_do_nothing, range(20), pure=False))
    began = time.monotonic()
    client.gather(client.map(_do_nothing, range(_N_TASKS), pure=False))
    return (time.monotonic() - began) / _N_TASKS


def _do_nothing(value: int) -> int:
    return value


def time_product() -> float:
    """Return what an operation of a product takes on one thread of a worker, in seconds."""
    from dtl.head import blas

    a = np.ones((_PRODUCT, _PRODUCT), np.float32)
    with blas.one_blas_thread():
        times = []
        for _ in range(3):
            began = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - began)
    return min(times) / (2 * _PRODUCT**3)


def _try_images(run: Run, images: ImageList, rates: Rates) -> tuple[Rates, Extractor, int]:
    """Load the network, and compute some images on all workers at the same time."""
    from dtl.cluster.workers import check_visible
    from dtl.features import extraction
    from dtl.features.trial import try_images

    spec, client = run.extraction, run.client
    check_visible(client, *filter(None, (images.root, spec.file_url)))
    if spec.engine == "openvino" and not storage.exists(spec.network_url):
        raise UserError(
            "The network is converted, and perhaps quantized, by the run itself, which takes from "
            "half a minute to some minutes. Its time is not known before. Set "
            "`features.network` to a converted one, or `features.engine` = tensorflow."
        )
    began = time.monotonic()
    extractor = extraction.prepare(client, spec, images=images)
    load_s = time.monotonic() - began
    trials = try_images(client, images, extractor, spec.features.dtype, _BATCHES).values()
    image_s = float(np.mean([trial.seconds / trial.n_images for trial in trials]))
    first_s = max(trial.first_s for trial in trials) - extractor.batch_images * image_s
    memory = 0
    if spec.engine != "openvino":
        memory = extraction.count_needed_bytes(client, spec)
    found = replace(
        rates, load_s=load_s, first_s=max(first_s, 0.0), image_s=image_s, memory_bytes=memory,
        stored_bytes=max(trial.stored_bytes for trial in trials),
    )  # fmt: skip
    n_tried = sum(trial.n_images + extractor.batch_images for trial in trials)
    return found, extractor, n_tried


# --- the rehearsal -------------------------------------------------------------------------------


def _rehearse(
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
    steps_s = take_median([r.step_s for r in history])  # of a group's shards, one after another
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
