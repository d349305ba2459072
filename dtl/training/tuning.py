"""The options of training that validate best, by successive halving.

A trial is the training that `trainer.fit` would do with its options, looked at on the way: at each
cut the best go on from where they are and the others end. Its learning rate follows the schedule of
the whole training from the start, not one of its own for every cut. So what a trial has at the last
cut is what training with its options gives; the price is that at an early cut no learning rate has
come down yet. With a first cut after 4 of 40 epochs what learns slowly was dropped, and the best of
20 trials missed (4,000 images, 512 features, 19 classes); with one after 13 it was found.

Trials that take the same batches, with the same dropout, and are averaged as often, are trained as
one where that is faster: a stack of heads, which differ in learning rate and penalty.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import uuid
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from distributed import Client, Future

from dtl import storage
from dtl.cluster.progress import track
from dtl.cluster.spread import submit_value
from dtl.config import TrainConfig, TuneConfig, to_fingerprint
from dtl.features.store import FeatureStore
from dtl.head import blas, descent
from dtl.head.npz import from_npz, to_npz, whole
from dtl.head.softmax import Params
from dtl.images.values import VALIDATION
from dtl.training import local_sgd, rounds, trainer
from dtl.training.checkpoint import resume
from dtl.training.plan import Plan
from dtl.training.trainer import Ready
from dtl.training.values import Rung, Trial, Tuning

log = logging.getLogger(__name__)

_STACKED = 1 << 20
"""Numbers in the kernel of a stack, at most.

Narrow heads gain: 8 trials of 512 x 19 in one stack were 5.5 times as fast as each alone, those of
4096 x 19 3.3 times. Wide ones do not: those of 4096 x 257 in stacks of 2 were 0.98 times as fast.
tests/bench/test_tune.py measures it.
"""

_NOT_IN_A_TRIAL = (
    "learning_rate", "l2", "dropout", "averaging_frequency",
    "keep", "patience", "max_seconds", "validate_every",
)  # fmt: skip
"""Options of training that no trial follows from: it has its own, or is compared at cuts only."""


@dataclass(frozen=True, eq=False)
class Search:
    """A search after a cut that was not the last.

    Parameters
    ----------
    trials : tuple of Trial
        All of them, in the order of `trials`.
    heads : dict of int to Params
        All that the next round starts from, of the trials that go on, by their place in that order.
    provenance : dict
    """

    trials: tuple[Trial, ...]
    heads: Mapping[int, Params]
    provenance: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """The bytes of an .npz file, without pickles."""
        meta = {"trials": [asdict(t) for t in self.trials], "provenance": self.provenance}
        return to_npz(meta, {str(k): params for k, params in self.heads.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Search:
        """Read what `to_bytes` wrote.

        Raises
        ------
        ValueError
            For other or damaged bytes.
        """
        with whole():
            meta, groups = from_npz(data)
            return cls(
                tuple(map(_trial, meta["trials"])),
                {int(k): params for k, params in groups.items()},
                meta["provenance"],
            )


def provenance(
    store: FeatureStore,
    config: TrainConfig,
    tuned: TuneConfig,
    layer: str,
    seed: int,
    weights: str = "",
) -> dict[str, Any]:
    """All that a search follows from but the machines, as JSON has it."""
    made_from = trainer.provenance(store, config, layer, seed, weights)
    train = {k: v for k, v in made_from["train"].items() if k not in _NOT_IN_A_TRIAL}
    return made_from | {"train": train, "tune": to_fingerprint(_resolved(tuned, config))}


def tune(
    store: FeatureStore,
    config: TrainConfig,
    tuned: TuneConfig,
    layer: str,
    seed: int,
    client: Client,
    *,
    weights: str = "",
    checkpoint: str = "",
    overwrite: bool = False,
) -> Tuning:
    """Search for the options with which training validates best.

    Parameters
    ----------
    store : FeatureStore
        Finished, with a split that has validation rows. Its test rows are not looked at.
    config : TrainConfig
        Of all that is not searched for. `stop_on` says what a better validation is; `keep`,
        `patience` and `max_seconds` are for training alone.
    tuned : TuneConfig
    layer : str
        Whose features.
    client : distributed.Client
    weights : str
        As `trainer.train` has it.
    checkpoint : str
        URL of the file to go on from, if it is there, and to keep from the first cut on until the
        result is safe, when whoever calls removes it. Empty: none.
    overwrite : bool
        Start again if the checkpoint is of other settings, or damaged.

    Returns
    -------
    Tuning
        The same on any workers.

    Raises
    ------
    ValueError
        As `check` and `check_store`; for a checkpoint of other settings, or damaged; if all trials
        diverge; or as `train`.

    References
    ----------
    Jamieson, Talwalkar (2016), "Non-stochastic best arm identification and hyperparameter
    optimization"; Li et al. (2018), "Hyperband", algorithm 1 with one bracket.
    """
    check(config, tuned, seed)
    check_store(store, config)
    made_from = provenance(store, config, tuned, layer, seed, weights)
    ways = trials(config, tuned, seed)
    ends = cuts(config.epochs, tuned, len(ways))
    last = None
    if checkpoint:
        last = resume(checkpoint, made_from, Search.from_bytes, overwrite=overwrite)
    run = uuid.uuid4().hex[:8]
    ready = trainer.prepare(store, config, layer, seed, client, run, weights=weights)
    class_weights = rounds.submit_class_weights(client, ready.groups, ready.start, config, run)
    plans = [Plan.make(ready.n_train, way, seed) for way in ways]
    found = [Trial(w.learning_rate, w.l2, w.dropout, w.averaging_frequency) for w in ways]
    most = _STACKED // (store.n_features(layer) * len(store.class_names))
    most = 1 if config.hidden_units else max(1, most)
    heads = dict.fromkeys(range(len(ways)), ready.start)
    if last is not None:
        found = list(last.trials)
        heads = {k: submit_value(client, last.heads[k], f"resumed-{run}-{k}") for k in last.heads}
        log.info("tuning: goes on with %d of %d trials", len(heads), len(found))
    n_done = max(len(trial.rungs) for trial in found)
    for level, (start, end) in list(enumerate(itertools.pairwise((0.0, *ends))))[n_done:]:
        stacks = _stacks({k: ways[k] for k in heads}, most)
        log.info("tuning: %d trials to epoch %.3g, trained as %d", len(heads), end, len(stacks))
        heads = _train(
            heads, stacks, plans, start, end, ready, class_weights, client, f"{run}-{level}"
        )
        scores = {
            k: rounds.submit_scores(client, head, ready.groups, True, f"{run}-{level}-{k}")
            for k, head in heads.items()
        }
        for k, future in scores.items():
            epoch = plans[k].epoch(plans[k].rounds_until(end) - 1)
            found[k] = _judge(found[k], Rung(epoch=epoch, **future.result()))
        alive = [k for k in heads if not found[k].diverged]
        if not alive:
            if checkpoint:
                storage.remove(checkpoint)  # it leads to the same
            raise ValueError(
                f"All trials have diverged, the last before epoch {end:.3g}. Lower "
                f"tune.learning_rates (now {', '.join(f'{v:g}' for v in tuned.learning_rates)})."
            )
        alive.sort(key=lambda k: _rank(found[k], config.stop_on))
        best = found[alive[0]].rungs[-1]
        log.info(
            "tuning: epoch %.3g, the best has validation loss %.4f, accuracy %.1f %%; "
            "%d diverged",
            end, best.validation_loss, 100 * best.validation_accuracy, len(heads) - len(alive),
        )  # fmt: skip
        # In the order of the trials, so that a stack does not depend on a tie.
        heads = {k: heads[k] for k in sorted(alive[: math.ceil(len(heads) / tuned.eta)])}
        if checkpoint and end != ends[-1]:
            kept = {k: future.result() for k, future in heads.items()}
            storage.write_bytes(checkpoint, Search(tuple(found), kept, made_from).to_bytes())
    found.sort(key=lambda trial: _rank(trial, config.stop_on))
    return Tuning(
        trials=tuple(found),
        cuts=tuple(ends),
        metric=config.stop_on,
        hints=tuple(hints(found[0], tuned)),
        provenance=made_from,
    )


def check(config: TrainConfig, tuned: TuneConfig, seed: int) -> None:
    """Refuse what `tune` cannot do on any store.

    Raises
    ------
    ValueError
        For L-BFGS, a single trial, or one whose options do not go together.
    """
    if config.solver == "lbfgs":
        raise ValueError(
            "tune searches for options of train.solver = averaging. Received: lbfgs, which has no "
            "learning rate. Set --train.solver averaging, or try several --train.l2 by hand."
        )
    if len(trials(config, tuned, seed)) == 1:
        raise ValueError(
            "There is nothing to choose from: tune has one trial. Give several values to "
            "tune.learning_rates, tune.l2s, tune.dropouts or tune.frequencies."
        )


def check_store(store: FeatureStore, config: TrainConfig) -> None:
    """Refuse a store on which trials cannot be compared, before any work.

    Raises
    ------
    ValueError
        Without validation rows, or for more shards than chunks.
    """
    trainer.count_shards(store, config)
    if not (store.read("split") == VALIDATION).any():
        raise ValueError(
            "tune compares trials on the validation images, and the split has none. Give some to "
            "split.validation."
        )


def trials(config: TrainConfig, tuned: TuneConfig, seed: int) -> list[TrainConfig]:
    """The options of all trials.

    Examples
    --------
    >>> tuned = TuneConfig(learning_rates=(0.01, 0.1), l2s=(0.001, 0.01))
    >>> [(way.learning_rate, way.l2) for way in trials(TrainConfig(), tuned, seed=0)]
    [(0.01, 0.001), (0.01, 0.01), (0.1, 0.001), (0.1, 0.01)]
    >>> [way] = trials(TrainConfig(), replace(tuned, method="random", n_trials=1), seed=0)
    >>> way.learning_rate, way.l2
    (0.0433, 0.00186)
    """
    tuned = _resolved(tuned, config)
    drawn: Iterable[tuple[float, float, float, int]] = itertools.product(
        tuned.learning_rates, tuned.l2s, tuned.dropouts, tuned.frequencies
    )
    if tuned.method == "random":
        rng = np.random.default_rng(seed)
        drawn = (
            (
                _between(rng, tuned.learning_rates),
                _between(rng, tuned.l2s),
                tuned.dropouts[rng.integers(len(tuned.dropouts))],
                tuned.frequencies[rng.integers(len(tuned.frequencies))],
            )
            for _ in range(tuned.n_trials)
        )
    return [
        replace(config, learning_rate=rate, l2=l2, dropout=dropout, averaging_frequency=frequency)
        for rate, l2, dropout, frequency in dict.fromkeys(drawn)
    ]


def cuts(epochs: float, tuned: TuneConfig, n_trials: int) -> list[float]:
    """Epochs after which trials are compared; the last is the end of the training.

    Examples
    --------
    >>> cuts(36.0, TuneConfig(first_epochs=4.0), n_trials=20)
    [4.0, 12.0, 36.0]
    >>> cuts(36.0, TuneConfig(eta=1), n_trials=20)
    [36.0]
    """
    ends = [epochs]
    while tuned.eta > 1 and n_trials > 1 and ends[0] / tuned.eta >= tuned.first_epochs:
        ends.insert(0, ends[0] / tuned.eta)
        n_trials = math.ceil(n_trials / tuned.eta)
    return ends


def best(tuning: Tuning, config: TrainConfig) -> TrainConfig:
    """The options of training with those that were found."""
    t = tuning.trials[0]
    return replace(
        config,
        learning_rate=t.learning_rate,
        l2=t.l2,
        dropout=t.dropout,
        averaging_frequency=t.averaging_frequency,
    )


def to_json(tuning: Tuning) -> bytes:
    """The text of tune.json."""
    return (json.dumps(asdict(tuning), indent=1) + "\n").encode()


def from_json(data: bytes) -> Tuning:
    """Read what `to_json` wrote."""
    values = json.loads(data)
    return Tuning(
        trials=tuple(map(_trial, values["trials"])),
        cuts=tuple(values["cuts"]),
        metric=values["metric"],
        hints=tuple(values["hints"]),
        provenance=values["provenance"],
    )


def _trial(values: Mapping[str, Any]) -> Trial:
    return Trial(**{**values, "rungs": tuple(Rung(**rung) for rung in values["rungs"])})


def _resolved(tuned: TuneConfig, config: TrainConfig) -> TuneConfig:
    """With training's own value where no list is given."""
    return replace(
        tuned,
        dropouts=tuned.dropouts or (config.dropout,),
        frequencies=tuned.frequencies or (config.averaging_frequency,),
    )


def _between(rng: np.random.Generator, values: Sequence[float]) -> float:
    """Log-uniform from the least to the largest, to three digits: short enough to type."""
    low, high = np.log([min(values), max(values)])
    return float(f"{np.exp(rng.uniform(low, high)):.3g}")


def _stacks(ways: Mapping[int, TrainConfig], most: int) -> list[tuple[int, ...]]:
    """The trials that are trained as one, at most so many."""
    alike = defaultdict(list)
    for k, way in ways.items():
        alike[way.dropout, way.averaging_frequency].append(k)
    return [
        tuple(group[i : i + most]) for group in alike.values() for i in range(0, len(group), most)
    ]


def _train(
    heads: Mapping[int, Future],
    stacks: Sequence[tuple[int, ...]],
    plans: Sequence[Plan],
    start: float,
    end: float,
    ready: Ready,
    class_weights: Future | None,
    client: Client,
    run: str,
) -> dict[int, Future]:
    """Take trials from one epoch to another; futures of their parameters there."""
    indices = {s: range(*(plans[s[0]].rounds_until(e) for e in (start, end))) for s in stacks}
    after: dict[int, Future] = {}
    pending: deque[Future] = deque()
    with (
        track("tuning", sum(map(len, indices.values())), "rounds") as advance,
        blas.one_blas_thread(),  # throughout, where the workers are threads of this process
    ):

        def wait(n_left: int) -> None:
            while len(pending) > n_left:
                pending.popleft().result()
                advance(1)

        for s in stacks:
            key, n = f"{run}-{s[0]}", len(s)
            params = heads[s[0]]
            if n > 1:
                params = client.submit(descent.stack, [heads[k] for k in s], key=f"stack-{key}")
            both = client.submit(local_sgd.begin, params, key=f"begin-{key}")
            for index in indices[s]:
                both, stats = rounds.submit_round(
                    client, both, ready.groups, index, plans[s[0]], class_weights,
                    f"{key}-{index}", stack=[plans[k] for k in s] if n > 1 else (),
                )  # fmt: skip
                pending.append(stats)
                wait(rounds.ROUNDS_AHEAD)
            params = client.submit(local_sgd.first, both, key=f"params-{key}")
            for i, k in enumerate(s):
                after[k] = params
                if n > 1:
                    after[k] = client.submit(
                        descent.unstack, params, i, n, key=f"unstack-{run}-{k}"
                    )
        wait(0)
    return {k: after[k] for k in heads}


def _judge(trial: Trial, rung: Rung) -> Trial:
    if not (math.isfinite(rung.train_loss) and math.isfinite(rung.validation_loss)):
        return replace(trial, diverged=True)
    return replace(trial, rungs=(*trial.rungs, rung))


def _rank(trial: Trial, metric: str) -> tuple[float, ...]:
    """What sorts trials, the best first."""
    place: tuple[float, ...] = (trial.diverged, -len(trial.rungs))
    if trial.rungs:
        last = trial.rungs[-1]
        if metric == "validation_accuracy":
            place += (-last.validation_accuracy,)
        place += (last.validation_loss,)
    return place


def hints(found: Trial, tuned: TuneConfig) -> list[str]:
    """Where the best trial is at the edge of what was tried."""
    said = []
    for name, values in (("learning_rate", tuned.learning_rates), ("l2", tuned.l2s)):
        value, words = getattr(found, name), name.replace("_", " ")
        for edge, extreme, more in ((min, "least", "smaller"), (max, "largest", "larger")):
            if len(set(values)) > 1 and value == edge(values) > 0:
                said.append(
                    f"The best {words}, {value:g}, is the {extreme} that was tried. A {more} one "
                    f"may be better: give --tune.{name.replace('_', '-')}s."
                )
    return said
