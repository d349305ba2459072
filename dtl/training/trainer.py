"""The third stage: training of a head on the features, by local SGD and averaging.

A round is: every shard takes `averaging_frequency` steps from the current parameters, on its own
rows, and a tree merges the results to their average. Parameters stay on the workers; the driver
submits rounds ahead and reads only losses, and now and then parameters for a checkpoint. A task
takes a group of shards, one after another, if there are more shards than threads. Random numbers
come from (seed, shard, epoch), and the order of sums from the number of shards, so the head has the
same bits on any number of workers. It also has them when workers are lost on the way: Dask then
computes their results again.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

import numpy as np
from distributed import Client, Future

from dtl.cluster.spread import Session, group_shards
from dtl.config import TrainConfig
from dtl.config.errors import UserError
from dtl.evaluation import fitting
from dtl.features.store import FeatureStore
from dtl.head.model import Head
from dtl.head.scaling import Scaling, merge_moments
from dtl.head.schedules import Plan
from dtl.head.softmax import Params
from dtl.images.values import TRAIN
from dtl.training import initialisation, lbfgs, local_sgd, rounds, sharding
from dtl.training.checkpoint import Keeper
from dtl.training.spec import Fitted, Inputs, Trained, TrainingSpec

log = logging.getLogger(__name__)


def train(
    spec: TrainingSpec,
    client: Client,
    *,
    checkpoint: str = "",
    overwrite: bool = False,
    calibrate: bool = True,
) -> Trained:
    """Train a head on the rows of a store that the split gives to training.

    Parameters
    ----------
    checkpoint : str
        URL of the file to go on from, if it is there, and to keep until the head is safe: then the
        caller removes it. Empty: none.
    overwrite : bool
        Start again if the checkpoint follows from other settings.
    calibrate : bool
        Hold the heads against the validation rows, which gives them their temperature. Without, a
        head's log loss is the one that training made small.

    Raises
    ------
    UserError
        For settings that the store, the checkpoint or the head to start from does not fit, features
        that are not finite, or a learning rate that diverges.
    OSError
        If the head, or the network's weights, to start from cannot be had.
    """
    check_stopping(spec.config, spec.has_validation)
    session = Session(client)
    provenance = spec.provenance  # before any work: it reads what training starts from
    with ExitStack() as stack:
        keeper = None
        if checkpoint and spec.config.solver == "averaging":
            keeper = stack.enter_context(Keeper(checkpoint, provenance, overwrite=overwrite))
        inputs = prepare(spec, session)
        fitted = fit(inputs, spec.config, spec.seed, session, keeper=keeper)
    scaling: Scaling = session.result(inputs.scaling)

    def make_head(params: Params) -> Head:
        weights: dict[str, Any] = {**local_sgd.pick_weights(params)}
        return Head(
            **weights,
            mean=scaling.mean.astype(np.float32),
            scale=scaling.scale,
            normalize=scaling.normalize,
            class_names=spec.store.class_names,
            provenance=provenance,
        )

    heads = [make_head(fitted.last)]
    if fitted.best and fitted.best_round != fitted.history[-1].round:
        heads.append(make_head(fitted.best))
    if spec.config.keep == "best":
        heads.reverse()
    if calibrate:
        first = heads[0]
        heads = [fitting.calibrate(spec.store, h, client, show=h is first) for h in heads]
    return Trained(heads[0], heads[1] if len(heads) > 1 else None, fitted.history)


def fit(
    inputs: Inputs,
    config: TrainConfig,
    seed: int,
    session: Session,
    *,
    keeper: Keeper | None = None,
    show: bool = True,
) -> Fitted:
    """Fit parameters to rows that are on the workers, by the solver that `config` names.

    Parameters
    ----------
    keeper : Keeper, optional
        Of the checkpoint to go on from and to keep; L-BFGS has none.
    show : bool
        Show progress in the terminal.
    """
    if config.solver == "lbfgs":
        return lbfgs.solve(inputs, config, session, show=show)
    plan = Plan.make(inputs.n_train, config, seed)
    return rounds.run(inputs, plan, session, keeper=keeper, show=show)


def prepare(spec: TrainingSpec, session: Session) -> Inputs:
    """Check a store and the head to start from, and bring the store's rows to the workers."""
    _check_classes(spec)
    head = initialisation.submit_head(spec, session)
    groups, scaling = load_groups(spec, session)
    return Inputs(
        groups=groups,
        n_train=spec.n_train,
        has_validation=spec.has_validation,
        initial=initialisation.submit_params(spec, head, scaling, session),
        scaling=scaling,
    )


def load_groups(spec: TrainingSpec, session: Session) -> tuple[list[Future], Future]:
    """Bring a store's rows to the workers, scaled by the training rows.

    With `train.features_in` = store the features are read when a batch asks for them. It returns
    `Inputs.groups` and `Inputs.scaling`.
    """
    store, layer, config = spec.store, spec.layer, spec.config
    scaling = submit_scaling(session, store, layer, config.normalize)
    return submit_groups(session, store, layer, spec.n_shards, scaling, config), scaling


def submit_scaling(
    session: Session, store: FeatureStore, layer: str, normalize: str, split: Future | None = None
) -> Future:
    """Start to fit the scaling of a store's training rows.

    `split` is of all rows, (n_images,) int8, if not as stored.
    """
    moments = session.map_reduce(
        sharding.chunk_moments, store.n_chunks, store, layer, normalize, split,
        merge=merge_moments, name="moments",
    )  # fmt: skip
    return session.submit(Scaling.fit, moments, normalize, name="scaling")


def submit_groups(
    session: Session,
    store: FeatureStore,
    layer: str,
    n_shards: int,
    scaling: Future,
    config: TrainConfig,
    split: Future | None = None,
) -> list[Future]:
    """Start to load a store's shards, as `Inputs.groups`; `split` as `submit_scaling` has it."""
    return [
        session.submit(
            sharding.load_group, store, layer, indices, n_shards, scaling, config.features_in,
            split, name=f"load-shards-{g}",
        )
        for g, indices in enumerate(group_shards(session.client, n_shards, config.shards_per_task))
    ]  # fmt: skip


def check_stopping(config: TrainConfig, has_validation: bool) -> None:
    """Refuse options that stop a training by validation where there is none."""
    given = [f"`train.patience` = {config.patience}"] if config.patience else []
    given += ["`train.keep` = best"] if config.keep == "best" else []
    if given and not has_validation:
        raise UserError(
            f"{' and '.join(given)} needs validation images, and the split has none. Give some to "
            "`split.validation`, or leave it out."
        )
    if given and config.solver == "lbfgs":
        raise UserError(
            f"{' and '.join(given)} is for rounds of averaging; lbfgs ends at the optimum. Leave "
            "it out, or set `train.solver` = averaging."
        )


def _check_classes(spec: TrainingSpec) -> None:
    labels, class_names = spec.store.read("label"), spec.store.class_names
    counts = np.bincount(labels[spec.split == TRAIN], minlength=len(class_names))
    if not counts.any():
        raise UserError("No image of the store is in the training split. Change [split].")
    if missing := [class_names[k] for k in np.flatnonzero(counts == 0)]:
        log.warning(
            "%d classes have no training image and will never be predicted: %s",
            len(missing), ", ".join(missing[:10]),
        )  # fmt: skip
