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
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from distributed import Client, Future
from numpy.typing import NDArray

from dtl import averaging, replica, softmax
from dtl.averaging import Moments
from dtl.config import TrainConfig
from dtl.feature_store import FeatureStore
from dtl.progress import track
from dtl.softmax import Params
from dtl.types import TRAIN, VALIDATION, Head, Round
from dtl.workers import tree_reduce

log = logging.getLogger(__name__)

_ROUNDS_AHEAD = 4
_MOST_SHARDS = 8


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
    n_shards = count_shards(store, config)
    split = store.read("split")
    _check_classes(split, store)
    run = uuid.uuid4().hex[:8]
    shards, moments = load_shards(store, layer, n_shards, client, run)
    start = client.submit(
        softmax.zeros, store.n_features(layer), len(store.class_names), key=f"start-{run}"
    )
    chunk = np.arange(store.n_images) // store.chunk_images
    n_train = np.bincount(chunk[split == TRAIN] % n_shards, minlength=n_shards)
    trained, history = fit(
        shards, n_train, start, config, seed, client,
        run=run, has_validation=bool((split == VALIDATION).any()),
    )  # fmt: skip
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


def count_shards(store: FeatureStore, config: TrainConfig) -> int:
    """How many replicas train on a store.

    Raises
    ------
    ValueError
        If there are more than chunks.
    """
    n_shards = config.n_shards or min(_MOST_SHARDS, store.n_chunks)
    if n_shards > store.n_chunks:
        raise ValueError(
            f"train.n_shards = {n_shards}, but the store has {store.n_chunks} chunks, and a shard "
            "trains on whole ones. Use fewer shards, or smaller chunks (features.chunk_images)."
        )
    return n_shards


def load_shards(
    store: FeatureStore, layer: str, n_shards: int, client: Client, run: str
) -> tuple[list[Future], Future]:
    """Bring a store's rows to the workers, standardised by the training rows.

    Returns
    -------
    shards : list of futures of Shard
    moments : future of Moments
        Of the training rows.
    """
    moments = tree_reduce(
        client,
        [
            client.submit(replica.chunk_moments, store, layer, chunk, key=f"moments-{run}-{chunk}")
            for chunk in range(store.n_chunks)
        ],
        averaging.combine_moments,
        name=f"combine-moments-{run}",
    )
    shards = [
        client.submit(
            replica.load_shard,
            store, layer, index, range(index, store.n_chunks, n_shards), moments,
            key=f"load-shard-{run}-{index}",
        )
        for index in range(n_shards)
    ]  # fmt: skip
    return shards, moments


def fit(
    shards: list[Future],
    n_train: NDArray[np.integer[Any]],
    start: Future,
    config: TrainConfig,
    seed: int,
    client: Client,
    *,
    run: str,
    has_validation: bool,
) -> tuple[Params, list[Round]]:
    """Run all rounds.

    Parameters
    ----------
    shards : list of futures of Shard
    n_train : (n_shards,) int
        Training rows of each.
    start : future of Params
    run : str
        Unique; in the names of the tasks.
    has_validation : bool
        Whether any shard has validation rows.

    Returns
    -------
    params : Params
        After the last round.
    history : list of Round

    Raises
    ------
    ValueError
        For features that are not finite, or a learning rate that diverges.
    """
    n_shards, params = len(shards), start
    plan = _Plan.make(n_train, config, seed)
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
        stats: replica.RoundStats = stats_future.result()
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
    return trained, history


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


@dataclass(frozen=True)
class _Plan:
    """The arithmetic of rounds, steps and learning rates."""

    config: TrainConfig
    seed: int
    n_train: int
    steps_per_epoch: int
    n_rounds: int

    @classmethod
    def make(cls, rows: NDArray[np.integer[Any]], config: TrainConfig, seed: int) -> _Plan:
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
    """One round's tasks; futures of the new parameters and of the round's `RoundStats`."""
    rates = plan.learning_rates(index)
    parts = [
        client.submit(
            replica.local_steps, params, shard, index, rates, plan.config, plan.seed,
            key=f"local-steps-{key}-{s}",
        )
        for s, shard in enumerate(shards)
    ]  # fmt: skip
    total = tree_reduce(
        client, parts, replica.combine, name=f"add-up-{key}", depth=plan.config.aggregation_depth
    )
    both = client.submit(
        replica.average, total, params, plan.config.average_optimizer, key=f"avg-{key}"
    )
    new = client.submit(replica.first, both, key=f"params-{key}")
    return new, client.submit(replica.second, both, key=f"stats-{key}")


def _submit_scores(
    client: Client, params: Future, shards: list[Future], has_validation: bool, key: str
) -> Future:
    parts = [
        client.submit(replica.score_shard, params, shard, key=f"score-{key}-{s}")
        for s, shard in enumerate(shards)
    ]
    return client.submit(replica.combine_scores, parts, has_validation, key=f"scores-{key}")
