"""Heads are held against the validation rows of a store, with the same bits on any workers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from distributed import Client
from helpers import MakeStore, local_cluster

from dtl.config import TrainConfig
from dtl.config.errors import UserError
from dtl.evaluation import calibration, conformal, fitting
from dtl.evaluation.certainty import MAX_ERRORS, Thresholds
from dtl.evaluation.fitting import calibrate
from dtl.evaluation.scoring import evaluate
from dtl.evaluation.values import Evaluation
from dtl.features.store import FeatureStore
from dtl.head.model import Head
from dtl.head.softmax import log_softmax
from dtl.images.values import TEST, VALIDATION
from dtl.training import trainer
from dtl.training.spec import TrainingSpec

N_CLASSES = 5


def sure_head(store: FeatureStore, scale: float = 3.0) -> Head:
    """Class means as a classifier that is too sure."""
    features, labels = store.read("fc2").astype(np.float64), store.read("label")
    spread = features.std(axis=0) + 1e-9
    standard = (features - features.mean(axis=0)) / spread
    n_classes = len(store.class_names)
    known = [standard[labels == k].mean(axis=0) for k in range(n_classes)]
    return Head(
        kernel=(scale * np.stack(known, axis=1)).astype(np.float32),
        bias=np.zeros(n_classes, np.float32),
        mean=features.mean(axis=0).astype(np.float32),
        scale=spread.astype(np.float32),
        class_names=store.class_names,
        provenance={
            "layer": "fc2", "features": store.fingerprint, "split": store.split_fingerprint,
        },
    )  # fmt: skip


def test_it_is_fitted_to_the_validation_rows(make_store: MakeStore, threads: Client) -> None:
    store = make_store(distance=0.4)
    head = calibrate(store, sure_head(store), threads)
    rows = store.read_split() == VALIDATION
    logits, labels = head.logits(store.read("fc2")[rows]), store.read("label")[rows]
    wanted, _ = calibration.find_temperature(lambda t: calibration.slopes(logits, labels, t))
    assert head.temperature == pytest.approx(wanted, rel=1e-6)
    assert head.temperature > 1.5
    p = np.exp(log_softmax(logits.astype(np.float64) / head.temperature))
    held_out = head.held_out
    assert held_out is not None
    np.testing.assert_array_equal(held_out.label, labels)
    np.testing.assert_allclose(held_out.confidence, p.max(axis=1))
    above = conformal.mass_above(p)[np.arange(len(labels)), labels]
    np.testing.assert_allclose(held_out.above, above, atol=1e-9)
    np.testing.assert_array_equal(held_out.right, p.argmax(axis=1) == labels)
    again = Head.from_bytes(head.to_bytes())
    assert again.fingerprint == head.fingerprint
    assert again.temperature == head.temperature


def test_the_same_bits_on_any_workers(make_store: MakeStore, threads: Client) -> None:
    store = make_store(280, chunk_images=4)  # more chunks than tasks
    head = sure_head(store)
    wanted = calibrate(store, head, threads).to_bytes()
    with local_cluster(threads=4) as local, Client(local) as client:
        assert calibrate(store, head, client).to_bytes() == wanted
    # What it had before is of no account.
    assert calibrate(store, Head.from_bytes(wanted), threads).to_bytes() == wanted


def test_a_share_of_very_many_rows_is_used(
    make_store: MakeStore, threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    all_rows = calibrate(store, sure_head(store), threads)
    n_rows = int((store.read_split() == VALIDATION).sum())
    monkeypatch.setattr(fitting, "MOST_ROWS", n_rows // 2)
    read = FeatureStore.read

    def read_hashes(self: FeatureStore, name: str, chunk: int | None = None) -> np.ndarray:
        found = read(self, name, chunk)
        return found * np.uint64(0x9E3779B97F4A7C15) if name == "content_hash" else found

    monkeypatch.setattr(FeatureStore, "read", read_hashes)  # those of the store are 0, 1, 2, ...
    some = calibrate(store, sure_head(store), threads)
    assert some.held_out is not None
    assert len(some.held_out) == pytest.approx(n_rows / 2, rel=0.3)
    assert some.temperature == pytest.approx(all_rows.temperature, rel=0.3)


def test_without_validation_rows_it_is_1(make_store: MakeStore, threads: Client) -> None:
    store = make_store(shares=(0.7, 0.0, 0.3))
    head = sure_head(store)
    assert calibrate(store, head, threads).to_bytes() == head.to_bytes()
    found = evaluate(store, head, threads)
    assert (found.temperature, found.n_held_out) == (1, 0)
    test = found.scores["test"]
    assert test.reliability.keys() == {"before"}
    assert test.sets == test.answers == ()
    for options in ({"coverage": 0.9}, {"max_error": 0.1}):
        with pytest.raises(UserError, match="never held against validation images"):
            Thresholds.find(head, **options)


@pytest.mark.parametrize("n_images", [12, 60])
def test_few_rows_and_two_classes(make_store: MakeStore, threads: Client, n_images: int) -> None:
    store = make_store(n_images, n_classes=2, chunk_images=6, shares=(0.5, 0.3, 0.2))
    trained = trainer.train(TrainingSpec(store, TrainConfig(epochs=2.0), "fc2", 0), threads)
    assert trained.head.held_out is not None
    found = evaluate(store, trained.head, threads)
    assert found.n_held_out == len(trained.head.held_out) < 30
    assert [s.coverage for s in found.scores["test"].sets] in ([], [0.9])
    assert not [a for a in found.scores["test"].answers if a.max_error != MAX_ERRORS[0]]
    assert Evaluation.from_dict(dataclasses.asdict(found)) == found


def test_a_trained_head_is_held_against_validation(make_store: MakeStore, threads: Client) -> None:
    store = make_store(2500, distance=0.5, chunk_images=250)
    config = TrainConfig(epochs=3.0, keep="best", l2=1e-5)
    trained = trainer.train(TrainingSpec(store, config, "fc2", 0), threads)
    for head in filter(None, (trained.head, trained.other)):
        assert head.held_out is not None
    found = evaluate(store, trained.head, threads)
    again = Evaluation.from_dict(dataclasses.asdict(found))
    assert again == found
    test = found.scores["test"]
    rows = store.read_split() == TEST
    logits, labels = trained.head.logits(store.read("fc2")[rows]), store.read("label")[rows]
    log_p = log_softmax(logits.astype(np.float64) / trained.head.temperature)
    wanted = calibration.score(calibration.count(log_p, labels))
    assert test.reliability["after"].error == pytest.approx(wanted.error)
    assert test.log_loss == pytest.approx(test.reliability["after"].log_loss)
    for scores in test.sets:
        thresholds = Thresholds.find(trained.head, coverage=scores.coverage)
        sets = [row["set"] for row in thresholds.apply(np.exp(log_p), store.class_names)]
        right = [store.class_names[k] in each for k, each in zip(labels, sets, strict=True)]
        assert sum(right) == scores.n_covered
        assert sum(map(len, sets)) == scores.n_members
        assert sum(len(each) == 1 for each in sets) == scores.n_single
        assert sum(right) / len(right) == pytest.approx(scores.coverage, abs=0.05)
    assert [s.coverage for s in test.sets] == [0.9, 0.95, 0.99]
    for answers in test.answers:
        thresholds = Thresholds.find(trained.head, max_error=answers.max_error)
        found_rows = thresholds.apply(np.exp(log_p), store.class_names)
        answered = [row["answer"] for row in found_rows]
        assert len(answered) - answered.count(None) == answers.n_answered
    assert [a.max_error for a in test.answers] == [0.05, 0.02, 0.01]
