from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import threadpoolctl
from distributed import Client
from helpers import MakeStore, local_cluster
from sklearn import metrics as sk

from dtl.cluster import spread
from dtl.config import TrainConfig
from dtl.evaluation import scoring
from dtl.evaluation.scoring import evaluate
from dtl.evaluation.values import Evaluation
from dtl.features.store import FeatureStore
from dtl.head.model import Head
from dtl.images.values import NO_SPLIT, SPLITS, TEST
from dtl.training import trainer
from dtl.training.spec import TrainingSpec

N_CLASSES = 8


def rough_head(store: FeatureStore, scale: float = 1.0) -> Head:
    """Class means as a classifier: right often, wrong often, and sure of some of its mistakes."""
    features, labels = store.read("fc2").astype(np.float64), store.read("label")
    spread = features.std(axis=0)
    spread[spread == 0] = 1
    mean = features.mean(axis=0)
    standardised = (features - mean) / spread
    kernel = np.stack([standardised[labels == k].mean(axis=0) for k in range(N_CLASSES)], axis=1)
    return Head(
        kernel=(scale * kernel).astype(np.float32),
        bias=np.linspace(-0.3, 0.3, N_CLASSES, dtype=np.float32),
        mean=mean.astype(np.float32),
        scale=spread.astype(np.float32),
        class_names=store.class_names,
        provenance={
            "layer": "fc2",
            "features": store.fingerprint,
            "split": store.split_fingerprint,
        },
    )


def whole(store: FeatureStore, head: Head) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split, label and probabilities of every row, at once."""
    logits = head.logits(store.read("fc2")).astype(np.float64) / head.temperature
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return store.read("split"), store.read("label"), p / p.sum(axis=1, keepdims=True)


def serial_mistakes(store: FeatureStore, head: Head) -> list[tuple[float, str, str, str, str]]:
    split, labels, p = whole(store, head)
    predicted = p.argmax(axis=1)
    names = store.class_names
    rows = np.flatnonzero((predicted != labels) & (split >= 0))
    paths = store.read("path")
    found = [
        (-p[r].max(), str(paths[r]), SPLITS[split[r]], names[labels[r]], names[predicted[r]])
        for r in rows
    ]
    return sorted(found)


def shown(found: Evaluation) -> list[tuple[str, str, str, str]]:
    return [(m.path, m.split, m.true, m.predicted) for m in found.mistakes]


@pytest.mark.parametrize("chunk_images", [600, 250, 64, 19])
def test_equals_scikit_learn_on_the_whole(
    make_store: MakeStore, threads: Client, chunk_images: int
) -> None:
    store = make_store(n_classes=N_CLASSES, chunk_images=chunk_images, distance=0.3)
    split = store.read("split")
    split[:40] = NO_SPLIT  # as rows that were skipped
    store.write_split(split, {"made": "by a test"})
    head = rough_head(store)
    found = evaluate(store, head, threads)
    split, labels, p = whole(store, head)
    assert list(found.scores) == list(SPLITS)
    assert sum(scores.n_images for scores in found.scores.values()) == 560
    for index, name in enumerate(SPLITS):
        rows = split == index
        true, predicted, scores = labels[rows], p[rows].argmax(axis=1), found.scores[name]
        every = range(N_CLASSES)
        assert scores.n_images == rows.sum()
        assert scores.accuracy == pytest.approx(sk.accuracy_score(true, predicted))
        assert 0.3 < scores.accuracy < 0.95  # a comparison that says something
        assert scores.top5 == pytest.approx(
            sk.top_k_accuracy_score(true, p[rows], k=5, labels=every)
        )
        assert scores.log_loss == pytest.approx(sk.log_loss(true, p[rows], labels=every), rel=1e-5)
        precision, recall, f1, n = sk.precision_recall_fscore_support(
            true, predicted, labels=every, zero_division=0
        )
        assert scores.mean_precision == pytest.approx(precision.mean())
        assert scores.mean_recall == pytest.approx(recall.mean())
        assert scores.mean_f1 == pytest.approx(f1.mean())
        for k, class_name in enumerate(store.class_names):
            assert scores.classes[class_name] == pytest.approx(
                {"n_images": n[k], "precision": precision[k], "recall": recall[k], "f1": f1[k]}
            )
        confusion = np.zeros((N_CLASSES, N_CLASSES), int)
        for t, q, count in scores.confusion:
            confusion[t, q] = count
        assert (confusion == sk.confusion_matrix(true, predicted, labels=every)).all()


@pytest.mark.parametrize("chunk_images", [600, 64, 19])
def test_mistakes_are_the_most_confident_outside_training(
    make_store: MakeStore, threads: Client, chunk_images: int
) -> None:
    store = make_store(n_classes=N_CLASSES, chunk_images=chunk_images, distance=0.3)
    head = rough_head(store)
    held_out = [m for m in serial_mistakes(store, head) if m[2] != "train"]
    assert len(held_out) > 30
    found = evaluate(store, head, threads, n_mistakes=12)
    assert shown(found) == [m[1:] for m in held_out[:12]]
    assert [m.probability for m in found.mistakes] == pytest.approx(
        [-m[0] for m in held_out[:12]], rel=1e-5
    )
    everything = evaluate(store, head, threads, n_mistakes=10_000)
    assert shown(everything) == [m[1:] for m in held_out]
    assert evaluate(store, head, threads, n_mistakes=0).mistakes == ()


def test_equally_confident_mistakes_are_in_the_order_of_their_paths(
    make_store: MakeStore, threads: Client
) -> None:
    store = make_store(n_classes=N_CLASSES, chunk_images=64)
    # One class for every image, with one probability.
    bias = np.zeros(N_CLASSES, np.float32)
    bias[0] = 1
    head = replace(rough_head(store, scale=0), bias=bias)
    found = evaluate(store, head, threads, n_mistakes=40)
    assert len({m.probability for m in found.mistakes}) == 1
    paths = store.read("path")[(store.read("label") > 0) & (store.read("split") > 0)]
    assert [m.path for m in found.mistakes] == sorted(map(str, paths))[:40]


def test_mistakes_on_training_images_where_there_are_no_others(
    make_store: MakeStore, threads: Client
) -> None:
    store = make_store(n_classes=N_CLASSES, distance=0.3, shares=(1.0, 0.0, 0.0))
    head = rough_head(store)
    found = evaluate(store, head, threads, n_mistakes=9)
    assert shown(found) == [m[1:] for m in serial_mistakes(store, head)[:9]]
    assert {m.split for m in found.mistakes} == {"train"}


def test_a_split_without_rows_is_absent(make_store: MakeStore, threads: Client) -> None:
    store = make_store(n_classes=N_CLASSES, shares=(0.7, 0.0, 0.3))
    found = evaluate(store, rough_head(store), threads)
    assert list(found.scores) == ["train", "test"]


@pytest.mark.parametrize("n_workers", [1, 3])
def test_the_same_bits_on_any_workers(
    make_store: MakeStore, threads: Client, n_workers: int
) -> None:
    store = make_store(n_classes=N_CLASSES, chunk_images=30, distance=0.3)
    head = rough_head(store)
    with local_cluster(n_workers) as local, Client(local) as client:
        found = evaluate(store, head, client)
    assert found.to_json() == evaluate(store, head, threads).to_json()


def test_the_same_bits_where_tasks_take_many_chunks(
    make_store: MakeStore, threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(n_classes=N_CLASSES, chunk_images=13, distance=0.3)
    head, found = rough_head(store), []
    spec = TrainingSpec(store, TrainConfig(epochs=1.0), "fc2", 0)
    for most_tasks in (8192, 8):
        monkeypatch.setattr(spread, "_MOST_TASKS", most_tasks)
        trained = trainer.train(spec, threads).head
        found.append((evaluate(store, head, threads).to_json(), trained.to_bytes()))
    assert found[0] == found[1]


def test_the_same_bits_on_any_threads_of_blas(make_store: MakeStore, threads: Client) -> None:
    store = make_store(n_features=1500, n_classes=N_CLASSES, chunk_images=200, distance=0.1)
    head, found = rough_head(store), []
    for n in (1, 4):
        with threadpoolctl.threadpool_limits(n, user_api="blas"):
            found.append(evaluate(store, head, threads).to_json())
    assert found[0] == found[1]


def test_a_trained_head(make_store: MakeStore, threads: Client) -> None:
    store = make_store(n_classes=N_CLASSES)
    trained = trainer.train(TrainingSpec(store, TrainConfig(epochs=4.0), "fc2", 0), threads)
    head, history = trained.head, trained.history
    found = evaluate(store, head, threads, n_mistakes=5)
    assert found.scores["train"].accuracy == pytest.approx(history[-1].train_accuracy)
    assert found.scores["validation"].accuracy == pytest.approx(history[-1].validation_accuracy)
    before = found.scores["validation"].reliability["before"]
    assert before.log_loss == pytest.approx(history[-1].validation_loss)
    assert found.scores["validation"].log_loss < before.log_loss
    assert found.class_names == store.class_names
    assert found.provenance == {"head_sha256": head.fingerprint, "n_mistakes": 5}


def test_json_round_trip(make_store: MakeStore, threads: Client) -> None:
    store = make_store(n_classes=N_CLASSES, distance=0.3)
    found = evaluate(store, rough_head(store), threads, n_mistakes=5)
    data = found.to_json()
    again = Evaluation.from_dict(json.loads(data))
    assert again == found
    assert list(again.scores) == list(SPLITS)
    assert len(again.mistakes) == 5
    assert again.to_json() == data
    assert json.loads(data)["scores"]["test"]["n_images"] == found.scores["test"].n_images


def test_a_head_of_other_features_is_refused(make_store: MakeStore, threads: Client) -> None:
    store = make_store(n_classes=N_CLASSES)
    head = rough_head(store)
    other = replace(
        head, provenance={"layer": "fc2", "features": {"made": "elsewhere", "pooling": "max"}}
    )
    message = (
        rf"The head was not trained on the features of {store.url}:\n"
        r"  made: asked for 'elsewhere', stored 'by a test'\n"
        r"  pooling: asked for 'max', stored None$"
    )
    with pytest.raises(ValueError, match=message):
        evaluate(store, other, threads)
    scoring.check_trained_on(store, head)


def test_a_head_of_another_split_is_refused(make_store: MakeStore, threads: Client) -> None:
    store = make_store(n_classes=N_CLASSES)
    head = trainer.train(TrainingSpec(store, TrainConfig(epochs=1.0), "fc2", 0), threads).head
    split, settings = store.read("split"), store.split_fingerprint
    assert settings is not None
    # As `tune` or a training that is interrupted leaves it: training images are to be tested.
    store.write_split(np.roll(split, 1), {"method": "random", "test": 0.3})
    message = (
        r"images that it was trained on would count as ones that it has not seen:\n"
        r"  split\.made: asked for 'by a test', stored None\n"
        r"  split\.method: asked for None, stored 'random'\n"
        r"  split\.test: asked for None, stored 0\.3\nRun the train stage again"
    )
    with pytest.raises(ValueError, match=message):
        evaluate(store, head, threads)
    store.write_split(split, settings)
    assert evaluate(store, head, threads).scores["test"].n_images == (split == TEST).sum()


def test_a_dead_hidden_layer_is_told(
    make_store: MakeStore, threads: Client, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(200)
    config = TrainConfig(n_shards=2, epochs=1.0, hidden_units=3)
    alive = trainer.train(TrainingSpec(store, config, "fc2", 0), threads).head
    evaluate(store, alive, threads)
    assert not caplog.records
    tested = store.read("split") == TEST
    store.write_split(np.where(tested, TEST, NO_SPLIT).astype(np.int8), {"made": "by a test"})
    # As where too long a step has pushed the biases down: one image has a unit left, then none.
    inputs = (store.read("fc2")[tested] - alive.mean) / alive.scale @ alive.hidden_kernel
    nearly, dead = (
        replace(alive, hidden_bias=np.full(3, more - inputs.max(), np.float32))
        for more in (0.01, -0.01)
    )
    evaluate(store, nearly, threads)
    assert not caplog.records
    found = evaluate(store, dead, threads)
    assert "all 3 units are 0 for every image" in caplog.text
    assert "train with a lower train.learning_rate" in caplog.text
    assert len({predicted for _, predicted, _ in found.scores["test"].confusion}) == 1
