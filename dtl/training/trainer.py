"""The third stage: a head on the features, by local SGD on the workers and averaging.

A round is: every shard takes `averaging_frequency` steps from the current parameters, on its own
rows, and a tree merges the results to their average. Parameters stay on the workers; the driver
submits rounds ahead and reads only losses, and parameters for a checkpoint now and then. A task
takes a group of shards, one after another, where there are more of them than threads. Random
numbers come from (seed, shard, epoch), and the order of sums from the number of shards, so the head
has the same bits on any number of workers, and when some are lost on the way: Dask then computes
again what they held.
"""

from __future__ import annotations

import io
import logging
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from distributed import Client, Future
from numpy.typing import NDArray

from dtl import storage
from dtl.cluster.spread import group_shards, tree_reduce
from dtl.config import TrainConfig, to_fingerprint
from dtl.features.store import FeatureStore
from dtl.head import averaging
from dtl.head.averaging import Moments
from dtl.head.model import Head
from dtl.head.softmax import Params
from dtl.images.values import TRAIN, VALIDATION
from dtl.training import lbfgs, local_sgd, sharding, starts
from dtl.training.checkpoint import Keeper
from dtl.training.rounds import Fitted, check_stopping, fit_both
from dtl.training.values import Round

log = logging.getLogger(__name__)

MOST_SHARDS = 8


_NOT_IN_THE_HEAD = (
    "start_from", "checkpoint_every", "features_in", "shards_per_task", "aggregation_depth",
)  # fmt: skip
"""Options that do not change a head; of the one that it starts from, the content does."""


@dataclass(frozen=True, eq=False)
class Ready:
    """What training starts with, on the workers.

    Parameters
    ----------
    groups : list of futures of lists of Shard
        Of neighbouring shards, each group for one task.
    moments : future of Moments
        Of the training rows.
    start : future of Params
        As `starts.submit` has it.
    n_train : (n_shards,) int
        Training rows of each shard.
    """

    groups: list[Future]
    moments: Future
    start: Future
    n_train: NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Trained:
    """Heads that `train_both` ends with.

    Parameters
    ----------
    head : Head
        The one that `train.keep` asks for.
    other : Head or None
        The one of the best validation where `head` is the last round's, and the other way round;
        None where there is only one.
    history : list of Round
    """

    head: Head
    other: Head | None
    history: list[Round]


def provenance(
    store: FeatureStore, config: TrainConfig, layer: str, seed: int, weights: str = ""
) -> dict[str, Any]:
    """All that a head follows from; a head of other provenance is trained again.

    Parameters
    ----------
    weights : str
        As `train` has it.

    Raises
    ------
    FileNotFoundError
        If the head, or the network's weights, to start from are gone.
    """
    options = to_fingerprint(config)
    options = {name: v for name, v in options.items() if name not in _NOT_IN_THE_HEAD}
    start = starts.head_url(config.start_from) if config.start_from else ""
    made_from = {
        "features": store.fingerprint,
        "weights_sha256": store.attrs["weights_sha256"],
        "split": store.split_fingerprint,
        "layer": layer,
        "train": options | {"layer": layer},
        "start_sha256": storage.sha256(start) if start else "",
        "seed": seed,
    }
    if config.hidden_start == "network":
        made_from["start_weights"] = starts.describe_network(store, weights)
    return made_from


def train(
    store: FeatureStore,
    config: TrainConfig,
    layer: str,
    seed: int,
    client: Client,
    *,
    weights: str = "",
    checkpoint: str = "",
    overwrite: bool = False,
) -> tuple[Head, list[Round]]:
    """Train a head on the rows of a store that the split gives to training.

    Parameters
    ----------
    store : FeatureStore
        With a split.
    layer : str
        Whose features.
    client : distributed.Client
    weights : str
        As ``features.weights``, where the network's own layer is what a hidden one starts from;
        empty: as the features were made.
    checkpoint : str
        URL of the file to go on from, if it is there, and to keep until the head is safe, when
        whoever calls removes it. Empty: none.
    overwrite : bool
        Start again if the checkpoint is of other settings, or damaged.

    Returns
    -------
    head : Head
        After the last round, or of the best validation, as `config.keep` says.
    history : list of Round

    Raises
    ------
    ValueError
        For settings that the store, the checkpoint or the head to start from does not fit, features
        that are not finite, or a learning rate that diverges.
    OSError
        If the head, or the network's weights, to start from cannot be had.
    """
    trained = train_both(
        store, config, layer, seed, client,
        weights=weights, checkpoint=checkpoint, overwrite=overwrite,
    )  # fmt: skip
    return trained.head, trained.history


def train_both(
    store: FeatureStore,
    config: TrainConfig,
    layer: str,
    seed: int,
    client: Client,
    *,
    weights: str = "",
    checkpoint: str = "",
    overwrite: bool = False,
) -> Trained:
    """Train as `train` does, and return the last head and the best one."""
    has_validation = bool((store.read("split") == VALIDATION).any())
    check_stopping(config, has_validation)
    made_from = provenance(store, config, layer, seed, weights)
    run = uuid.uuid4().hex[:8]
    ready = prepare(store, config, layer, seed, client, run, weights=weights)
    if config.solver == "lbfgs":
        solved, history = lbfgs.solve(
            ready.groups, len(ready.n_train), ready.start, config, client, run=run,
            has_validation=has_validation,
        )  # fmt: skip
        fitted = Fitted(solved, {}, 0, history)
    else:
        with ExitStack() as stack:
            keeper = stack.enter_context(Keeper(checkpoint, made_from)) if checkpoint else None
            fitted = fit_both(
                ready.groups, ready.n_train, ready.start, config, seed, client, run=run,
                has_validation=has_validation, keeper=keeper,
                resume=keeper.load(overwrite=overwrite) if keeper else None,
            )  # fmt: skip
    final: Moments = ready.moments.result()

    def head(params: Params) -> Head:
        return Head(
            **local_sgd.pick_weights(params),
            mean=final.mean.astype(np.float32),
            scale=final.scale(),
            class_names=store.class_names,
            provenance=made_from,
        )

    heads = [head(fitted.last)]
    if fitted.best and fitted.best_round != fitted.history[-1].round:
        heads.append(head(fitted.best))
    if config.keep == "best":
        heads.reverse()
    return Trained(heads[0], heads[1] if len(heads) > 1 else None, fitted.history)


def prepare(
    store: FeatureStore,
    config: TrainConfig,
    layer: str,
    seed: int,
    client: Client,
    run: str,
    *,
    weights: str = "",
) -> Ready:
    """Check what can be checked of a store, and bring its rows to the workers.

    Parameters
    ----------
    weights : str
        As `train` has it.

    Raises
    ------
    ValueError
        For more shards than chunks, no training rows, or a start that does not fit.
    """
    n_shards = count_shards(store, config)
    split = store.read("split")
    _check_classes(split, store)
    found = starts.find(store, config, layer, weights, client, run)
    groups, moments = load_groups(
        store, layer, n_shards, client, run,
        features_in=config.features_in, shards_per_task=config.shards_per_task,
    )  # fmt: skip
    start = starts.submit(found, store, config, layer, seed, moments, client, run)
    chunk = np.arange(store.n_images) // store.chunk_images
    n_train = np.bincount(chunk[split == TRAIN] % n_shards, minlength=n_shards)
    return Ready(groups, moments, start, n_train)


def count_shards(store: FeatureStore, config: TrainConfig) -> int:
    """How many replicas train on a store.

    Raises
    ------
    ValueError
        If there are more than chunks.
    """
    n_shards = config.n_shards or min(MOST_SHARDS, store.n_chunks)
    if n_shards > store.n_chunks:
        raise ValueError(
            f"train.n_shards = {n_shards}, but the store has {store.n_chunks} chunks, and a shard "
            "trains on whole ones. Use fewer shards, or smaller chunks (features.chunk_images)."
        )
    return n_shards


def load_groups(
    store: FeatureStore,
    layer: str,
    n_shards: int,
    client: Client,
    run: str,
    *,
    features_in: str = "memory",
    shards_per_task: int = 0,
) -> tuple[list[Future], Future]:
    """Bring a store's rows to the workers, standardised by the training rows.

    With `features_in` ``store`` the features are left there, and read when they are asked for.

    Returns
    -------
    groups : list of futures of lists of Shard
    moments : future of Moments
        Of the training rows.
    """
    moments = tree_reduce(
        client,
        [
            client.submit(sharding.chunk_moments, store, layer, chunk, key=f"moments-{run}-{chunk}")
            for chunk in range(store.n_chunks)
        ],
        averaging.combine_moments,
        name=f"combine-moments-{run}",
    )
    groups = [
        client.submit(
            sharding.load_group, store, layer, indices, n_shards, moments, features_in,
            key=f"load-shards-{run}-{g}",
        )
        for g, indices in enumerate(group_shards(client, n_shards, shards_per_task))
    ]  # fmt: skip
    return groups, moments


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
