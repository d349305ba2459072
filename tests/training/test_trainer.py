from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from distributed import Client
from helpers import (
    MakeStore,
    a_worker_is_killed,
    descend_keras_model,
    local_cluster,
    loss_and_gradient,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dtl.config import TrainConfig
from dtl.features.store import FeatureStore
from dtl.head import hidden
from dtl.head.model import WEIGHTS, Head
from dtl.head.schedules import Plan
from dtl.images.values import TRAIN, VALIDATION
from dtl.training import sharding, trainer
from dtl.training.sharding import Shard
from dtl.training.spec import TrainingSpec
from dtl.training.values import history_from_bytes, history_to_bytes

CONFIG = TrainConfig(n_shards=4, epochs=6.0, batch_size=16, averaging_frequency=5)
HIDDEN = replace(CONFIG, hidden_units=12, dropout=0.3)


def rows(store: FeatureStore, split: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = store.read("split") == split
    return store.read("fc2")[chosen], store.read("label")[chosen]


def accuracy(head: Head, store: FeatureStore, split: int) -> float:
    features, labels = rows(store, split)
    return float((head.logits(features).argmax(axis=1) == labels).mean())


def test_one_replica_that_averages_every_batch_is_plain_sgd(
    make_store: MakeStore, threads: Client
) -> None:
    store = make_store(n_images=200)
    config = replace(CONFIG, n_shards=1, averaging_frequency=1, epochs=3.0, schedule="constant")
    trained = trainer.train(TrainingSpec(store, config, "fc2", 7), threads)
    head, history = trained.head, trained.history

    x, y = rows(store, TRAIN)
    x = (x - head.mean) / head.scale
    split = store.read("split")
    shard = Shard(0, x, y, tuple(int((split[store.rows(c)] == TRAIN).sum()) for c in range(4)))
    kernel, bias = np.zeros((20, 5)), np.zeros(5)
    kernel_v, bias_v = np.zeros((20, 5)), np.zeros(5)
    n_steps = int(np.ceil(len(y) / 16))
    for epoch in range(3):
        order = shard.order(7, epoch)
        for start in range(0, len(y), 16):
            batch = order[start : start + 16]
            logits = x[batch] @ kernel + bias
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            p[np.arange(len(batch)), y[batch]] -= 1
            kernel_g = x[batch].T @ p / len(batch) + config.l2 * kernel
            bias_g = p.mean(axis=0)
            kernel_v = 0.9 * kernel_v - config.learning_rate * kernel_g
            bias_v = 0.9 * bias_v - config.learning_rate * bias_g
            kernel += 0.9 * kernel_v - config.learning_rate * kernel_g
            bias += 0.9 * bias_v - config.learning_rate * bias_g
    assert len(history) == 3 * n_steps
    assert np.allclose(head.kernel, kernel, atol=1e-5)
    assert np.allclose(head.bias, bias, atol=1e-5)


def test_one_replica_of_a_hidden_layer_is_keras_model(
    make_store: MakeStore, threads: Client
) -> None:
    import keras

    store = make_store(n_images=200)
    config = replace(
        CONFIG, n_shards=1, averaging_frequency=1, schedule="constant", hidden_units=30
    )
    trained = trainer.train(TrainingSpec(store, config, "fc2", 7), threads)
    head, history = trained.head, trained.history
    x, y = rows(store, TRAIN)
    x = (x - head.mean) / head.scale
    split = store.read("split")
    shard = Shard(0, x, y, tuple(int((split[store.rows(c)] == TRAIN).sum()) for c in range(4)))
    batches = list(sharding.local_batches(shard, 0, len(history), 16, 7))
    start, sgd = (
        hidden.random_params(20, 30, 5, seed=7),
        keras.optimizers.SGD(momentum=0.9, nesterov=True),
    )
    expected = descend_keras_model(sgd, config, start, x, y, batches, [0.02] * len(batches))
    for name, value in zip(WEIGHTS, expected, strict=True):
        np.testing.assert_allclose(getattr(head, name), value, atol=1e-4)
        assert np.abs(value - start[name]).max() > 0.01


def xor(make_store: MakeStore) -> FeatureStore:
    """Two classes that no plane parts: whether two features have the same sign."""
    store = make_store(n_images=1200, n_features=6, n_classes=2, chunk_images=150)
    rng = np.random.default_rng(0)
    for chunk in range(store.n_chunks):
        label = store.read("label", chunk)
        features = rng.normal(size=(len(label), 6)).astype(np.float32)
        features[:, 0] = rng.choice([-2, 2], len(label)) + 0.5 * features[:, 0]
        features[:, 1] = np.sign(features[:, 0]) * (4 * label - 2) + 0.5 * features[:, 1]
        hashes = np.arange(len(label), dtype=np.uint64)
        store.write_chunk(chunk, {"fc2": features}, hashes, [""] * len(label))
    return store


def test_a_hidden_layer_finds_what_softmax_cannot(make_store: MakeStore, threads: Client) -> None:
    store = xor(make_store)
    config = replace(CONFIG, epochs=20.0, learning_rate=0.05, l2=1e-3)
    plain = trainer.train(TrainingSpec(store, config, "fc2", 0), threads).head
    assert accuracy(plain, store, VALIDATION) < 0.65
    trained = trainer.train(
        TrainingSpec(store, replace(config, hidden_units=16), "fc2", 0), threads
    )
    head, history = trained.head, trained.history
    assert accuracy(head, store, VALIDATION) > 0.97
    assert history[-1].validation_accuracy == pytest.approx(accuracy(head, store, VALIDATION))
    kernels = np.concatenate([head.hidden_kernel.ravel(), head.kernel.ravel()])
    assert history[-1].kernel_norm == pytest.approx(np.linalg.norm(kernels), rel=1e-5)


def test_comes_within_half_a_point_of_the_exact_solver(
    make_store: MakeStore, threads: Client
) -> None:
    store = make_store(n_images=3000, chunk_images=200, distance=0.5)
    config = replace(CONFIG, n_shards=8, epochs=40.0, batch_size=32)
    head = trainer.train(TrainingSpec(store, config, "fc2", 0), threads).head
    x, y = rows(store, TRAIN)
    scaler = StandardScaler().fit(x)
    exact = LogisticRegression(C=1 / (config.l2 * len(y)), max_iter=5000)
    exact.fit(scaler.transform(x), y)
    validation, labels = rows(store, VALIDATION)
    best = exact.score(scaler.transform(validation), labels)
    assert 0.5 < best < 0.95  # neither hopeless nor trivial: the comparison says something
    assert accuracy(head, store, VALIDATION) >= best - 0.005


def test_features_are_standardised_by_the_training_rows(
    make_store: MakeStore, threads: Client
) -> None:
    store = make_store()
    head = trainer.train(TrainingSpec(store, replace(CONFIG, epochs=1.0), "fc2", 0), threads).head
    scaler = StandardScaler().fit(rows(store, TRAIN)[0].astype(np.float64))
    assert np.allclose(head.mean, scaler.mean_, rtol=1e-6)
    assert np.allclose(head.scale, scaler.scale_, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [1, 2, 4])
@pytest.mark.parametrize("processes", [False, True])
def test_same_bits_on_any_workers(
    make_store: MakeStore, threads: Client, n_workers: int, processes: bool
) -> None:
    store, ways = make_store(), (CONFIG, HIDDEN)
    expected = [
        trainer.train(TrainingSpec(store, config, "fc2", 1), threads).head for config in ways
    ]
    with (
        local_cluster(n_workers, 3 - min(n_workers, 2), processes=processes) as local,
        Client(local) as client,
    ):
        heads = [
            trainer.train(TrainingSpec(store, config, "fc2", 1), client).head for config in ways
        ]
    for head, other in zip(heads, expected, strict=True):
        assert head.to_bytes() == other.to_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"features_in": "memory"}, {"features_in": "store"}, {"hidden_units": 12, "dropout": 0.3}],
    ids=str,
)
def test_same_bits_when_a_worker_is_killed_on_the_way(
    make_store: MakeStore, threads: Client, options: dict[str, Any]
) -> None:
    store = make_store(n_images=2000, n_features=200)
    config = replace(CONFIG, epochs=30.0, **options)
    expected = trainer.train(TrainingSpec(store, config, "fc2", 1), threads).head
    with a_worker_is_killed(once="stats") as client:
        trained = trainer.train(TrainingSpec(store, config, "fc2", 1), client)
        head, history = trained.head, trained.history
    assert len(history) > 10
    assert head.to_bytes() == expected.to_bytes()


@pytest.mark.slow
def test_the_seed_and_every_setting_change_the_head(make_store: MakeStore, threads: Client) -> None:
    store = make_store()
    changes = (
        {}, {"n_shards": 3}, {"averaging_frequency": 4}, {"l2": 0.5}, {"momentum": 0.5},
        {"average_optimizer": False}, {"schedule": "constant"}, {"batch_size": 8},
        {"momentum": 0.0}, {"optimizer": "adam"}, {"optimizer": "rmsprop"},
        {"optimizer": "adadelta"}, {"schedule": "exponential"},
        {"schedule": "steps", "learning_rate_steps": "2:0.01"}, {"warmup_epochs": 1.0},
        {"dropout": 0.1}, {"label_smoothing": 0.1}, {"class_weights": "balanced"},
        {"clip_norm": 0.1}, {"averaging_frequency_end": 1}, {"outer_momentum": 0.5},
        {"hidden_units": 8}, {"hidden_units": 9},
        {"hidden_units": 9, "dropout": 0.1}, {"normalize": "l2"}, {"normalize": "sqrt-l2"},
    )  # fmt: skip
    heads = [trainer.train(TrainingSpec(store, CONFIG, "fc2", 1), threads).head] + [
        trainer.train(TrainingSpec(store, replace(CONFIG, **change), "fc2", 0), threads).head
        for change in changes
    ]
    assert len({head.kernel.tobytes() for head in heads}) == len(heads)


EVERYTHING = replace(
    CONFIG, optimizer="adam", learning_rate=0.005, schedule="exponential", warmup_epochs=1.0,
    dropout=0.2, label_smoothing=0.1, class_weights="balanced", clip_norm=1.0,
    averaging_frequency_end=1, outer_momentum=0.5,
)  # fmt: skip


@pytest.mark.parametrize("n_units", [0, 12])
def test_same_bits_on_other_workers_with_every_option(
    make_store: MakeStore, threads: Client, n_units: int
) -> None:
    store, config = make_store(), replace(EVERYTHING, hidden_units=n_units)
    trained = trainer.train(TrainingSpec(store, config, "fc2", 1), threads)
    expected, history = trained.head, trained.history
    assert history[0].loss > history[-1].loss
    with local_cluster(threads=4) as local, Client(local) as client:
        head = trainer.train(TrainingSpec(store, config, "fc2", 1), client).head
    assert head.to_bytes() == expected.to_bytes()


@pytest.mark.parametrize("average_optimizer", [False, True])
def test_outer_momentum_and_adam_against_keras(
    make_store: MakeStore, threads: Client, average_optimizer: bool
) -> None:
    """One replica, three steps a round: Keras' Adam inside, its Nesterov over the rounds."""
    import keras

    store = make_store(n_images=200)
    config = replace(
        CONFIG, n_shards=1, averaging_frequency=3, epochs=2.0, optimizer="adam",
        learning_rate=0.01, schedule="constant", outer_momentum=0.8,
        average_optimizer=average_optimizer,
    )  # fmt: skip
    trained = trainer.train(TrainingSpec(store, config, "fc2", 7), threads)
    head, history = trained.head, trained.history
    x, y = rows(store, TRAIN)
    x = (x - head.mean) / head.scale
    split = store.read("split")
    shard = Shard(0, x, y, tuple(int((split[store.rows(c)] == TRAIN).sum()) for c in range(4)))
    n_steps = 2 * -(-len(y) // 16)
    batches = list(sharding.local_batches(shard, 0, n_steps, 16, 7))

    outside = [keras.Variable(np.zeros(shape, "f4")) for shape in ((20, 5), (5,))]
    inside = [keras.Variable(w) for w in outside]
    outer = keras.optimizers.SGD(1.0, 0.8, nesterov=True)
    adam = keras.optimizers.Adam(0.01)
    for step, batch in enumerate(batches, 1):
        kernel, bias = (w.numpy() for w in inside)
        _, *gradients = loss_and_gradient(kernel, bias, x[batch], y[batch], config.l2)
        adam.apply(gradients, inside)
        if step % 3 == 0 or step == n_steps:
            outer.apply([w - v for w, v in zip(outside, inside, strict=True)], outside)
            for w, v in zip(outside, inside, strict=True):
                v.assign(w)
            if not average_optimizer:
                adam = keras.optimizers.Adam(0.01)
    assert len(history) == -(-n_steps // 3)
    # Adam's steps are of one size whatever the gradient's, rounding of a small one included.
    assert np.allclose(head.kernel, outside[0].numpy(), atol=1e-4)
    assert np.allclose(head.bias, outside[1].numpy(), atol=1e-4)


@pytest.mark.parametrize("end", [0, 1, 3])
def test_rounds_cover_exactly_the_epochs_asked_for(
    make_store: MakeStore, threads: Client, end: int
) -> None:
    config = replace(CONFIG, averaging_frequency=9, averaging_frequency_end=end, epochs=2.5)
    store = make_store()
    history = trainer.train(TrainingSpec(store, config, "fc2", 0), threads).history
    chunk = np.arange(store.n_images) // store.chunk_images
    largest = np.bincount(chunk[store.read("split") == TRAIN] % 4).max()
    per_epoch = -(-largest // 16)
    assert history[-1].epoch == pytest.approx(np.ceil(2.5 * per_epoch) / per_epoch)
    steps = np.diff([0.0, *(r.epoch for r in history)]) * per_epoch
    assert np.allclose(steps, steps.round())
    steps = steps.round()
    assert steps[0] == 9
    assert (steps[:-1] >= (end or 9)).all()
    assert len(history) > -(-int(np.ceil(2.5 * per_epoch)) // 9) or not end


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"schedule": "constant"}, [0.02] * 4),
        ({"schedule": "cosine"}, [0.02, 0.02 * (2 + 2**0.5) / 4, 0.01, 0.02 * (2 - 2**0.5) / 4]),
        (
            {"schedule": "exponential"},
            [0.02, 0.02 * 10**-0.5, 0.002, 0.002 * 10**-0.5],
        ),
        (
            {"schedule": "steps", "learning_rate_steps": "1:0.3,2.5:0.1"},
            [0.02, 0.3, 0.3, 0.1],
        ),
        ({"schedule": "constant", "warmup_epochs": 2.0}, [0.02 / 24, 0.02 * 13 / 24, 0.02, 0.02]),
    ],
    ids=str,
)
def test_learning_rates_of_four_epochs(
    make_store: MakeStore, threads: Client, options: dict[str, object], rates: list[float]
) -> None:
    """One shard of 192 rows: twelve steps and one round an epoch."""
    store = make_store(192, shares=(1.0, 0.0, 0.0))
    config = replace(CONFIG, n_shards=1, epochs=4.0, averaging_frequency=12, **options)
    history = trainer.train(TrainingSpec(store, config, "fc2", 0), threads).history
    assert [r.learning_rate for r in history] == pytest.approx(rates)


@pytest.mark.slow
def test_balanced_classes_against_scikit_learn(make_store: MakeStore, threads: Client) -> None:
    store = make_store(n_images=600, distance=0.5)
    split, label = store.read("split"), store.read("label")
    split[(label == 0) & (np.arange(600) % 4 > 0)] = -1  # a rare class
    store.write_split(split, {"made": "by a test"})
    config = replace(
        CONFIG, n_shards=3, epochs=100.0, l2=0.1, class_weights="balanced",
        averaging_frequency_end=1,
    )  # fmt: skip
    trained = trainer.train(TrainingSpec(store, config, "fc2", 0), threads)
    head, history = trained.head, trained.history
    x, y = rows(store, TRAIN)
    x = (x - head.mean) / head.scale
    best = LogisticRegression(C=1 / (0.1 * len(y)), class_weight="balanced", max_iter=5000)
    best.fit(x, y)
    plain = LogisticRegression(C=1 / (0.1 * len(y)), max_iter=5000).fit(x, y)
    away = np.linalg.norm(head.kernel - best.coef_.T) / np.linalg.norm(best.coef_)
    assert away < 0.03
    assert np.linalg.norm(head.kernel - plain.coef_.T) / np.linalg.norm(best.coef_) > 3 * away
    # The reported loss is the plain one, of batches near the end.
    p = best.predict_proba(x)[np.arange(len(y)), y]
    assert history[-1].loss == pytest.approx(-np.log(p).mean(), rel=0.15)


@pytest.mark.parametrize("solver", ["averaging", "lbfgs"])
@pytest.mark.slow
def test_what_a_task_takes_changes_no_bit(
    make_store: MakeStore, threads: Client, solver: str
) -> None:
    store = make_store(n_images=700)
    config = replace(CONFIG, solver=solver, n_shards=7, epochs=3.0)
    trained = trainer.train(TrainingSpec(store, config, "fc2", 0), threads)
    head, history = trained.head, trained.history
    for n_shards, depth in ((1, 1), (1, 2), (1, 3), (2, 2), (4, 1), (8, 2)):
        other = replace(config, shards_per_task=n_shards, aggregation_depth=depth)
        trained = trainer.train(TrainingSpec(store, other, "fc2", 0), threads)
        found, rounds = trained.head, trained.history
        assert found.to_bytes() == head.to_bytes()
        times = {"step_s": 0, "average_s": 0, "wait_s": 0}
        assert [replace(r, **times) for r in rounds] == [replace(r, **times) for r in history]


def test_history_says_what_happened(
    make_store: MakeStore, threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plan, "validate_every", 3)
    store = make_store()
    trained = trainer.train(TrainingSpec(store, CONFIG, "fc2", 0), threads)
    head, history = trained.head, trained.history
    assert [r.round for r in history] == list(range(1, len(history) + 1))
    assert history[0].loss > history[-1].loss
    assert all(len(r.shard_loss) == 4 and np.isfinite(r.shard_loss).all() for r in history)
    assert all(min(r.shard_loss) <= r.loss <= max(r.shard_loss) for r in history)
    assert history[0].update_ratio == pytest.approx(1)  # from zero, the update is all there is
    assert all(r.spread > 0 and r.step_s > 0 for r in history)
    scored = [r.round for r in history if not np.isnan(r.validation_accuracy)]
    assert scored == sorted({*range(3, len(history) + 1, 3), len(history)})
    assert history[-1].validation_accuracy == pytest.approx(accuracy(head, store, VALIDATION))
    assert history[-1].train_accuracy == pytest.approx(accuracy(head, store, TRAIN))
    rates = [r.learning_rate for r in history]
    assert rates == sorted(rates, reverse=True)
    again = history_from_bytes(history_to_bytes(history))
    assert repr(again) == repr(history)  # NaN is not equal to itself


def test_batches_that_are_not_given_are_part_of_the_fingerprint(
    make_store: MakeStore, threads: Client
) -> None:
    """A head of the former default, 32, is that of few rows now."""
    store = make_store(200)
    open_, given = (
        TrainingSpec(store, replace(CONFIG, batch_size=n, epochs=1.0), "fc2", 0) for n in (0, 32)
    )
    assert open_.provenance == given.provenance
    one, other = (trainer.train(spec, threads).head for spec in (open_, given))
    assert one.to_bytes() == other.to_bytes()


def test_where_fewer_epochs_would_do_is_told(
    make_store: MakeStore, threads: Client, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(1000, distance=3.0)  # classes far apart are learnt at once
    with caplog.at_level("INFO", "dtl.training"):
        trainer.train(TrainingSpec(store, replace(CONFIG, epochs=8.0), "fc2", 0), threads)
    (line,) = [r.getMessage() for r in caplog.records if "Fewer" in r.getMessage()]
    assert "and is 100.0 % after epoch 8. Fewer `train.epochs` may do." in line


@pytest.mark.parametrize(("epochs", "n"), [(1.0, 1), (6.0, 6), (40.0, 27)])
def test_one_validation_an_epoch_unless_told_otherwise(
    make_store: MakeStore, threads: Client, epochs: float, n: int
) -> None:
    config = replace(CONFIG, n_shards=1, epochs=epochs, averaging_frequency=3)
    history = trainer.train(TrainingSpec(make_store(200), config, "fc2", 0), threads).history
    scored = [r.round for r in history if not np.isnan(r.validation_accuracy)]
    assert len(scored) == n
    assert scored[-1] == len(history)


def test_shards_without_training_rows_are_harmless(make_store: MakeStore, threads: Client) -> None:
    store = make_store(n_images=200, chunk_images=50)
    split = store.read("split")
    split[store.rows(2)] = -1
    store.write_split(split, {"made": "by a test"})
    trained = trainer.train(TrainingSpec(store, CONFIG, "fc2", 0), threads)
    head, history = trained.head, trained.history
    assert np.isnan(history[-1].shard_loss[2])
    assert np.isfinite(head.kernel).all()
    assert accuracy(head, store, TRAIN) > 0.8


def test_more_shards_than_chunks(make_store: MakeStore, threads: Client) -> None:
    with pytest.raises(ValueError, match=r"`train.n_shards` = 9, but the store has 4 chunks"):
        trainer.train(TrainingSpec(make_store(200), replace(CONFIG, n_shards=9), "fc2", 0), threads)


def test_unknown_layer(make_store: MakeStore, threads: Client) -> None:
    with pytest.raises(ValueError, match=r"No features of layer 'fc9'.*It has: \['fc2'\]"):
        trainer.train(TrainingSpec(make_store(200), CONFIG, "fc9", 0), threads)


def test_features_that_are_not_finite_name_the_image_and_what_helps(
    make_store: MakeStore, threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(200)
    features = store.read("fc2", 1)
    features[3, 2] = np.nan
    store.write_chunk(1, {"fc2": features}, np.arange(50, dtype=np.uint64), [""] * 50)
    path = store.read("path", 1)[3]
    with pytest.raises(ValueError, match=f"NaN or infinity in chunk 1, at {path}"):
        trainer.train(TrainingSpec(store, CONFIG, "fc2", 0), threads)
    # Whatever is advised must make others: the same settings would find them done.
    for dtype, precision, advice in (
        ("float32", "float32", rf"then remove {store.url}, or choose another `out`"),
        ("float32", "bfloat16", r"^.* Set `features\.precision` to float32 and `overwrite`"),
        ("float16", "float32", r"^.* Set `features\.dtype` to float32 and `overwrite`"),
        ("float16", "float16", r" Set `features\.dtype` and `features\.precision` to float32"),
    ):
        attrs = store.attrs | {"settings": {"precision": precision}}
        monkeypatch.setattr(type(store), "attrs", attrs)
        monkeypatch.setattr(store, "dtype", lambda _, dtype=dtype: np.dtype(dtype))
        with pytest.raises(ValueError, match=advice):
            sharding.chunk_moments(1, store, "fc2", "standardise")


@pytest.mark.parametrize("way", [CONFIG, HIDDEN], ids=["softmax", "hidden"])
def test_a_diverging_learning_rate_is_told(
    make_store: MakeStore, threads: Client, way: TrainConfig
) -> None:
    config = replace(way, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"diverged in round 1.*Lower `train.learning_rate`"):
        trainer.train(TrainingSpec(make_store(), config, "fc2", 0), threads)


def test_no_training_rows(make_store: MakeStore, threads: Client) -> None:
    store = make_store(200, shares=(0.0, 0.5, 0.5))
    with pytest.raises(ValueError, match="No image of the store is in the training split"):
        trainer.train(TrainingSpec(store, CONFIG, "fc2", 0), threads)


@settings(deadline=None, max_examples=50)
@given(
    chunk_rows=st.lists(st.integers(0, 20), min_size=1, max_size=5).filter(sum),
    batch_size=st.integers(1, 9),
    first=st.integers(0, 30),
)
def test_batches_pass_over_every_row_once_an_epoch(
    chunk_rows: list[int], batch_size: int, first: int
) -> None:
    n = sum(chunk_rows)
    shard = Shard(0, np.zeros((n, 1), np.float32), np.zeros(n, np.int32), tuple(chunk_rows))
    n_steps = -(-n // batch_size)
    whole = list(sharding.local_batches(shard, 0, 3 * n_steps, batch_size, 5))
    for epoch in range(3):
        seen = np.concatenate(whole[epoch * n_steps : (epoch + 1) * n_steps])
        assert sorted(seen) == list(range(n))
    later = list(sharding.local_batches(shard, first, 4, batch_size, 5))
    for batch, same in zip(later, whole[first:], strict=False):
        assert (batch == same).all()
