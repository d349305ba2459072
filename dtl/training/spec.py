"""Values of the trainer: its specification, its inputs on the workers, and its results."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dtl import storage
from dtl.config import TrainConfig, to_fingerprint
from dtl.config.errors import UserError
from dtl.features import growth
from dtl.features.store import FeatureStore
from dtl.features.values import describe_weights
from dtl.head import schedules
from dtl.head.model import Head
from dtl.head.softmax import Params
from dtl.images.values import TRAIN, VALIDATION
from dtl.training.values import Round

if TYPE_CHECKING:  # a finished training needs no Dask
    from distributed import Future

MOST_SHARDS = 8
"""Replicas, where their number is not given."""

_NOT_IN_THE_HEAD = (
    "start_from", "checkpoint_every", "features_in", "shards_per_task", "aggregation_depth",
)  # fmt: skip
"""Options that do not change a head; `start_from` does by the content of its file."""


@dataclass(frozen=True, eq=False)
class TrainingSpec:
    """All that a head follows from.

    Make it after the split is stored: it reads the store once.

    Parameters
    ----------
    store : FeatureStore
        Finished, with a split.
    layer : str
        Whose features.
    seed : int
        Of the order of rows, of dropout, and of random hidden units.
    weights : str
        As `features.weights`, where a hidden layer starts from the network's own; empty: as the
        features were made.
    """

    store: FeatureStore
    config: TrainConfig
    layer: str
    seed: int
    weights: str = ""

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """The fingerprint of a head, as JSON's types; a head of another one is trained again.

        It is an `OSError` if the head, or the network's weights, to start from cannot be had.
        """
        store, config = self.store, self.config
        options = {k: v for k, v in self.options.items() if k not in _NOT_IN_THE_HEAD}
        start = head_url(config.start_from) if config.start_from else ""
        made_from = {
            "features": store.fingerprint,
            "weights_sha256": store.attrs["weights_sha256"],
            "split": store.split_fingerprint,
            "layer": self.layer,
            "train": options | {"layer": self.layer},
            "start_sha256": storage.sha256(start) if start else "",
            "seed": self.seed,
        }
        if config.hidden_start == "network":
            seed = int(store.attrs["seed"])
            made_from["start_weights"] = describe_weights(self.network_weights, seed)
        return made_from

    @property
    def options(self) -> dict[str, Any]:
        """The options as fingerprints have them; the rows of a step are those taken."""
        return to_fingerprint(schedules.with_batch_size(self.config, self.n_train))

    @property
    def network_weights(self) -> str:
        """The weights of the network whose layer a hidden one starts from."""
        return self.weights or str(self.store.attrs["weights"])

    @cached_property
    def split(self) -> NDArray[np.int8]:
        """The split of every row."""
        split: NDArray[np.int8] = self.store.read_split()
        return split

    @property
    def has_validation(self) -> bool:
        """Whether any row is for validation."""
        return bool((self.split == VALIDATION).any())

    @property
    def n_shards(self) -> int:
        """How many replicas train; more than chunks are refused."""
        n_shards = self.config.n_shards or min(MOST_SHARDS, self.store.n_chunks)
        if n_shards > self.store.n_chunks:
            raise UserError(
                f"`train.n_shards` = {n_shards}, but the store has {self.store.n_chunks} chunks, "
                "and a shard trains on whole ones. Use fewer shards, or smaller chunks "
                "(`features.chunk_images`)."
            )
        return n_shards

    @cached_property
    def n_train(self) -> NDArray[np.integer[Any]]:
        """The training rows of each shard (n_shards,)."""
        return count_train(self.store, self.split, self.n_shards)


@dataclass(frozen=True, eq=False)
class Inputs:
    """Rows on the workers, and the parameters that training starts from.

    Parameters
    ----------
    groups : list of futures of lists of Shard
        Of neighbouring shards, each group for one task, the first group the first shards.
    n_train : (n_shards,) int
        Training rows of each shard.
    initial : future of Params
    scaling : future of Scaling
        Of the rows, by the training rows.
    """

    groups: list[Future]
    n_train: NDArray[np.integer[Any]]
    has_validation: bool
    initial: Future
    scaling: Future


@dataclass(frozen=True, eq=False)
class Fitted:
    """Parameters that rounds end with, and the weights of the best validation.

    Rounds are counted from 1. Where they are not validated, `best` is empty and `best_round` 0.
    """

    last: Params
    history: list[Round]
    best: Params = field(default_factory=dict)
    best_round: int = 0


@dataclass(frozen=True, eq=False)
class Trained:
    """Heads that a training ends with.

    Parameters
    ----------
    head : Head
        The one that `train.keep` asks for.
    other : Head or None
        The one of the best validation where `head` is the last round's, and the other way round;
        None where there is only one.
    """

    head: Head
    other: Head | None
    history: list[Round]


def count_train(
    store: FeatureStore, split: NDArray[np.int8], n_shards: int
) -> NDArray[np.integer[Any]]:
    """Count the training rows of each shard (n_shards,), by the split of every row."""
    chunk = np.arange(store.n_images) // store.chunk_images
    return np.bincount(chunk[split == TRAIN] % n_shards, minlength=n_shards)


def continues(head: Head, store: FeatureStore) -> bool:
    """Return whether a head was trained on a store, and its split, before both grew."""
    splits = [store.split_fingerprint, *store.earlier_splits]
    if splits[0] is None or head.provenance.get("split") not in splits:
        return False
    return growth.has_been(store, head.provenance.get("features", {}))


def head_url(url: str) -> str:
    """Return the URL of the head that `train.start_from` names: a file, or a run's folder."""
    return url if url.endswith(".npz") else storage.join(url, "head.npz")
