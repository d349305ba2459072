"""Search for the options of training that validate best, by successive halving.

A trial is the training that `trainer.fit` does with its options, scored on the way: at each cut the
best trials continue and the others end. Its learning rate follows the schedule of the whole
training, not one that restarts at every cut. So a trial that reaches the last cut has the scores
that training with its options gives. The price is that learning rates are still high at an early
cut. With a first cut after 4 of 40 epochs slow learners were dropped, the best of 20 trials among
them (4,000 images, 512 features, 19 classes); with a first cut after 13 it was found.

Trials with the same batches, dropout and averaging frequency are trained as one where that is
faster: as a stack of heads, which differ in learning rate and penalty.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from distributed import Client, Future

from dtl import storage
from dtl.cluster.progress import track
from dtl.cluster.spread import Session
from dtl.config import RETIRED, TrainConfig, TuneConfig, to_fingerprint
from dtl.config.errors import UserError
from dtl.config.plain import from_plain
from dtl.head import blas, descent
from dtl.head.npz import from_npz, join_groups, reading, split_groups, to_npz
from dtl.head.schedules import Plan
from dtl.head.softmax import Params
from dtl.images.values import VALIDATION
from dtl.training import trainer
from dtl.training.checkpoint import resume
from dtl.training.rounds import ROUNDS_AHEAD, RoundTasks
from dtl.training.spec import TrainingSpec
from dtl.training.values import Rung, Trial, Tuning

log = logging.getLogger(__name__)

_STACKED = 1 << 20
"""Numbers in the kernel of a stack, at most.

Narrow heads gain: 8 trials of 512 x 19 in one stack were 5.5 times as fast as each alone, 8 of
4096 x 19 3.3 times. Wide heads do not: 4096 x 257 in stacks of 2 were 0.98 times as fast.
tests/bench/test_tune.py measures it.
"""

FIRST_EPOCHS: float = RETIRED["tune"]["first_epochs"]
"""Passes before the first cut, at least; each cut after it has `eta` times as many."""

_SEARCHED = ("learning_rate", "l2", "dropout", "averaging_frequency")

_NOT_IN_A_TRIAL = (*_SEARCHED, "keep", "patience", "max_seconds", "validate_every")
"""Options that no trial follows from: it has values of its own, or is compared at cuts only."""


@dataclass(frozen=True, eq=False)
class Search:
    """The state of a search after a cut that was not the last.

    `trials` are all, in the order of `list_trials`; `heads` what those that continue start from, by
    their place in that order.
    """

    trials: tuple[Trial, ...]
    heads: Mapping[int, Params]
    provenance: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """Return the bytes of an .npz file, without pickles."""
        meta = {"trials": [asdict(t) for t in self.trials], "provenance": self.provenance}
        return to_npz(join_groups({str(k): params for k, params in self.heads.items()}), meta)

    @classmethod
    def from_bytes(cls, data: bytes) -> Search:
        """Read what `to_bytes` wrote; other or damaged bytes are a `UserError`."""
        with reading("checkpoint"):
            arrays, meta = from_npz(data)
            return cls(
                from_plain(tuple[Trial, ...], meta["trials"], "trials"),
                {int(k): params for k, params in split_groups(arrays).items()},
                from_plain(dict[str, Any], meta["provenance"], "provenance"),
            )


def provenance(spec: TrainingSpec, tuned: TuneConfig) -> dict[str, Any]:
    """Return the fingerprint of a search, as JSON has it; machines have no part in it."""
    options = {k: v for k, v in spec.provenance["train"].items() if k not in _NOT_IN_A_TRIAL}
    tune = to_fingerprint(_resolve(tuned, spec.config))
    return spec.provenance | {"train": options, "tune": tune}


def tune(
    spec: TrainingSpec,
    tuned: TuneConfig,
    client: Client,
    *,
    checkpoint: str = "",
    overwrite: bool = False,
) -> Tuning:
    """Search for the options with which training validates best.

    Parameters
    ----------
    spec : TrainingSpec
        Its split must have validation rows; test rows are not read. Its options hold for all that
        is not searched for, and `stop_on` defines a better validation; `keep` and `patience` are
        not read.
    checkpoint : str
        URL of the file to go on from, if it is there, and to keep from the first cut on until the
        result is safe: then the caller removes it. Empty: none.
    overwrite : bool
        Start again if the checkpoint follows from other settings.

    Returns
    -------
    Tuning
        The same on any workers.

    Raises
    ------
    UserError
        As `check`, `check_store` and `train`; for a checkpoint of other settings, or damaged; or if
        all trials diverge.

    References
    ----------
    Jamieson, Talwalkar (2016), "Non-stochastic best arm identification and hyperparameter
    optimization"; Li et al. (2018), "Hyperband", algorithm 1 with one bracket.
    """
    check(spec.config, tuned, spec.seed)
    check_store(spec)
    fingerprint, metric = provenance(spec, tuned), spec.config.stop_on
    configs = list_trials(spec.config, tuned, spec.seed)
    cuts = list_cuts(spec.config.epochs, tuned, len(configs))
    search = None
    if checkpoint:
        search = resume(checkpoint, fingerprint, Search.from_bytes, overwrite=overwrite)
    session = Session(client)
    inputs = trainer.prepare(spec, session)
    tasks = RoundTasks.make(inputs, spec.config, session)
    plans = [Plan.make(inputs.n_train, config, spec.seed) for config in configs]
    trials = [Trial(**{name: getattr(config, name) for name in _SEARCHED}) for config in configs]
    heads = dict.fromkeys(range(len(configs)), inputs.initial)
    if search is not None:
        trials = list(search.trials)
        heads = {k: session.submit_value(v, f"resumed-{k}") for k, v in search.heads.items()}
        log.info("tuning: goes on with %d of %d trials", len(heads), len(trials))
    n_done = max(len(trial.rungs) for trial in trials)
    for level, (start, end) in list(enumerate(itertools.pairwise((0.0, *cuts))))[n_done:]:
        stacks = _stack({k: configs[k] for k in heads}, _most_stacked(spec))
        log.info("tuning: %d trials to epoch %.3g, trained as %d", len(heads), end, len(stacks))
        heads = _train(tasks, plans, heads, stacks, (start, end))
        scores = {k: tasks.submit_scores(head, f"{level}-{k}") for k, head in heads.items()}
        for k, future in scores.items():
            epoch = plans[k].epoch(plans[k].rounds_until(end) - 1)
            trials[k] = _judge(trials[k], Rung(epoch=epoch, **session.result(future)))
        alive = [k for k in heads if not trials[k].diverged]
        if not alive:
            if checkpoint:
                storage.remove(checkpoint)  # it leads to the same
            raise UserError(
                f"All trials have diverged, the last before epoch {end:.3g}. Lower "
                f"`tune.learning_rates` (now {', '.join(f'{v:g}' for v in tuned.learning_rates)})."
            )
        alive.sort(key=lambda k: _rank(trials[k], metric))
        best = trials[alive[0]].rungs[-1]
        log.info(
            "tuning: epoch %.3g, the best has validation loss %.4f, accuracy %.1f %%; %d diverged",
            end, best.validation_loss, 100 * best.validation_accuracy, len(heads) - len(alive),
        )  # fmt: skip
        # In the order of the trials, so that a stack does not depend on a tie.
        heads = {k: heads[k] for k in sorted(alive[: math.ceil(len(heads) / tuned.eta)])}
        if checkpoint and end != cuts[-1]:
            params = {k: session.result(future) for k, future in heads.items()}
            storage.write_bytes(checkpoint, Search(tuple(trials), params, fingerprint).to_bytes())
    trials.sort(key=lambda trial: _rank(trial, metric))
    hints = tuple(list_hints(trials[0], tuned))
    n_validation = int((spec.split == VALIDATION).sum())
    return Tuning(tuple(trials), tuple(cuts), metric, hints, fingerprint, n_validation)


def check(config: TrainConfig, tuned: TuneConfig, seed: int) -> None:
    """Refuse L-BFGS, a single trial, and trials whose options do not go together."""
    if config.solver == "lbfgs":
        raise UserError(
            "tune searches for options of averaging. Received: lbfgs, which has no learning rate. "
            "Set `train.solver` = averaging, or try several values of `train.l2` by hand."
        )
    if len(list_trials(config, tuned, seed)) == 1:
        raise UserError(
            "There is nothing to choose from: tune has one trial. Give several values to "
            "`tune.learning_rates`, `tune.l2s`, `tune.dropouts` or `tune.frequencies`."
        )


def check_store(spec: TrainingSpec) -> None:
    """Refuse a store without validation rows, or with fewer chunks than shards."""
    _ = spec.n_shards  # raises
    if not spec.has_validation:
        raise UserError(
            "tune compares trials on the validation images, and the split has none. Give some to "
            "`split.validation`."
        )


def list_trials(config: TrainConfig, tuned: TuneConfig, seed: int) -> list[TrainConfig]:
    """Return the options of all trials.

    Examples
    --------
    >>> tuned = TuneConfig(learning_rates=(0.01, 0.1), l2s=(0.001, 0.01))
    >>> [(way.learning_rate, way.l2) for way in list_trials(TrainConfig(), tuned, seed=0)]
    [(0.01, 0.001), (0.01, 0.01), (0.1, 0.001), (0.1, 0.01)]
    >>> [way] = list_trials(TrainConfig(), replace(tuned, method="random", n_trials=1), seed=0)
    >>> way.learning_rate, way.l2
    (0.0433, 0.00186)
    """
    tuned = _resolve(tuned, config)
    drawn: Iterable[tuple[float, float, float, int]] = itertools.product(
        tuned.learning_rates, tuned.l2s, tuned.dropouts, tuned.frequencies
    )
    if tuned.method == "random":
        rng = np.random.default_rng(seed)
        drawn = (
            (
                _between(rng, tuned.learning_rates), _between(rng, tuned.l2s),
                tuned.dropouts[rng.integers(len(tuned.dropouts))],
                tuned.frequencies[rng.integers(len(tuned.frequencies))],
            )
            for _ in range(tuned.n_trials)
        )  # fmt: skip
    return [
        replace(config, learning_rate=rate, l2=l2, dropout=dropout, averaging_frequency=frequency)
        for rate, l2, dropout, frequency in dict.fromkeys(drawn)
    ]


def list_cuts(epochs: float, tuned: TuneConfig, n_trials: int) -> list[float]:
    """Return the epochs after which trials are compared; the last is the end of the training.

    Examples
    --------
    >>> list_cuts(36.0, TuneConfig(), n_trials=20)
    [12.0, 36.0]
    >>> list_cuts(36.0, TuneConfig(eta=1), n_trials=20)
    [36.0]
    """
    ends = [epochs]
    while tuned.eta > 1 and n_trials > 1 and ends[0] / tuned.eta >= FIRST_EPOCHS:
        ends.insert(0, ends[0] / tuned.eta)
        n_trials = math.ceil(n_trials / tuned.eta)
    return ends


def choose(tuning: Tuning, config: TrainConfig) -> TrainConfig:
    """Return the options of training with those of the best trial."""
    return replace(config, **{name: getattr(tuning.trials[0], name) for name in _SEARCHED})


def _resolve(tuned: TuneConfig, config: TrainConfig) -> TuneConfig:
    """Return options with training's own value where no list is given."""
    return replace(
        tuned,
        dropouts=tuned.dropouts or (config.dropout,),
        frequencies=tuned.frequencies or (config.averaging_frequency,),
    )


def _between(rng: np.random.Generator, values: Sequence[float]) -> float:
    """Draw log-uniformly from the least to the largest, to three digits: short enough to type."""
    low, high = np.log([min(values), max(values)])
    return float(f"{np.exp(rng.uniform(low, high)):.3g}")


def _most_stacked(spec: TrainingSpec) -> int:
    if spec.config.hidden_units:
        return 1
    n_kernel = spec.store.n_features(spec.layer) * len(spec.store.class_names)
    return max(1, _STACKED // n_kernel)


def _stack(configs: Mapping[int, TrainConfig], most: int) -> list[tuple[int, ...]]:
    """Return groups of trials that are trained as one, each of so many at most."""
    alike = defaultdict(list)
    for k, config in configs.items():
        alike[config.dropout, config.averaging_frequency].append(k)
    return [
        tuple(group[i : i + most]) for group in alike.values() for i in range(0, len(group), most)
    ]


def _train(
    tasks: RoundTasks,
    plans: Sequence[Plan],
    heads: Mapping[int, Future],
    stacks: Sequence[tuple[int, ...]],
    epochs: tuple[float, float],
) -> dict[int, Future]:
    """Train heads from one epoch to another, and return futures of their parameters there."""
    rounds = {s: range(*map(plans[s[0]].rounds_until, epochs)) for s in stacks}
    after: dict[int, Future] = {}
    pending: deque[Future] = deque()
    submit, level = tasks.session.submit, f"{epochs[1]:g}"
    with (
        track("tuning", sum(map(len, rounds.values())), "rounds") as advance,
        blas.one_blas_thread(),  # throughout, where the workers are threads of this process
    ):

        def wait(n_left: int) -> None:
            while len(pending) > n_left:
                tasks.session.result(pending.popleft())
                advance(1)

        for s in stacks:
            key, n = f"{level}-{s[0]}", len(s)
            params = heads[s[0]]
            if n > 1:
                params = submit(descent.stack_heads, [heads[k] for k in s], name=f"stack-{key}")
            averaged = tasks.submit_start(params, f"-{key}")
            for index in rounds[s]:
                stack = [plans[k] for k in s]
                averaged, numbers = tasks.submit_round(averaged, stack, index, f"{key}-{index}")
                pending.append(numbers)
                wait(ROUNDS_AHEAD)
            params = tasks.submit_params(averaged, key)
            for i, k in enumerate(s):
                after[k] = params
                if n > 1:
                    after[k] = submit(descent.take_head, params, i, n, name=f"unstack-{level}-{k}")
        wait(0)
    return {k: after[k] for k in heads}


def _judge(trial: Trial, rung: Rung) -> Trial:
    if not (math.isfinite(rung.train_loss) and math.isfinite(rung.validation_loss)):
        return replace(trial, diverged=True)
    return replace(trial, rungs=(*trial.rungs, rung))


def _rank(trial: Trial, metric: str) -> tuple[float, ...]:
    """Return the key that sorts trials, the best first."""
    place: tuple[float, ...] = (trial.diverged, -len(trial.rungs))
    if trial.rungs:
        last = trial.rungs[-1]
        if metric == "validation_accuracy":
            place += (-last.validation_accuracy,)
        place += (last.validation_loss,)
    return place


def list_hints(best: Trial, tuned: TuneConfig) -> list[str]:
    """Say where the best trial is at the edge of the values tried."""
    hints = []
    for name, values in (("learning_rate", tuned.learning_rates), ("l2", tuned.l2s)):
        value, words = getattr(best, name), name.replace("_", " ")
        for edge, extreme, more in ((min, "least", "smaller"), (max, "largest", "larger")):
            if len(set(values)) > 1 and value == edge(values) > 0:
                hints.append(
                    f"The best {words}, {value:g}, is the {extreme} that was tried. A {more} one "
                    f"may be better: give it to `tune.{name}s`."
                )
    return hints
