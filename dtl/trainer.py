"""The third stage: a softmax head on the features, by local SGD on the workers and averaging.

A round is: every shard takes `averaging_frequency` steps from the current parameters, on its own
rows, and a tree adds the results up to their average. Parameters stay on the workers; the driver
submits rounds ahead and reads only losses. Random numbers come from (seed, shard, epoch), and the
tree's shape from the number of shards, so the head has the same bits on any number of workers, and
when some are lost on the way: Dask then computes again what they held.
"""

from __future__ import annotations

import io
import logging
import math
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import threadpoolctl
from distributed import Client, Future
from numpy.typing import NDArray

from dtl import averaging, softmax
from dtl.averaging import Moments, WeightedSum
from dtl.config import TrainConfig
from dtl.feature_store import FeatureStore
from dtl.progress import track
from dtl.softmax import Params
from dtl.types import TRAIN, VALIDATION, Head, Round
from dtl.workers import tree_reduce

log = logging.getLogger(__name__)

_ROUNDS_AHEAD = 4
_MOST_SHARDS = 8


@dataclass(frozen=True, eq=False)
class Shard:
    """The rows that one replica trains on, and those that it validates on, standardised.

    Parameters
    ----------
    index : int
    features : (n, n_features) float32
        Training rows first, chunk after chunk, then validation rows.
    labels : (n,) int32
    chunk_rows : tuple of int
        Training rows of each chunk.
    """

    index: int
    features: NDArray[np.float32]
    labels: NDArray[np.int32]
    chunk_rows: tuple[int, ...]

    @property
    def n_train(self) -> int:
        """Training rows."""
        return sum(self.chunk_rows)

    def order(self, seed: int, epoch: int) -> NDArray[np.intp]:
        """The training rows in an epoch's order: chunks shuffled, and rows within each.

        Rows were shuffled over all chunks when they were listed, so this is as good as shuffling
        all, and features can be read chunk by chunk.
        """
        rng = np.random.default_rng([seed, self.index, epoch])
        starts = np.concatenate([[0], np.cumsum(self.chunk_rows)])
        return np.concatenate(
            [
                starts[c] + rng.permutation(self.chunk_rows[c])
                for c in rng.permutation(len(self.chunk_rows))
            ]
        ).astype(np.intp)


@dataclass(frozen=True, eq=False)
class _Partial:
    """What one or more shards bring to a round's average."""

    total: WeightedSum
    losses: Mapping[int, float]
    step_s: float
    average_s: float


@dataclass(frozen=True)
class _RoundStats:
    losses: Mapping[int, float]
    loss: float
    update_ratio: float
    spread: float
    step_s: float
    average_s: float


def provenance(store: FeatureStore, config: TrainConfig, layer: str, seed: int) -> dict[str, Any]:
    """All that a head follows from; a head of other provenance is trained again."""
    return {
        "features": store.settings,
        "weights_sha256": store.attrs["weights_sha256"],
        "split": store.split_settings,
        "layer": layer,
        "train": asdict(config) | {"layer": layer},
        "seed": seed,
    }


def train(
    store: FeatureStore, config: TrainConfig, layer: str, seed: int, client: Client
) -> tuple[Head, list[Round]]:
    """Train a head on the rows of a store that the split gives to training.

    Parameters
    ----------
    store : FeatureStore
        With a split.
    layer : str
        Whose features.
    client : distributed.Client

    Returns
    -------
    head : Head
        After the last round.
    history : list of Round

    Raises
    ------
    ValueError
        For settings that the store does not fit, features that are not finite, or a learning rate
        that diverges.
    """
    n_shards = config.n_shards or min(_MOST_SHARDS, store.n_chunks)
    if n_shards > store.n_chunks:
        raise ValueError(
            f"train.n_shards = {n_shards}, but the store has {store.n_chunks} chunks, and a shard "
            "trains on whole ones. Use fewer shards, or smaller chunks (features.chunk_images)."
        )
    split = store.read("split")
    _check_classes(split, store)
    run = uuid.uuid4().hex[:8]
    moments = tree_reduce(
        client,
        [
            client.submit(_chunk_moments, store, layer, chunk, key=f"moments-{run}-{chunk}")
            for chunk in range(store.n_chunks)
        ],
        averaging.combine_moments,
        name=f"combine-moments-{run}",
    )
    shards = [
        client.submit(
            _load_shard, store, layer, index, range(index, store.n_chunks, n_shards), moments,
            key=f"load-shard-{run}-{index}",
        )
        for index in range(n_shards)
    ]  # fmt: skip
    params = client.submit(
        softmax.zeros, store.n_features(layer), len(store.class_names), key=f"start-{run}"
    )
    has_validation = bool((split == VALIDATION).any())
    plan = _Plan.make(split, store, n_shards, config, seed)
    log.info(
        "training: %d rows in %d shards, %d rounds of %d batches of %d",
        plan.n_train, n_shards, plan.n_rounds, config.averaging_frequency, config.batch_size,
    )  # fmt: skip
    history: list[Round] = []
    pending: deque[tuple[int, Future, Future | None]] = deque()
    last = time.monotonic()

    def read_oldest() -> Round:
        nonlocal last
        index, stats_future, scores_future = pending.popleft()
        stats: _RoundStats = stats_future.result()
        scores = scores_future.result() if scores_future else None
        now = time.monotonic()
        elapsed, last = now - last, now
        if not (math.isfinite(stats.loss) and math.isfinite(stats.update_ratio)):
            raise ValueError(
                f"Training diverged in round {index + 1}: the loss is {stats.loss}. Lower "
                f"train.learning_rate (now {config.learning_rate})."
            )
        return Round(
            round=index + 1,
            epoch=(index + 1) * config.averaging_frequency / plan.steps_per_epoch,
            loss=stats.loss,
            shard_loss=tuple(stats.losses.get(s, math.nan) for s in range(n_shards)),
            learning_rate=plan.learning_rates(index)[0],
            update_ratio=stats.update_ratio,
            spread=stats.spread,
            step_s=stats.step_s,
            average_s=stats.average_s,
            wait_s=max(elapsed - stats.step_s - stats.average_s, 0.0),
            **(scores or {}),
        )

    with track("training", plan.n_rounds, "rounds") as advance:

        def keep(done: Round) -> None:
            history.append(done)
            note = f"loss {done.loss:.4f}"
            scored = next((h for h in reversed(history) if not math.isnan(h.train_accuracy)), None)
            if scored is not None and not math.isnan(scored.validation_accuracy):
                note += f", validation {scored.validation_accuracy:.1%}"
            advance(1, note)

        for index in range(plan.n_rounds):
            params, stats = _submit_round(client, params, shards, index, plan, f"{run}-{index}")
            scored = (index + 1) % plan.validate_every == 0 or index + 1 == plan.n_rounds
            scores = (
                _submit_scores(client, params, shards, has_validation, f"{run}-{index}")
                if scored
                else None
            )
            pending.append((index, stats, scores))
            if len(pending) > _ROUNDS_AHEAD:
                keep(read_oldest())
        while pending:
            keep(read_oldest())
    trained: Params = params.result()
    final: Moments = moments.result()
    head = Head(
        kernel=trained["kernel"],
        bias=trained["bias"],
        mean=final.mean.astype(np.float32),
        scale=final.scale(),
        class_names=store.class_names,
        provenance=provenance(store, config, layer, seed),
    )
    return head, history


def history_to_bytes(history: list[Round]) -> bytes:
    """A Parquet file with one row a round."""
    columns = {f.name: [getattr(row, f.name) for row in history] for f in fields(Round)}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def history_from_bytes(data: bytes) -> list[Round]:
    """Read what `history_to_bytes` wrote."""
    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    return [Round(**(row | {"shard_loss": tuple(row["shard_loss"])})) for row in rows]


# --- on the driver -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """The arithmetic of rounds, steps and learning rates."""

    config: TrainConfig
    seed: int
    n_train: int
    steps_per_epoch: int
    n_rounds: int

    @classmethod
    def make(
        cls,
        split: NDArray[np.int8],
        store: FeatureStore,
        n_shards: int,
        config: TrainConfig,
        seed: int,
    ) -> _Plan:
        chunk = np.arange(store.n_images) // store.chunk_images
        rows = np.bincount(chunk[split == TRAIN] % n_shards, minlength=n_shards)
        steps_per_epoch = math.ceil(rows.max() / config.batch_size)
        n_rounds = math.ceil(config.epochs * steps_per_epoch / config.averaging_frequency)
        return cls(config, seed, int(rows.sum()), steps_per_epoch, n_rounds)

    @property
    def validate_every(self) -> int:
        """Rounds between two validations."""
        return self.config.validate_every or max(1, self.n_rounds // 30)

    def learning_rates(self, index: int) -> list[float]:
        """Of the steps of a round."""
        config = self.config
        steps = range(index * config.averaging_frequency, (index + 1) * config.averaging_frequency)
        if config.schedule == "constant":
            return [config.learning_rate for _ in steps]
        last = self.n_rounds * config.averaging_frequency
        return [config.learning_rate * 0.5 * (1 + math.cos(math.pi * s / last)) for s in steps]


def _check_classes(split: NDArray[np.int8], store: FeatureStore) -> None:
    labels = store.read("label")
    counts = np.bincount(labels[split == TRAIN], minlength=len(store.class_names))
    if not counts.any():
        raise ValueError("No image of the store is in the training split. Change [split].")
    if missing := [store.class_names[k] for k in np.flatnonzero(counts == 0)]:
        log.warning(
            "%d classes have no training image and will never be predicted: %s",
            len(missing), ", ".join(missing[:10]),
        )  # fmt: skip


def _submit_round(
    client: Client, params: Future, shards: list[Future], index: int, plan: _Plan, key: str
) -> tuple[Future, Future]:
    """One round's tasks; futures of the new parameters and of the round's `_RoundStats`."""
    rates = plan.learning_rates(index)
    parts = [
        client.submit(
            _local_steps, params, shard, index, rates, plan.config, plan.seed,
            key=f"local-steps-{key}-{s}",
        )
        for s, shard in enumerate(shards)
    ]  # fmt: skip
    total = tree_reduce(
        client, parts, _combine, name=f"add-up-{key}", depth=plan.config.aggregation_depth
    )
    both = client.submit(_average, total, params, plan.config.average_optimizer, key=f"avg-{key}")
    new = client.submit(_first, both, key=f"params-{key}")
    return new, client.submit(_second, both, key=f"stats-{key}")


def _submit_scores(
    client: Client, params: Future, shards: list[Future], has_validation: bool, key: str
) -> Future:
    parts = [
        client.submit(_score_shard, params, shard, key=f"score-{key}-{s}")
        for s, shard in enumerate(shards)
    ]
    return client.submit(_combine_scores, parts, has_validation, key=f"scores-{key}")


# --- on the workers ------------------------------------------------------------------------------


def _chunk_moments(store: FeatureStore, layer: str, chunk: int) -> Moments:
    features = store.read(layer, chunk)
    if not np.isfinite(features).all():
        rows = np.flatnonzero(~np.isfinite(features).all(axis=1))
        raise ValueError(
            f"Features must be finite. Received: NaN or infinity in chunk {chunk}, at "
            f"{store.read('path', chunk)[rows[0]]}. Compute them again with --overwrite"
            + (" and --features.dtype float32." if store.dtype(layer) == np.float16 else ".")
        )
    return Moments.of(features[store.read("split", chunk) == TRAIN])


def _load_shard(
    store: FeatureStore, layer: str, index: int, chunks: range, moments: Moments
) -> Shard:
    mean, scale = moments.mean.astype(np.float32), moments.scale()
    parts: dict[int, list[NDArray[np.float32]]] = {TRAIN: [], VALIDATION: []}
    labels: dict[int, list[NDArray[np.int32]]] = {TRAIN: [], VALIDATION: []}
    for chunk in chunks:
        features = store.read(layer, chunk).astype(np.float32)
        features -= mean
        features /= scale
        split, label = store.read("split", chunk), store.read("label", chunk)
        for part in parts:
            parts[part].append(features[split == part])
            labels[part].append(label[split == part])
    return Shard(
        index,
        np.concatenate(parts[TRAIN] + parts[VALIDATION]),
        np.concatenate(labels[TRAIN] + labels[VALIDATION]),
        tuple(len(rows) for rows in parts[TRAIN]),
    )


def local_batches(
    shard: Shard, first: int, n_steps: int, batch_size: int, seed: int
) -> Iterator[NDArray[np.intp]]:
    """The rows of a shard's steps from the step `first` on, over the epochs' ends."""
    steps_per_epoch = math.ceil(shard.n_train / batch_size)
    order, epoch = np.empty(0, np.intp), -1
    for step in range(first, first + n_steps):
        if step // steps_per_epoch != epoch:
            epoch = step // steps_per_epoch
            order = shard.order(seed, epoch)
        start = step % steps_per_epoch * batch_size
        yield order[start : start + batch_size]


def _local_steps(
    params: Params, shard: Shard, index: int, rates: list[float], config: TrainConfig, seed: int
) -> _Partial:
    """One shard's part of a round."""
    if shard.n_train == 0:
        return _Partial(WeightedSum(), {}, 0.0, 0.0)
    started = time.perf_counter()
    local = {name: value.copy() for name, value in params.items()}
    batches = local_batches(shard, index * len(rates), len(rates), config.batch_size, seed)
    # A diverging learning rate ends in infinities, which the driver reports.
    with _one_blas_thread(), np.errstate(all="ignore"):
        loss = softmax.sgd(
            local, shard.features, shard.labels, batches, rates,
            momentum=config.momentum, l2=config.l2,
        )  # fmt: skip
        stepped = time.perf_counter()
        total = WeightedSum.of(local, shard.n_train)
    return _Partial(total, {shard.index: loss}, stepped - started, time.perf_counter() - stepped)


def _combine(parts: list[_Partial]) -> _Partial:
    started = time.perf_counter()
    total = averaging.combine([part.total for part in parts])
    return _Partial(
        total,
        {shard: loss for part in parts for shard, loss in part.losses.items()},
        max(part.step_s for part in parts),
        max(part.average_s for part in parts) + time.perf_counter() - started,
    )


def _average(part: _Partial, before: Params, average_optimizer: bool) -> tuple[Params, _RoundStats]:
    started = time.perf_counter()
    with np.errstate(all="ignore"):
        params, spread = averaging.average(part.total)
        if not average_optimizer:
            params |= {name: np.zeros_like(v) for name, v in params.items() if "_velocity" in name}
        change = float(np.linalg.norm(params["kernel"] - before["kernel"]))
        norm = float(np.linalg.norm(params["kernel"]))
    stats = _RoundStats(
        losses=part.losses,
        loss=float(np.mean(list(part.losses.values()))),
        update_ratio=change / norm if norm else 0.0,
        spread=spread,
        step_s=part.step_s,
        average_s=part.average_s + time.perf_counter() - started,
    )
    return params, stats


def _first(both: tuple[Params, _RoundStats]) -> Params:
    return both[0]


def _second(both: tuple[Params, _RoundStats]) -> _RoundStats:
    return both[1]


def _score_shard(params: Params, shard: Shard) -> NDArray[np.float64]:
    """Rows, right ones and summed loss of the training and of the validation rows, (2, 3)."""
    sums = np.zeros((2, 3))
    with _one_blas_thread(), np.errstate(all="ignore"):
        log_p = softmax.log_softmax(shard.features @ params["kernel"] + params["bias"])
    true = log_p[np.arange(len(log_p)), shard.labels].astype(np.float64)
    right = log_p.argmax(axis=1) == shard.labels
    for part, rows in enumerate((slice(0, shard.n_train), slice(shard.n_train, None))):
        sums[part] = len(true[rows]), right[rows].sum(), -true[rows].sum()
    return sums


def _combine_scores(parts: list[NDArray[np.float64]], has_validation: bool) -> dict[str, float]:
    (n_train, train_right, _), (n, right, loss) = sum(parts[1:], start=parts[0])
    scores = {"train_accuracy": float(train_right / n_train)}
    if has_validation:
        scores |= {"validation_accuracy": float(right / n), "validation_loss": float(loss / n)}
    return scores


_blas_lock = Lock()
_blas_users = 0
_blas_limit: Any = None


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """One thread a product, in all of the process's tasks at once.

    The tasks of a process already use its processors, and a product's last bits depend on the
    number of its threads. Limits are of the process, so the first task in sets it and the last one
    out lifts it.
    """
    global _blas_users, _blas_limit
    with _blas_lock:
        _blas_users += 1
        if _blas_users == 1:
            _blas_limit = _controller().limit(limits=1, user_api="blas")
    try:
        yield
    finally:
        with _blas_lock:
            _blas_users -= 1
            if _blas_users == 0:
                _blas_limit.restore_original_limits()


_found: list[threadpoolctl.ThreadpoolController] = []


def _controller() -> threadpoolctl.ThreadpoolController:
    """Looking for the process's libraries takes milliseconds; once is enough."""
    if not _found:
        _found.append(threadpoolctl.ThreadpoolController())
    return _found[0]
