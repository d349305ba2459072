from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from helpers import MakeStore, a_worker_is_killed, local_cluster
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from dtl.config import CompareConfig, TrainConfig
from dtl.features.store import FeatureStore
from dtl.images.values import TRAIN, VALIDATION
from dtl.training import comparison, lbfgs, trainer
from dtl.training.spec import TrainingSpec
from dtl.training.values import history_from_bytes, history_to_bytes

CONFIG = TrainConfig(solver="lbfgs", n_shards=4, l2=0.01)


def rows(store: FeatureStore, split: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = store.read("split") == split
    return store.read("fc2")[chosen].astype(np.float64), store.read("label")[chosen]


@pytest.mark.parametrize("l2", [0.1, 1e-2, 1e-4])
def test_is_scikit_learns_optimum(
    make_store: MakeStore, threads: Client, l2: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lbfgs, "TOLERANCE", 3e-6)
    store = make_store(n_images=1500, chunk_images=100, distance=0.5)
    config = replace(CONFIG, l2=l2)
    trained = trainer.train(TrainingSpec(store, config, "fc2", 0), threads)
    head, history = trained.head, trained.history
    x, y = rows(store, TRAIN)
    scaler = StandardScaler().fit(x)
    x = scaler.transform(x)
    exact = LogisticRegression(C=1 / (l2 * len(y)), tol=1e-9, max_iter=10_000).fit(x, y)

    def objective(probabilities: np.ndarray, kernel: np.ndarray) -> float:
        return float(log_loss(y, probabilities) + l2 / 2 * (kernel**2).sum())

    logits = x @ head.kernel.astype(np.float64) + head.bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    found = objective(p, head.kernel.astype(np.float64))
    optimum = objective(exact.predict_proba(x), exact.coef_)
    assert optimum * (1 - 1e-7) < found < optimum * (1 + 1e-5)
    distance = np.linalg.norm(head.kernel - exact.coef_.T) / np.linalg.norm(exact.coef_)
    assert distance < 1e-2 if l2 < 1e-3 else distance < 1e-3
    last = history[-1]
    assert last.train_loss + l2 / 2 * last.kernel_norm**2 == pytest.approx(found, rel=1e-6)
    validation, labels = rows(store, VALIDATION)
    expected = exact.score(scaler.transform(validation), labels)
    assert last.validation_accuracy == pytest.approx(expected, abs=0.01)


def test_averaging_comes_close_to_it(make_store: MakeStore, threads: Client) -> None:
    store = make_store(n_images=3000, chunk_images=200, distance=0.5)
    trained = trainer.train(TrainingSpec(store, CONFIG, "fc2", 0), threads)
    exact, history = trained.head, trained.history
    config = replace(CONFIG, solver="averaging", n_shards=8)
    averaged = trainer.train(TrainingSpec(store, config, "fc2", 0), threads).history
    assert averaged[-1].validation_loss <= 1.01 * history[-1].validation_loss
    assert averaged[-1].validation_accuracy >= history[-1].validation_accuracy - 0.003
    assert exact.provenance["train"]["solver"] == "lbfgs"


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [1, 2, 4])
@pytest.mark.parametrize("processes", [False, True])
def test_same_bits_on_any_workers(
    make_store: MakeStore, threads: Client, n_workers: int, processes: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(lbfgs, "MAX_ITERATIONS", 10)
    # Enough parameters that the driver's own sums would be split over threads.
    store = make_store(n_features=1500, n_classes=10)
    expected = trainer.train(TrainingSpec(store, CONFIG, "fc2", 1), threads).head
    with (
        local_cluster(n_workers, 3 - min(n_workers, 2), processes=processes) as local,
        Client(local) as client,
    ):
        head = trainer.train(TrainingSpec(store, CONFIG, "fc2", 1), client).head
    assert head.to_bytes() == expected.to_bytes()


@pytest.mark.slow
def test_same_bits_when_a_worker_is_killed_on_the_way(
    make_store: MakeStore, threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lbfgs, "TOLERANCE", 1e-6)
    monkeypatch.setattr(lbfgs, "MAX_ITERATIONS", 80)
    store = make_store(n_images=2000, n_features=400, distance=0.3)
    config = replace(CONFIG, l2=1e-4)
    expected = trainer.train(TrainingSpec(store, config, "fc2", 1), threads).head
    with a_worker_is_killed(once="gradient") as client:
        head = trainer.train(TrainingSpec(store, config, "fc2", 1), client).head
    assert head.to_bytes() == expected.to_bytes()


def test_history_says_what_happened(make_store: MakeStore, threads: Client) -> None:
    store = make_store()
    trained = trainer.train(TrainingSpec(store, CONFIG, "fc2", 0), threads)
    head, history = trained.head, trained.history
    assert [r.round for r in history] == list(range(1, len(history) + 1))
    objectives = [r.train_loss + CONFIG.l2 / 2 * r.kernel_norm**2 for r in history]
    assert objectives == sorted(objectives, reverse=True)
    assert all(r.loss == pytest.approx(r.train_loss) for r in history)
    assert all(min(r.shard_loss) <= r.loss <= max(r.shard_loss) for r in history)
    assert all(r.epoch > r.round for r in history)  # the pass over the start is one more
    features, labels = rows(store, VALIDATION)
    accuracy = (head.logits(features).argmax(axis=1) == labels).mean()
    assert history[-1].validation_accuracy == pytest.approx(accuracy)
    again = history_from_bytes(history_to_bytes(history))
    assert repr(again) == repr(history)


def test_too_few_iterations_are_told(
    make_store: MakeStore, threads: Client, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(lbfgs, "MAX_ITERATIONS", 3)
    with caplog.at_level("WARNING", "dtl.training"):
        history = trainer.train(TrainingSpec(make_store(), CONFIG, "fc2", 0), threads).history
    assert len(history) == 3
    assert "stopped short of its tolerance: 3 iterations" in caplog.text


def test_a_start_at_the_optimum_is_one_round(
    make_store: MakeStore, threads: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    trained = trainer.train(TrainingSpec(store, CONFIG, "fc2", 0), threads)
    optimum, history = trained.head, trained.history
    (tmp_path / "head.npz").write_bytes(optimum.to_bytes())
    config = replace(CONFIG, start_from=str(tmp_path / "head.npz"))
    monkeypatch.setattr(lbfgs, "TOLERANCE", 1e-4)
    trained = trainer.train(TrainingSpec(store, config, "fc2", 0), threads)
    head, (only,) = trained.head, trained.history
    np.testing.assert_array_equal(head.kernel, optimum.kernel)
    assert (only.round, only.epoch, only.update_ratio) == (1, 1, 0)
    assert only.validation_accuracy == history[-1].validation_accuracy
    few = CompareConfig(frequencies=(5,), shards=(2,), sklearn_mib=0)
    exact, averaged = comparison.compare(
        TrainingSpec(store, config, "fc2", 0), few, threads
    ).contenders
    assert len(exact.curve) == 1
    assert averaged.objective_gap > -1e-6


def test_shards_without_training_rows_are_harmless(make_store: MakeStore, threads: Client) -> None:
    store = make_store(n_images=200, chunk_images=50)
    split = store.read("split")
    split[store.rows(2)] = -1
    store.write_split(split, {"made": "by a test"})
    trained = trainer.train(TrainingSpec(store, CONFIG, "fc2", 0), threads)
    head, history = trained.head, trained.history
    assert np.isnan(history[-1].shard_loss[2])
    assert np.isfinite(head.kernel).all()


@pytest.mark.parametrize(
    "other", [{"dropout": 0.5}, {"label_smoothing": 0.1}, {"class_weights": "balanced"}]
)
def test_other_objectives_are_refused(
    make_store: MakeStore, threads: Client, other: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="lbfgs minimises the plain objective"):
        trainer.train(
            TrainingSpec(make_store(100), replace(CONFIG, n_shards=2, **other), "fc2", 0), threads
        )
