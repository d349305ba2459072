from __future__ import annotations

import gc
import pickle
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import MakeStore

from dtl.config import TrainConfig
from dtl.features import streaming
from dtl.features.store import FeatureStore
from dtl.features.streaming import StoredFeatures
from dtl.head import softmax
from dtl.head.scaling import Moments, Scaling
from dtl.images.values import TRAIN, VALIDATION
from dtl.training import lbfgs, local_sgd, sharding, trainer
from dtl.training.sharding import Shard
from dtl.training.spec import TrainingSpec

CONFIG = TrainConfig(n_shards=3, epochs=4.0, batch_size=16, averaging_frequency=5)


def both(store: FeatureStore, chunks: range) -> tuple[Shard, Shard]:
    columns = store.read("split"), store.read("label")
    moments = Moments.of(store.read("fc2")[columns[0] == TRAIN])
    scaling = Scaling.fit(moments, "standardise")
    return tuple(
        sharding.load_shard(store, "fc2", chunks, scaling, columns, where)  # type: ignore[return-value]
        for where in ("memory", "store")
    )


@pytest.mark.parametrize("workers", ["threads", "processes"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "lbfgs", "l2": 0.1},
        {"hidden_units": 12, "dropout": 0.3},
        {"normalize": "sqrt-l2"},
    ],
    ids=str,
)
def test_same_bits_as_from_memory(
    make_store: MakeStore, request: pytest.FixtureRequest, workers: str, options: dict[str, Any]
) -> None:
    client = request.getfixturevalue(workers)
    store = make_store()
    config = replace(CONFIG, **options)
    trained = [
        trainer.train(TrainingSpec(store, replace(config, features_in=where), "fc2", 1), client)
        for where in ("memory", "store")
    ]
    assert trained[0].head.to_bytes() == trained[1].head.to_bytes()
    for one, other in zip(trained[0].history, trained[1].history, strict=True):
        same = {"step_s": 0.0, "average_s": 0.0, "wait_s": 0.0}
        assert repr(replace(one, **same)) == repr(replace(other, **same))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_are_those_of_the_store_standardised(make_store: MakeStore, dtype: str) -> None:
    store = make_store(330)  # the last chunk is short
    memory, stored = both(store, range(1, store.n_chunks, 2))
    assert isinstance(stored.features, StoredFeatures)
    split, x = store.read("split"), store.read("fc2")
    train = x[split == TRAIN].astype(np.float64)
    deviation = train.std(axis=0)
    scale = np.where(deviation < 1e-6, 1, deviation)
    expected = [
        x[store.rows(c)][split[store.rows(c)] == part]
        for part in (TRAIN, VALIDATION)
        for c in range(1, store.n_chunks, 2)
    ]
    standardised = (np.concatenate(expected) - train.mean(axis=0)) / scale
    assert np.allclose(memory.features[:], standardised, atol=1e-5)
    rng = np.random.default_rng(0)
    for rows in (np.arange(len(stored.features)), rng.permutation(60), np.empty(0, np.intp)):
        assert (stored.features[rows] == memory.features[rows]).all()
    assert (stored.features[10:50] == memory.features[10:50]).all()
    assert (stored.labels == memory.labels).all()
    assert stored.chunk_rows == memory.chunk_rows
    assert len(stored.features) == len(memory.labels)


def test_scores_are_those_of_all_rows_at_once(make_store: MakeStore) -> None:
    store = make_store()
    shards = both(store, range(0, store.n_chunks, 2))
    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.normal(size=(20, 5)).astype(np.float32),
        "bias": rng.normal(size=5).astype(np.float32),
    }
    sums = [local_sgd.score_shard(params, shard) for shard in shards]
    assert (sums[0] == sums[1]).all()
    n = shards[0].n_train
    for part, rows in enumerate((slice(0, n), slice(n, None))):
        logits = shards[0].features[rows].astype(np.float64) @ params["kernel"] + params["bias"]
        y = shards[0].labels[rows]
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        right = (logits.argmax(axis=1) == y).sum()
        expected = len(y), right, -log_p[np.arange(len(y)), y].sum()
        assert sums[0][part] == pytest.approx(expected, rel=1e-5)


def test_blocks_are_whole_chunks_and_all_rows(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "_BLOCK_ROWS", 90)
    for shard in both(make_store(330), range(7)):  # the last chunk is short
        blocks = list(shard.blocks())
        assert 1 < len(blocks) < 7
        for part, rows in zip((0, 1), (range(shard.n_train), None), strict=True):
            rows = rows or range(shard.n_train, len(shard.labels))
            every = range(len(shard.labels))
            assert [i for block in blocks for i in every[block[part]]] == [*rows]
            found = [block[part] for block in shard.scan()]
            features, labels = (np.concatenate(values) for values in zip(*found, strict=True))
            assert (features == shard.features[np.array(rows)]).all()
            assert (labels == shard.labels[rows]).all()


def test_features_that_begin_at_any_byte_give_the_same_bits(make_store: MakeStore) -> None:
    """They may, where a shard came from another worker."""
    shard, _ = both(make_store(n_features=400), range(4))
    assert isinstance(shard.features, np.ndarray)
    odd = np.ndarray(
        shard.features.shape, np.float32, bytearray(shard.features.nbytes + 1), offset=1
    )
    odd[...] = shard.features
    assert not odd.flags.aligned
    params = softmax.zero_params(400, 5)
    one, other = (lbfgs.shard_gradient(params, s) for s in (shard, replace(shard, features=odd)))
    assert (one.kernel == other.kernel).all()
    assert (one.scores == other.scores).all()


def test_chunks_are_read_ahead_and_once_an_epoch(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    _, shard = both(store, range(store.n_chunks))
    read: list[tuple[int, str]] = []
    whole = FeatureStore.read

    def counted(self: FeatureStore, name: str, chunk: int | None = None) -> np.ndarray:
        read.append((chunk, threading.current_thread().name))
        return whole(self, name, chunk)

    monkeypatch.setattr(FeatureStore, "read", counted)
    batches = list(sharding.local_batches(shard, 0, shard.n_train // 16, 16, 0))
    features = shard.rows(batches)
    for at, rows in enumerate(batches):
        features[rows]
        if at == 0:
            streaming._readers.submit(int).result()
            assert len(read) >= 2  # the first, and those after it
    chunks = [chunk for chunk, _ in read]
    assert sorted(chunks) == sorted(set(chunks)) == list(range(store.n_chunks))
    assert all(name.startswith("dtl-read-ahead") for _, name in read)


def test_few_chunks_are_kept_and_none_after_their_shard(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = streaming._Cache()
    monkeypatch.setattr(streaming, "_cache", cache)
    monkeypatch.setattr(streaming, "_CACHE_BYTES", 1)
    _, shard = both(make_store(1000), range(20))
    for rows, _ in shard.blocks():
        shard.features[rows]
    assert len(cache._reads) == streaming._LEAST_CHUNKS
    copy = pickle.loads(pickle.dumps(shard))
    assert len(pickle.dumps(shard)) < 100_000
    copy.features[np.arange(3)]
    del shard, rows
    gc.collect()
    assert len(cache._reads) == 1  # the copy's
    del copy
    gc.collect()
    assert not cache._reads


def test_a_chunk_that_cannot_be_read_is_tried_again(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shard = both(make_store(), range(4))
    with monkeypatch.context() as broken:
        broken.setattr(FeatureStore, "read", lambda *_: (_ for _ in ()).throw(OSError("gone")))
        with pytest.raises(OSError, match="gone"):
            shard.features[np.arange(3)]
    assert shard.features[np.arange(3)].shape == (3, 20)
