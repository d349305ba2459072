"""Training on rows of unit length: by averaging, exactly, further, compared and tuned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from helpers import MakeStore
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer

from dtl.config import CompareConfig, TrainConfig, TuneConfig
from dtl.evaluation import scoring
from dtl.features.store import FeatureStore
from dtl.images.values import TRAIN, VALIDATION
from dtl.training import comparison, trainer, tuning
from dtl.training.spec import TrainingSpec

CONFIG = TrainConfig(n_shards=4, epochs=10.0, batch_size=16, l2=0.03)
WAYS = pytest.mark.parametrize("normalize", ["l2", "sqrt-l2"])


def scikit_learns(store: FeatureStore, normalize: str) -> np.ndarray:
    """Return probabilities of all rows by the optimum on rows of unit length."""
    split, x, y = (store.read(name) for name in ("split", "fc2", "label"))
    root = FunctionTransformer(lambda v: np.sign(v) * np.sqrt(np.abs(v)))
    unit = make_pipeline(root if normalize == "sqrt-l2" else FunctionTransformer(), Normalizer())
    train = unit.fit_transform(x[split == TRAIN].astype(np.float64))
    scale = np.sqrt(train.var(axis=0).mean())
    model = LogisticRegression(C=1 / (CONFIG.l2 * len(train)), max_iter=5000, tol=1e-8)
    model.fit(train / scale, y[split == TRAIN])
    probability: np.ndarray = model.predict_proba(unit.transform(x.astype(np.float64)) / scale)
    return probability


def probabilities(logits: np.ndarray) -> np.ndarray:
    p: np.ndarray = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


@WAYS
@pytest.mark.parametrize(
    ("solver", "tolerance"), [("lbfgs", 2e-3), ("averaging", 0.05)], ids=["lbfgs", "averaging"]
)
def test_the_optimum_is_scikit_learns(
    make_store: MakeStore, threads: Client, normalize: str, solver: str, tolerance: float
) -> None:
    store = make_store(n_images=2000, chunk_images=200, distance=0.5)
    config = replace(CONFIG, normalize=normalize, solver=solver, epochs=30.0)
    head = trainer.train(TrainingSpec(store, config, "fc2", 0), threads).head
    assert head.normalize == head.provenance["train"]["normalize"] == normalize
    expected = scikit_learns(store, normalize)
    found = probabilities(head.logits(store.read("fc2")))
    assert np.abs(found - expected).max() < tolerance
    validation = store.read("split") == VALIDATION
    scores = scoring.evaluate(store, head, threads).scores["validation"]
    right = found[validation].argmax(axis=1) == store.read("label")[validation]
    assert scores.accuracy == pytest.approx(right.mean())


def test_rows_of_zeros_change_nothing_to_nan(make_store: MakeStore, threads: Client) -> None:
    store = make_store()
    features = store.read("fc2", 0)
    features[:10] = 0
    store.write_chunk(0, {"fc2": features}, np.arange(50, dtype=np.uint64), [""] * 50)
    config = replace(CONFIG, normalize="sqrt-l2", epochs=2.0)
    head = trainer.train(TrainingSpec(store, config, "fc2", 0), threads).head
    assert np.isfinite(head.logits(np.zeros((1, 20), np.float32))).all()


def test_the_fingerprint_of_standardised_heads_is_as_it_was(make_store: MakeStore) -> None:
    made = [
        TrainingSpec(make_store(), replace(CONFIG, normalize=way), "fc2", 0).provenance["train"]
        for way in ("standardise", "l2")
    ]
    assert "normalize" not in made[0]
    assert made[1] == made[0] | {"normalize": "l2"}


def test_goes_on_from_a_head_of_the_same_normalisation_only(
    make_store: MakeStore, threads: Client, tmp_path: Path
) -> None:
    store = make_store()
    way = replace(CONFIG, normalize="l2", epochs=3.0)
    first = trainer.train(TrainingSpec(store, way, "fc2", 0), threads).head
    (tmp_path / "head.npz").write_bytes(first.to_bytes())
    still = replace(way, learning_rate=1e-9, start_from=str(tmp_path / "head.npz"))
    again = trainer.train(TrainingSpec(store, still, "fc2", 0), threads).head
    np.testing.assert_allclose(again.kernel, first.kernel, atol=1e-5)
    other = replace(still, normalize="standardise")
    with pytest.raises(ValueError, match=r"normalize: asked for 'standardise', stored 'l2'"):
        trainer.train(TrainingSpec(store, other, "fc2", 0), threads)


def test_comparison_and_search_take_the_same_rows(make_store: MakeStore, threads: Client) -> None:
    store = make_store()
    spec = TrainingSpec(store, replace(CONFIG, normalize="sqrt-l2"), "fc2", 0)
    few = CompareConfig(shards=(2,), frequencies=(5,))
    _, averaged, sklearn = comparison.compare(spec, few, threads).contenders
    assert abs(sklearn.objective_gap) < 1e-4
    assert sklearn.kernel_distance < 0.02
    assert averaged.objective_gap < 0.05
    found = tuning.tune(spec, TuneConfig(learning_rates=(0.01, 0.03), l2s=(0.03,)), threads)
    assert found.provenance["train"]["normalize"] == "sqrt-l2"
    best = trainer.train(replace(spec, config=tuning.choose(found, spec.config)), threads)
    expected = best.history[-1].validation_loss
    assert found.trials[0].rungs[-1].validation_loss == pytest.approx(expected, rel=1e-4)
