"""The exact solver: the objective of averaging, minimised to its optimum by L-BFGS.

The problem is convex, so averaging can be measured by its one optimum. SciPy's L-BFGS-B runs on the
driver, in float64. A step is one pass over the training rows where they lie, on the workers, and a
tree that adds the gradients up. Rows never reach the driver, but parameters and gradients do.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from distributed import Future
from numpy.typing import NDArray

from dtl.cluster.progress import track
from dtl.cluster.spread import Session
from dtl.config import RETIRED, TrainConfig
from dtl.head import averaging, blas, buffers, hidden
from dtl.head.softmax import Params, log_softmax, residuals
from dtl.training import local_sgd
from dtl.training.sharding import Shard
from dtl.training.spec import Fitted, Inputs
from dtl.training.values import Round

log = logging.getLogger(__name__)

TOLERANCE: float = RETIRED["train"]["lbfgs_tolerance"]
"""It ends where no part of the gradient is larger."""

MAX_ITERATIONS: int = RETIRED["train"]["lbfgs_max_iterations"]


@dataclass(frozen=True, eq=False)
class GradientSum:
    """Sums of one or more shards' rows that a step needs.

    `kernel` and `bias` are gradients of the cross-entropy, `scores` as `local_sgd.score_rows` has
    them, `losses` the mean cross-entropy of each shard's training rows. Seconds are those of the
    slowest task, and of adding up, from level to level.
    """

    kernel: NDArray[np.float64]
    bias: NDArray[np.float64]
    scores: NDArray[np.float64]
    losses: Mapping[int, float]
    step_s: float = 0.0
    merge_s: float = 0.0


def group_gradient(params: Params, group: Sequence[Shard]) -> GradientSum:
    """Add up the gradients of neighbouring shards."""
    started = time.perf_counter()
    total = averaging.pairwise((shard_gradient(params, shard) for shard in group), add)
    return replace(total, step_s=time.perf_counter() - started)


def shard_gradient(params: Params, shard: Shard) -> GradientSum:
    """Return the gradient on a shard's training rows, and the scores of all its rows.

    A chunk's products are float32's, all else is float64's: the optimum's objective then agrees
    with scikit-learn's in float64 to 1e-8, in half the time.
    """
    kernel_gradient, bias_gradient = (np.zeros(params[n].shape) for n in ("kernel", "bias"))
    scores = np.zeros((2, 3))
    chunks = list(shard.chunks())
    features = shard.rows([rows for rows, _ in chunks])
    for rows, n_train in chunks:
        x, labels = features[rows], shard.labels[rows]
        with blas.one_blas_thread():
            logits = hidden.logits(params, x)
        log_p = log_softmax(logits.astype(np.float64))
        scores += local_sgd.score_rows(log_p, labels, n_train)
        residual = residuals(log_p[:n_train], labels[:n_train])
        with blas.one_blas_thread():
            kernel_gradient += x[:n_train].T @ residual.astype(np.float32)
        bias_gradient += residual.sum(axis=0)
    losses = {shard.index: float(scores[0, 2] / shard.n_train)} if shard.n_train else {}
    return GradientSum(kernel_gradient, bias_gradient, scores, losses)


def add(a: GradientSum, b: GradientSum) -> GradientSum:
    """Add the sums of two runs of shards."""
    return GradientSum(
        np.add(a.kernel, b.kernel, out=buffers.empty(a.kernel.shape, np.float64)),
        a.bias + b.bias,
        a.scores + b.scores,
        {**a.losses, **b.losses},
        max(a.step_s, b.step_s),
        max(a.merge_s, b.merge_s),
    )


def solve(inputs: Inputs, config: TrainConfig, session: Session, *, show: bool = True) -> Fitted:
    r"""Minimise the mean cross-entropy of all training rows plus ``l2 / 2 * sum(kernel ** 2)``.

    Parameters
    ----------
    inputs : Inputs
        The optimum does not depend on their initial parameters.
    config : TrainConfig
        Of which `l2` is read.
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
    Byrd, Lu, Nocedal, Zhu (1995), "A limited memory algorithm for bound constrained optimization".
    """
    import scipy.optimize  # 0.4 s, which no other solver needs

    initial: Params = session.result(inputs.initial)
    shape, n_kernel = initial["kernel"].shape, initial["kernel"].size
    objective = _Objective(inputs.groups, shape, config.l2, session)
    history: list[Round] = []
    x0 = np.concatenate([initial["kernel"].ravel(), initial["bias"]]).astype(np.float64)
    session.wait(inputs.groups)  # reading the features is no part of the first iteration's time
    before, last = x0, time.monotonic()

    with track("training", MAX_ITERATIONS, "iterations at most", show=show) as advance:

        def record(intermediate_result: Any) -> None:
            nonlocal before, last
            x, value = intermediate_result.x.copy(), intermediate_result.fun
            _, gradient, step = next(s for s in reversed(objective.steps) if s[0] == value)
            now = time.monotonic()
            elapsed, last = now - last, now
            step_s = sum(total.step_s for _, _, total in objective.steps)
            merge_s = sum(total.merge_s for _, _, total in objective.steps)
            norm = float(np.linalg.norm(x[:n_kernel]))
            change = float(np.linalg.norm((x - before)[:n_kernel]))
            before = x
            objective.steps.clear()
            done = Round(
                round=len(history) + 1,
                epoch=float(objective.n_evaluations),
                loss=float(step.scores[0, 2] / step.scores[0, 0]),
                shard_loss=tuple(step.losses.get(s, np.nan) for s in range(len(inputs.n_train))),
                learning_rate=np.nan,
                update_ratio=change / norm if norm else 0.0,
                spread=0.0,
                step_s=step_s,
                average_s=merge_s,
                wait_s=max(elapsed - step_s - merge_s, 0.0),
                kernel_norm=norm,
                **local_sgd.combine_scores([[step.scores]], inputs.has_validation),
            )
            history.append(done)
            advance(1, f"objective {value:.6f}, gradient {gradient:.1e}")

        # On the driver too, a sum's last bits depend on the number of threads.
        with blas.one_blas_thread():
            found = scipy.optimize.minimize(
                objective, x0, method="L-BFGS-B", jac=True, callback=record,
                options={
                    "maxiter": MAX_ITERATIONS, "maxfun": np.iinfo(np.int32).max,
                    "gtol": TOLERANCE, "ftol": 64 * np.finfo(float).eps, "maxls": 50,
                },
            )  # fmt: skip
        if not history:  # where the start is the optimum, SciPy takes no step and calls nothing
            record(found)
    gradient = float(np.abs(found.jac).max())
    summary = f"{found.nit} iterations, {objective.n_evaluations} passes, objective {found.fun:.6f}"
    if gradient <= TOLERANCE:
        level = logging.INFO if show else logging.DEBUG
        log.log(level, "L-BFGS: %s, gradient %.1e", summary, gradient)
    else:
        log.warning(
            "L-BFGS stopped short of its tolerance: %s, gradient %.1e, not %.1e. A larger "
            "`train.l2` helps; float32 ends at some 1e-6.",
            summary, gradient, TOLERANCE,
        )  # fmt: skip
    return Fitted(_params(found.x, shape), history)


_ADD_ALL = functools.partial(local_sgd.merge_all, merge=add)


class _Objective:
    """The objective and its gradient at parameters (n_features * n_classes + n_classes,) float64.

    Parameters travel as a task, once per step: one worker gets them from the driver, the others
    from it. If it is lost, Dask runs the task again.
    """

    def __init__(
        self, groups: list[Future], shape: tuple[int, ...], l2: float, session: Session
    ) -> None:
        self._groups, self._shape, self._l2, self._session = groups, shape, l2, session
        self.n_evaluations = 0
        self.steps: list[tuple[float, float, GradientSum]] = []

    def __call__(self, x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        number, session = self.n_evaluations, self._session
        self.n_evaluations += 1
        params = session.submit_value(_params(x, self._shape), f"lbfgs-params-{number}")
        sums = [
            session.submit(group_gradient, params, group, name=f"gradient-{number}-{g}")
            for g, group in enumerate(self._groups)
        ]
        total: GradientSum
        total = session.result(session.reduce(sums, _ADD_ALL, name=f"add-gradients-{number}"))
        n = total.scores[0, 0]
        kernel = x[: total.kernel.size]
        value = float(total.scores[0, 2] / n + 0.5 * self._l2 * (kernel @ kernel))
        gradient = np.concatenate([total.kernel.ravel(), total.bias]) / n
        gradient[: kernel.size] += self._l2 * kernel
        self.steps.append((value, float(np.abs(gradient).max()), total))
        return value, gradient


def _params(x: NDArray[np.float64], shape: tuple[int, ...]) -> Params:
    n_kernel = shape[0] * shape[1]
    kernel, bias = x[:n_kernel].reshape(shape), x[n_kernel:]
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
