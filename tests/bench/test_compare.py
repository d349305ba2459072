"""Averaging against the exact optimum, and against what else trains such a layer: `make bench`.

On a made-up store of 30,607 x 4096 and 257 classes, or as many rows as DTL_BENCH_IMAGES says. All
times are of one run, on the same processors, from features in memory, so their ratios mean
something on a shared machine, too.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest
import scipy.optimize
from distributed import Client
from helpers import rectified_store
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier

from dtl import config
from dtl.cluster import connection
from dtl.cluster.spread import Session
from dtl.config import TrainConfig
from dtl.features.store import FeatureStore
from dtl.images.values import TRAIN, VALIDATION
from dtl.training import trainer
from dtl.training.spec import Fitted, TrainingSpec
from dtl.training.values import Round

T = TypeVar("T")
N_IMAGES = int(os.environ.get("DTL_BENCH_IMAGES", "30607"))
NEAR = 0.005
"""Within so much of the optimum's validation accuracy a way has arrived."""
QUICK = {
    "n_shards": 2, "epochs": 2.0, "batch_size": 256, "learning_rate": 0.07,
    "averaging_frequency": 5,
}  # fmt: skip
"""What differs from the standard settings where only the time until NEAR counts: as many replicas
as processors here, for replicas share the steps of an epoch; large batches, whose products need
half the time for a row; and a learning rate that falls soon.
"""
FORMER = {"batch_size": 32}
"""What differed in the defaults until batches followed from the rows."""
TURNS, PASS_TURNS = 2, 5
MOST_INCREMENTAL_S = 240.0
"""dask-ml need not arrive at all: its classes are learnt apart."""


def seconds_until(history: list[Round], accuracy: float) -> float:
    """Of training; the features are in the workers' memory by then, as in the others' arrays."""
    took = np.cumsum([r.step_s + r.average_s + r.wait_s for r in history])
    there = [r.validation_accuracy >= accuracy for r in history]
    return float(took[there.index(True)]) if any(there) else float("inf")


def processor_seconds() -> float:
    """Of this process and its workers."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def measure(work: Callable[[], T]) -> tuple[T, np.ndarray]:
    """Return what some work returns, and its seconds and processor seconds."""
    started = np.array([time.perf_counter(), processor_seconds()])
    result = work()
    return result, np.array([time.perf_counter(), processor_seconds()]) - started


def standardised(store: FeatureStore) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    split, labels, features = (store.read(name) for name in ("split", "label", "fc2"))
    mean, scale = features[split == TRAIN].mean(axis=0), features[split == TRAIN].std(axis=0)
    features -= mean
    features /= np.where(scale == 0, 1, scale)
    return {k: (features[split == k], labels[split == k]) for k in (TRAIN, VALIDATION)}


def sklearn_seconds(
    rows: dict[int, tuple[np.ndarray, np.ndarray]], l2: float, goal: float
) -> float:
    """Of the fit with the fewest iterations that arrives."""
    for n_iterations in range(1, 40):
        model = LogisticRegression(C=1 / (l2 * len(rows[TRAIN][1])), max_iter=n_iterations)
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(*rows[TRAIN])
        seconds = time.perf_counter() - started
        accuracy = model.score(*rows[VALIDATION])
        print(f"  scikit-learn, {n_iterations} iterations: {accuracy:.2%} in {seconds:.1f} s")
        if accuracy >= goal:
            return seconds
    return float("inf")


def incremental_seconds(
    rows: dict[int, tuple[np.ndarray, np.ndarray]], l2: float, goal: float, limit_s: float
) -> float:
    """Until dask-ml arrives, looked at after every epoch; infinite if not within `limit_s`."""
    dask_ml = pytest.importorskip("dask_ml.wrappers", reason="dask-ml is not installed")
    import dask.array as da

    features, labels = rows[TRAIN]
    x, y = (da.from_array(a, chunks=(2048, *a.shape[1:])) for a in (features, labels))
    # With two processors it trains two of the classes' own classifiers at once.
    model = dask_ml.Incremental(
        SGDClassifier(loss="log_loss", alpha=l2, n_jobs=os.cpu_count(), random_state=0)
    )
    seconds, epoch = 0.0, 0
    while seconds <= limit_s:
        started = time.perf_counter()
        model.partial_fit(x, y, classes=np.unique(labels))
        seconds, epoch = seconds + time.perf_counter() - started, epoch + 1
        accuracy = model.estimator_.score(*rows[VALIDATION])
        print(f"  dask-ml, {epoch} epochs: {accuracy:.2%} in {seconds:.1f} s")
        if accuracy >= goal:
            return seconds
    return float("inf")


def test_averaging_reaches_the_optimum_and_how_soon(tmp_path: Path) -> None:
    store = rectified_store(str(tmp_path / "features.zarr"), N_IMAGES)
    standard = TrainConfig()

    def train(client: Client, settings: TrainConfig) -> list[Round]:
        started = time.perf_counter()
        history = trainer.train(TrainingSpec(store, settings, "fc2", 0), client).history
        last = history[-1]
        print(
            f"  {settings.solver}, {settings.epochs:g} epochs: {last.validation_accuracy:.2%}, "
            f"validation loss {last.validation_loss:.4f}, objective "
            f"{last.train_loss + settings.l2 / 2 * last.kernel_norm**2:.5f}, "
            f"{time.perf_counter() - started:.1f} s"
        )
        return history

    print(f"\n{N_IMAGES} x 4096, 257 classes, {os.cpu_count()} processors")
    with connection.connect(config.build({"cluster": {"n_workers": 1}}).cluster) as client:
        optimum = train(client, replace(standard, solver="lbfgs"))[-1]
        averaged = train(client, standard)[-1]
        goal = optimum.validation_accuracy - NEAR
        ours = seconds_until(train(client, replace(standard, **QUICK)), goal)
    rows = standardised(store)
    sklearn = sklearn_seconds(rows, standard.l2, goal)
    dask_ml = incremental_seconds(rows, standard.l2, goal, min(6 * ours, MOST_INCREMENTAL_S))
    loss = averaged.validation_loss / optimum.validation_loss
    points = 100 * (averaged.validation_accuracy - optimum.validation_accuracy)
    print(
        f"averaging: {loss:.4f} of the optimum's validation loss, {points:+.2f} points\n"
        f"until {goal:.2%}: averaging {ours:.1f} s, scikit-learn {sklearn / ours:.2f} times that, "
        f"dask-ml {dask_ml / ours:.2f} times"
    )
    assert np.isfinite(ours)
    assert loss <= 1.01
    assert points >= -0.3
    assert ours <= sklearn
    assert 5 * ours <= dask_ml


def test_a_pass_of_lbfgs_is_no_slower_than_scikit_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both take turns on the same processors; a pass is an evaluation of objective and gradient."""
    store = rectified_store(str(tmp_path / "features.zarr"), N_IMAGES)
    exact, passes, took = TrainConfig(solver="lbfgs"), {}, {}
    whole = scipy.optimize.minimize

    def counted(*arguments: Any, **options: Any) -> Any:
        found = whole(*arguments, **options)
        passes["scikit-learn"] = found.nfev
        return found

    monkeypatch.setattr(scipy.optimize, "minimize", counted)
    x, y = standardised(store)[TRAIN]
    theirs = LogisticRegression(C=1 / (exact.l2 * len(y)))
    with connection.connect(config.build({"cluster": {"n_workers": 1}}).cluster) as client:
        session = Session(client)
        inputs = trainer.prepare(TrainingSpec(store, exact, "fc2", 0), session)
        session.wait(inputs.groups)
        for turn in range(PASS_TURNS):
            ours, seconds = measure(lambda: trainer.fit(inputs, exact, 0, session, show=False))
            passes["L-BFGS"] = int(ours.history[-1].epoch)
            took["L-BFGS", turn] = seconds / passes["L-BFGS"]
            _, seconds = measure(lambda: theirs.fit(x, y))
            took["scikit-learn", turn] = seconds / passes["scikit-learn"]
    best = {
        way: np.minimum.reduce([took[way, turn] for turn in range(PASS_TURNS)]) for way in passes
    }
    print(f"\n{len(y)} x 4096 and validation rows, 257 classes, {os.cpu_count()} processors")
    for way, (wall, processor) in best.items():
        n = {"L-BFGS": len(ours.history), "scikit-learn": int(theirs.n_iter_[0])}[way]
        print(
            f"  {way}: {n} iterations, {passes[way]} passes; a pass {wall:.3f} s, "
            f"{processor:.3f} s of processors"
        )
    wall, processor = best["L-BFGS"] / best["scikit-learn"]
    print(
        f"L-BFGS takes {wall:.2f} of scikit-learn's time, {processor:.2f} of its processors' time"
    )
    assert wall <= 1
    assert processor <= 1


def test_the_default_training_takes_half_the_time_of_the_former(tmp_path: Path) -> None:
    """The two take turns, and each has its own order of rows in every turn."""
    store = rectified_store(str(tmp_path / "features.zarr"), N_IMAGES)
    ways = {"defaults": TrainConfig(), "former": TrainConfig(**FORMER)}
    took: dict[tuple[str, int], np.ndarray] = {}
    last: dict[tuple[str, int], Round] = {}
    print(f"\n{N_IMAGES} x 4096, 257 classes, {os.cpu_count()} processors")
    with connection.connect(config.build({"cluster": {"n_workers": 1}}).cluster) as client:
        session = Session(client)
        inputs = trainer.prepare(TrainingSpec(store, TrainConfig(), "fc2", 0), session)
        session.wait(inputs.groups)
        for seed in range(TURNS):
            for way, settings in ways.items():

                def fit(settings: TrainConfig = settings, seed: int = seed) -> Fitted:
                    return trainer.fit(inputs, settings, seed, session, show=False)

                fitted, took[way, seed] = measure(fit)
                r = last[way, seed] = fitted.history[-1]
                wall, processor = took[way, seed]
                objective = r.train_loss + settings.l2 / 2 * r.kernel_norm**2
                print(
                    f"  {way}, seed {seed}: {wall:.1f} s, {processor:.1f} s of processors; "
                    f"validation {r.validation_accuracy:.2%}, loss {r.validation_loss:.4f}; "
                    f"objective {objective:.5f}"
                )
    best = {way: np.minimum.reduce([took[way, s] for s in range(TURNS)]) for way in ways}
    wall, processor = best["defaults"] / best["former"]
    points = 100 * np.mean(
        [
            last["defaults", s].validation_accuracy - last["former", s].validation_accuracy
            for s in range(TURNS)
        ]
    )
    print(
        f"{wall:.2f} of the former time, {processor:.2f} of the processors' time, {points:+.2f} "
        "points of validation accuracy"
    )
    assert wall <= 0.5
    assert points >= -0.3
