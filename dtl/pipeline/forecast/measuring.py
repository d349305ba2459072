"""Measurements for a forecast: the run's own first steps, some of its images, and a rehearsal.

The cluster is started and the network loaded as the run does it. Every worker then computes some
batches of the images. Nothing is written to the results.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dtl import storage
from dtl.config import Config
from dtl.config.errors import UserError
from dtl.config.provenance import differences
from dtl.features.store import FeatureStore
from dtl.features.values import ExtractionSpec
from dtl.head.schedules import Plan
from dtl.images import listing, split
from dtl.images.values import TRAIN, VALIDATION, ImageList
from dtl.pipeline.forecast.costs import Rates, Work
from dtl.pipeline.forecast.rehearsal import rehearse
from dtl.pipeline.results import Results
from dtl.pipeline.run import Run
from dtl.training.checkpoint import Checkpoint
from dtl.training.spec import MOST_SHARDS

if TYPE_CHECKING:
    from distributed import Client

    from dtl.features.extraction import Extractor

_BATCHES = 4
"""Of the images, that each worker computes after a first one."""

LBFGS_ITERATIONS = 100
"""Of the exact solver, whose number nobody knows before: assumed."""

_N_TASKS = 400
"""Empty ones, which tell what the driver and the scheduler take for one."""

_PRODUCT = 1024


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
    o = run.options
    listing_began = time.monotonic()
    images = listing.list_images(o.images, o.seed)
    listing_s = time.monotonic() - listing_began
    of_rows = split.assign_splits(images, o.split, o.seed)
    store = run.find_store(images)
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
    with ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="dtl-rehearsal-")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        is_seen = all(_see(client, folder))
        if work.n_pending:
            spec = find_network(run, len(images), folder if is_seen else "")
            rates, extractor, n_tried = _try_images(client, spec, images, rates)
            width = extractor.n_features[o.layer]
        work = _add_width(work, o, width, len(images.class_names))
        where, used = "on the workers", client
        if not is_seen:
            from dtl.cluster.connection import connect

            where = "on this machine alone, whose folders the workers do not see"
            local = replace(o.cluster, address="local", n_workers=1, processes=False,
                            dashboard_address=":0", memory_limit="auto")  # fmt: skip
            used = stack.enter_context(connect(local))
        rates = rehearse(run, images, work, rates, Path(folder), used)
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


def _add_width(work: Work, o: Config, n_features: int, n_classes: int) -> Work:
    """Add what follows from the number of features."""
    from dtl.neighbours.novelty import MOST_HELD_OUT, REFERENCE_BYTES

    row_bytes = 4 * n_features
    n_reference = min(work.n_train, REFERENCE_BYTES // row_bytes)
    novelty = 2 * min(work.n_held_out, MOST_HELD_OUT) * n_reference * n_features
    exact = work.trains and o.train.solver == "lbfgs"  # two products: for loss and gradient
    return replace(
        work, row_bytes=row_bytes, novelty_flop=novelty,
        round_flop=4 * work.n_train * n_features * n_classes if exact else 0,
    )  # fmt: skip


def _find_width(store: FeatureStore | None, layer: str) -> int:
    return 0 if store is None else store.n_features(layer)


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


def find_network(run: Run, n_images: int, folder: str) -> ExtractionSpec:
    """Return what features follow from, with a place in `folder` for a network to convert."""
    spec = run.extraction
    if spec.engine != "openvino" or storage.exists(spec.network_url):
        return spec
    from dtl.features.converted import AUTO_INT8_IMAGES

    precision = spec.features.precision
    makes_int8 = precision == "int8" or (precision == "auto" and n_images >= AUTO_INT8_IMAGES)
    if makes_int8 or not folder:
        raise UserError(
            "The network is converted, and perhaps quantized, by the run itself, whose time for "
            "that is not known before. Set `features.network` to one that was made before, or for "
            "a forecast alone `features.precision` = bfloat16 or `features.engine` = tensorflow."
        )
    return replace(spec, network_url=storage.join(folder, "network"))


def _try_images(
    client: Client, spec: ExtractionSpec, images: ImageList, rates: Rates
) -> tuple[Rates, Extractor, int]:
    """Load the network, and compute some images on all workers at the same time."""
    from dtl.cluster.workers import check_visible
    from dtl.features import extraction
    from dtl.features.trial import try_images

    check_visible(client, *filter(None, (images.root, spec.file_url)))
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
