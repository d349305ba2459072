"""The exact solver: the objective of averaging, minimised to its optimum by L-BFGS.

The problem is convex, so averaging can be measured by its one optimum. The driver chooses the steps
(`head.quasi_newton`). A step is one pass over the training rows where they lie, on the workers, and
a tree that adds the gradients up. Rows never reach the driver, but parameters and gradients do.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from distributed import Future
from numpy.typing import NDArray

from dtl.cluster.progress import track
from dtl.cluster.spread import Session
from dtl.config import RETIRED, TrainConfig
from dtl.head import averaging, blas, buffers, quasi_newton
from dtl.head.quasi_newton import Point
from dtl.head.softmax import Params
from dtl.training import local_sgd
from dtl.training.rounds import show_rounds
from dtl.training.sharding import Labelled, Shard
from dtl.training.spec import Fitted, Inputs
from dtl.training.values import Round

log = logging.getLogger(__name__)

TOLERANCE: float = RETIRED["train"]["lbfgs_tolerance"]
"""It ends where no part of the gradient is larger."""

MAX_ITERATIONS: int = RETIRED["train"]["lbfgs_max_iterations"]

PATIENCE = 50
"""Iterations without a lower gradient after which it ends, too: only rounding is left."""


@dataclass(frozen=True, eq=False)
class GradientSum:
    """Sums of one or more shards' rows that a step needs.

    `kernel` and `bias` are gradients of the cross-entropy, float64; that of a single block's kernel
    is the float32 product. `scores` (2, 3) are those of training and of validation rows, as
    `local_sgd.score_rows` has them. `losses` are the mean cross-entropy of each shard's training
    rows. Seconds are those of the slowest task, and of adding up, from level to level.
    """

    kernel: NDArray[np.floating]
    bias: NDArray[np.floating]
    scores: NDArray[np.float64]
    losses: Mapping[int, float]
    step_s: float = 0.0
    merge_s: float = 0.0


def group_gradient(params: Params, group: Sequence[Shard], *, validates: bool) -> GradientSum:
    """Add up the gradients of neighbouring shards."""
    started = time.perf_counter()
    sums = (shard_gradient(params, shard, validates=validates) for shard in group)
    total = averaging.pairwise(sums, add)
    return replace(total, step_s=time.perf_counter() - started)


def shard_gradient(params: Params, shard: Shard, *, validates: bool = True) -> GradientSum:
    """Return the gradient on a shard's training rows, and their scores.

    With `validates` also the scores of its validation rows, which are read with them.

    Products are float32's, all else is float64's: the optimum's objective then agrees with
    scikit-learn's in float64 to 1e-8, in half the time.
    """
    shape = params["kernel"].shape
    kernel_gradient: NDArray[np.floating] | None = None
    bias_gradient, scores = np.zeros(shape[1]), np.zeros((2, 3))
    with blas.one_blas_thread():
        for (x, labels), validation in shard.scan():
            log_p, residual, total = _log_softmax(params, x)
            residual /= total
            residual[np.arange(len(labels)), labels] -= 1
            rounded = buffers.empty(residual.shape, np.float32)
            rounded[...] = residual
            product = np.matmul(x.T, rounded, out=buffers.empty(shape, np.float32))
            kernel_gradient = product if kernel_gradient is None else _add(kernel_gradient, product)
            bias_gradient += residual.sum(axis=0)
            scores[0] += local_sgd.score_rows(log_p, labels)
            if validates:
                scores[1] += _score_rows(params, validation)
    if kernel_gradient is None:
        kernel_gradient = np.zeros(shape, np.float32)
    losses = {shard.index: float(scores[0, 2] / shard.n_train)} if shard.n_train else {}
    return GradientSum(kernel_gradient, bias_gradient, scores, losses)


def score_validation(params: Params, group: Sequence[Shard]) -> NDArray[np.float64]:
    """Return the scores of neighbouring shards' validation rows, as `GradientSum` has them."""

    def score(shard: Shard) -> NDArray[np.float64]:
        scores = np.zeros((2, 3))
        for _, validation in shard.scan():
            scores[1] += _score_rows(params, validation)
        return scores

    with blas.one_blas_thread():
        total: NDArray[np.float64] = averaging.pairwise(map(score, group), np.add)
    return total


def _score_rows(params: Params, rows: Labelled) -> NDArray[np.float64]:
    features, labels = rows
    return local_sgd.score_rows(_log_softmax(params, features)[0], labels)


def _log_softmax(
    params: Params, features: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return logarithms of probabilities; these, yet to be divided by their sum; and that (n, 1).

    In memory that is used again; else `softmax.log_softmax` would do.
    """
    kernel, bias = params["kernel"], params["bias"]
    shape = len(features), len(bias)
    log_p, p = (buffers.empty(shape, np.float64) for _ in range(2))
    np.add(np.matmul(features, kernel, out=buffers.empty(shape, np.float32)), bias, out=log_p)
    log_p -= log_p.max(axis=1, keepdims=True)
    np.exp(log_p, out=p)
    total = p.sum(axis=1, keepdims=True)
    log_p -= np.log(total)
    return log_p, p, total


def add(a: GradientSum, b: GradientSum) -> GradientSum:
    """Add the sums of two runs of shards."""
    return GradientSum(
        _add(a.kernel, b.kernel),
        a.bias + b.bias,
        a.scores + b.scores,
        {**a.losses, **b.losses},
        max(a.step_s, b.step_s),
        max(a.merge_s, b.merge_s),
    )


def _add(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Add arrays of either type in float64, in memory that is used again."""
    total = buffers.empty(a.shape, np.float64)
    total[...] = a  # `np.add` with `dtype` casts both in small parts, and takes twice as long
    total += b
    return total


def solve(
    inputs: Inputs,
    config: TrainConfig,
    session: Session,
    *,
    tolerance: float | None = None,
    show: bool = True,
) -> Fitted:
    r"""Minimise the mean cross-entropy of all training rows plus ``l2 / 2 * sum(kernel ** 2)``.

    Parameters
    ----------
    inputs : Inputs
        The optimum does not depend on their initial parameters.
    config : TrainConfig
        Of which `l2` is read.
    tolerance : float, optional
        In place of `TOLERANCE`.
    show : bool
        Show progress in the terminal.

    Returns
    -------
    Fitted
        ``kernel`` and ``bias``, and one `Round` for each iteration, or one where none was needed.
        Its `epoch` counts passes over the training rows, line searches' too.

    Notes
    -----
    The objective :math:`f` is `l2`-strongly convex in the kernel, so the gradient bounds the
    distance to the optimum: with the bias at its optimum, :math:`f` is above its least value by at
    most :math:`|\nabla f|^2 / 2 l2`.

    References
    ----------
    Liu, Nocedal (1989), "On the limited memory BFGS method for large scale optimization".
    """
    tolerance = TOLERANCE if tolerance is None else tolerance
    initial: Params = session.result(inputs.initial)
    objective = _Objective(inputs, initial["kernel"].shape, config, session)
    session.wait(inputs.groups)  # reading the features is no part of the first iteration's time
    x0 = np.concatenate([initial["kernel"].ravel(), initial["bias"]])
    if show:
        show_rounds([], begins=True)
    recorder = _Recorder(inputs, objective, x0, show=show)
    points = quasi_newton.minimise(objective, x0)
    with (
        track("training", MAX_ITERATIONS, "iterations at most", show=show) as advance,
        blas.one_blas_thread(),  # on the driver too, a sum's last bits depend on it
    ):
        for n_steps, point in enumerate(_iterate(points, tolerance)):
            if n_steps:
                recorder.add(point)
                advance(1, f"objective {point.value:.6f}, gradient {point.steepness:.1e}")
        if not n_steps:  # where the start is the optimum, no step is taken
            recorder.add(point)
        history = recorder.finish()
    summary = f"{n_steps} iterations, {objective.n_evaluations} passes, objective {point.value:.6f}"
    if point.steepness <= tolerance:
        level = logging.INFO if show else logging.DEBUG
        log.log(level, "L-BFGS: %s, gradient %.1e", summary, point.steepness)
    else:
        log.warning(
            "L-BFGS stopped short of its tolerance: %s, gradient %.1e, not %.1e. A larger "
            "`train.l2` helps; float32 ends at some 1e-6.",
            summary, point.steepness, tolerance,
        )  # fmt: skip
    return Fitted(objective.params(point.x), history)


def _iterate(points: Iterator[Point], tolerance: float) -> Iterator[Point]:
    """Yield points up to the tolerance, or as far as they get."""
    least, n_since = math.inf, 0
    for point in itertools.islice(points, MAX_ITERATIONS + 1):
        yield point
        n_since = 0 if point.steepness < least else n_since + 1
        least = min(least, point.steepness)
        if least <= tolerance or n_since >= PATIENCE:
            return


class _Recorder:
    """The history of a solution.

    The scores of validation rows come one iteration later: workers compute them while the driver
    computes its next step.
    """

    def __init__(
        self, inputs: Inputs, objective: _Objective, x0: NDArray[np.float32], *, show: bool
    ) -> None:
        self._history: list[Round] = []
        self._show = show
        self._has_validation, self._n_shards = inputs.has_validation, len(inputs.n_train)
        self._objective = objective
        self._before, self._last = objective.kernel(x0), time.monotonic()
        self._waiting: tuple[NDArray[np.float64], Future | None] | None = None

    def add(self, point: Point) -> None:
        """Add an iteration, which ended at a point, with the times of all its passes."""
        objective, total = self._objective, point.detail
        self._complete()
        self._waiting = total.scores, objective.start_validation()
        kernel = objective.kernel(point.x)
        norm, change = (float(np.linalg.norm(v)) for v in (kernel, kernel - self._before))
        now = time.monotonic()
        elapsed, self._last, self._before = now - self._last, now, kernel
        step_s, merge_s = objective.take_seconds()
        self._history.append(Round(
            round=len(self._history) + 1,
            epoch=float(objective.n_evaluations),
            loss=float(total.scores[0, 2] / total.scores[0, 0]),
            shard_loss=tuple(total.losses.get(s, np.nan) for s in range(self._n_shards)),
            learning_rate=np.nan,
            update_ratio=change / norm if norm else 0.0,
            spread=0.0,
            step_s=step_s,
            average_s=merge_s,
            wait_s=max(elapsed - step_s - merge_s, 0.0),
            kernel_norm=norm,
        ))  # fmt: skip

    def _complete(self) -> None:
        """Give the last iteration its scores."""
        if self._waiting is None:
            return
        scores, validation = self._waiting
        if validation is not None:
            scores = scores + self._objective.session.result(validation)
        fields: dict[str, Any] = local_sgd.combine_scores([[scores]], self._has_validation)
        self._history[-1] = replace(self._history[-1], **fields)
        if self._show:
            show_rounds(self._history[-1:])

    def finish(self) -> list[Round]:
        """Return all iterations."""
        self._complete()
        return self._history


def sum_gradients(sums: list[GradientSum]) -> GradientSum:
    """Add up neighbouring groups' sums."""
    return local_sgd.merge_all(sums, add)


def sum_scores(scores: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Add up neighbouring groups' scores."""
    total: NDArray[np.float64] = averaging.pairwise(scores, np.add)
    return total


def finish(sums: list[GradientSum]) -> GradientSum:
    """Add up the last sums, and make them means of float32, half of what the driver would get."""
    total = sum_gradients(sums)
    n = total.scores[0, 0]
    kernel, bias = ((g / n).astype(np.float32) for g in (total.kernel, total.bias))
    return replace(total, kernel=kernel, bias=bias)


class _Objective:
    """The objective and its gradient at parameters (n_features * n_classes + n_classes,) float32.

    Parameters travel as a task, once per step: one worker gets them from the driver, the others
    from it. If it is lost, Dask runs the task again.
    """

    def __init__(
        self, inputs: Inputs, shape: tuple[int, ...], config: TrainConfig, session: Session
    ) -> None:
        self._groups, self._shape, self._l2, self.session = inputs.groups, shape, config.l2, session
        # Rows in memory are scored apart, only where an iteration ends. Those that are read from
        # the store come with the training rows of their chunk.
        self._validates_apart = inputs.has_validation and config.features_in == "memory"
        self.n_evaluations = 0
        self._seconds = np.zeros(2)

    def __call__(self, x: NDArray[np.float32]) -> Point:
        number, session = self.n_evaluations, self.session
        self.n_evaluations += 1
        self._params = session.submit_value(self.params(x), f"lbfgs-params-{number}")
        gradient_of = functools.partial(group_gradient, validates=not self._validates_apart)
        sums = [
            session.submit(gradient_of, self._params, group, name=f"gradient-{number}-{g}")
            for g, group in enumerate(self._groups)
        ]
        name = f"add-gradients-{number}"
        total: GradientSum
        total = session.result(session.reduce(sums, sum_gradients, name=name, root=(finish,)))
        self._seconds += total.step_s, total.merge_s
        n_train, _, loss = total.scores[0]
        kernel = self.kernel(x)
        # Rows in float32, all of them in float64: a tenth of the time of float64 throughout.
        rows = kernel.reshape(self._shape)
        squares = np.einsum("ij,ij->i", rows, rows).sum(dtype=np.float64)
        value = loss / n_train + 0.5 * self._l2 * float(squares)
        gradient = np.concatenate([total.kernel.ravel(), total.bias])
        gradient[: kernel.size] += np.float32(self._l2) * kernel
        return Point(x, float(value), gradient, total)

    def start_validation(self) -> Future | None:
        """Start to score the validation rows where it was last evaluated, if that is not done."""
        if not self._validates_apart:
            return None
        number, session = self.n_evaluations, self.session
        scores = [
            session.submit(score_validation, self._params, group, name=f"validation-{number}-{g}")
            for g, group in enumerate(self._groups)
        ]
        return session.reduce(scores, sum_scores, name=f"add-validation-{number}")

    def take_seconds(self) -> tuple[float, float]:
        """Return the seconds of steps and of adding up since this was last asked."""
        step_s, merge_s = self._seconds.tolist()
        self._seconds[:] = 0
        return step_s, merge_s

    def kernel(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the kernel, flat."""
        return x[: math.prod(self._shape)]

    def params(self, x: NDArray[np.float32]) -> Params:
        """Return kernel and bias."""
        kernel = self.kernel(x)
        return {"kernel": kernel.reshape(self._shape), "bias": x[kernel.size :]}
