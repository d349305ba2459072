"""The exact answer: the same objective as averaging, minimised to its optimum by L-BFGS.

The problem is convex, so there is one answer to measure averaging by. SciPy's L-BFGS-B runs on the
driver, in float64. A step is one pass over the training rows where they lie, on the workers, and a
tree that adds the gradients up; rows never reach the driver, but parameters and gradients do.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from distributed import Client, Future
from numpy.typing import NDArray

from dtl.cluster.progress import track
from dtl.cluster.spread import submit_value, tree_reduce, wait_for
from dtl.config import TrainConfig
from dtl.head import averaging, blas, buffers
from dtl.head.softmax import Params, log_softmax
from dtl.training import local_sgd
from dtl.training.sharding import Shard
from dtl.training.values import Round

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Part:
    """What the rows of one or more shards bring to a step, as sums over rows.

    Parameters
    ----------
    kernel, bias : (n_features, n_classes) and (n_classes,) float64
        Gradients of the cross-entropy.
    scores : (2, 3) float64
        Rows, right ones and cross-entropy, of the training and of the validation rows.
    losses : dict of shard to float
        Mean cross-entropy of each shard's training rows.
    step_s, sum_s : float
        Seconds of the slowest task, and of adding up, from level to level.
    """

    kernel: NDArray[np.float64]
    bias: NDArray[np.float64]
    scores: NDArray[np.float64]
    losses: Mapping[int, float]
    step_s: float = 0.0
    sum_s: float = 0.0


def group_gradient(params: Params, group: Sequence[Shard]) -> Part:
    """What `shard_gradient` says of neighbouring shards, added up."""
    started = time.perf_counter()
    total = averaging.pairwise((shard_gradient(params, shard) for shard in group), add)
    return replace(total, step_s=time.perf_counter() - started)


def shard_gradient(params: Params, shard: Shard) -> Part:
    """The gradient on a shard's training rows, and the scores of all its rows.

    A chunk's products are float32's, all else is float64's: the optimum's objective then agrees
    with scikit-learn's in float64 to 1e-8, in half the time.
    """
    kernel, bias = params["kernel"], params["bias"]
    kernel_gradient, bias_gradient = np.zeros(kernel.shape), np.zeros(bias.shape)
    scores = np.zeros((2, 3))
    chunks = list(shard.chunks())
    features = shard.rows([rows for rows, _ in chunks])
    for rows, n_train in chunks:
        x, labels = features[rows], shard.labels[rows]
        positions = np.arange(len(labels))
        with blas.one_blas_thread():
            logits = x @ kernel + bias
        log_p = log_softmax(logits.astype(np.float64))
        loss, right = -log_p[positions, labels], logits.argmax(axis=1) == labels
        for part, some in enumerate((slice(0, n_train), slice(n_train, None))):
            scores[part] += len(loss[some]), right[some].sum(), loss[some].sum()
        residual = np.exp(log_p[:n_train])
        residual[positions[:n_train], labels[:n_train]] -= 1
        with blas.one_blas_thread():
            kernel_gradient += x[:n_train].T @ residual.astype(np.float32)
        bias_gradient += residual.sum(axis=0)
    losses = {shard.index: float(scores[0, 2] / shard.n_train)} if shard.n_train else {}
    return Part(kernel_gradient, bias_gradient, scores, losses)


def add(a: Part, b: Part) -> Part:
    """Two parts of a step as one."""
    return Part(
        np.add(a.kernel, b.kernel, out=buffers.empty(a.kernel.shape, np.float64)),
        a.bias + b.bias,
        a.scores + b.scores,
        {**a.losses, **b.losses},
        max(a.step_s, b.step_s),
        max(a.sum_s, b.sum_s),
    )


def combine(parts: list[Part]) -> Part:
    """Neighbouring parts of a step as one."""
    started = time.perf_counter()
    total = averaging.pairwise(parts, add)
    return replace(total, sum_s=total.sum_s + time.perf_counter() - started)


def solve(
    groups: list[Future],
    n_shards: int,
    start: Future,
    config: TrainConfig,
    client: Client,
    *,
    run: str,
    has_validation: bool,
    show: bool = True,
) -> tuple[Params, list[Round]]:
    r"""Minimise the mean cross-entropy of all training rows plus ``l2 / 2 * sum(kernel ** 2)``.

    Parameters
    ----------
    groups : list of futures of lists of Shard
    n_shards : int
        In all of them.
    start : future of Params
        Where to start from; the optimum is the same.
    config : TrainConfig
        Its `l2`, `lbfgs_tolerance` and `lbfgs_max_iterations`.
    run : str
        Unique; in the names of the tasks.
    has_validation : bool
        Whether any shard has validation rows.
    show : bool
        How far it is, in the terminal.

    Returns
    -------
    params : Params
        ``kernel`` and ``bias``.
    history : list of Round
        One for each iteration, and one where none was needed; `epoch` counts passes over the
        training rows, line searches' too.

    Notes
    -----
    The objective :math:`f` is `l2`-strongly convex in the kernel, so the gradient tells how far
    the optimum can be: where the bias is at its own, at most :math:`|\nabla f|^2 / 2 l2` in
    :math:`f`.

    References
    ----------
    Byrd, Lu, Nocedal, Zhu (1995), "A limited memory algorithm for bound constrained optimization".
    """
    import scipy.optimize  # 0.4 s, which no other solver needs

    first: Params = start.result()
    objective = _Objective(groups, first["kernel"].shape, config.l2, client, run)
    history: list[Round] = []
    x0 = np.concatenate([first["kernel"].ravel(), first["bias"]]).astype(np.float64)
    wait_for(client, groups)  # reading the features is no part of the first iteration's time
    before, last = x0, time.monotonic()

    n_most = config.lbfgs_max_iterations
    with track("training", n_most, "iterations at most", show=show) as advance:

        def keep(intermediate_result: Any) -> None:
            nonlocal before, last
            x, value = intermediate_result.x.copy(), intermediate_result.fun
            step = next(s for s in reversed(objective.steps) if s.value == value)
            now = time.monotonic()
            elapsed, last = now - last, now
            step_s = sum(s.step_s for s in objective.steps)
            sum_s = sum(s.sum_s for s in objective.steps)
            norm = float(np.linalg.norm(x[: first["kernel"].size]))
            change = float(np.linalg.norm((x - before)[: first["kernel"].size]))
            before = x
            objective.steps.clear()
            history.append(
                Round(
                    round=len(history) + 1,
                    epoch=float(objective.n_evaluations),
                    loss=float(step.scores[0, 2] / step.scores[0, 0]),
                    shard_loss=tuple(step.losses.get(s, np.nan) for s in range(n_shards)),
                    learning_rate=np.nan,
                    update_ratio=change / norm if norm else 0.0,
                    spread=0.0,
                    step_s=step_s,
                    average_s=sum_s,
                    wait_s=max(elapsed - step_s - sum_s, 0.0),
                    kernel_norm=norm,
                    **local_sgd.combine_scores([[step.scores]], has_validation),
                )
            )
            advance(1, f"objective {value:.6f}, gradient {step.gradient:.1e}")

        # On the driver too, a sum's last bits depend on the number of threads.
        with blas.one_blas_thread():
            found = scipy.optimize.minimize(
                objective, x0, method="L-BFGS-B", jac=True, callback=keep,
                options={
                    "maxiter": config.lbfgs_max_iterations, "maxfun": np.iinfo(np.int32).max,
                    "gtol": config.lbfgs_tolerance, "ftol": 64 * np.finfo(float).eps, "maxls": 50,
                },
            )  # fmt: skip
        if not history:  # where the start is the optimum, SciPy takes no step and calls nothing
            keep(found)
    gradient = float(np.abs(found.jac).max())
    told = f"{found.nit} iterations, {objective.n_evaluations} passes, objective {found.fun:.6f}"
    if gradient <= config.lbfgs_tolerance:
        level = logging.INFO if show else logging.DEBUG
        log.log(level, "L-BFGS: %s, gradient %.1e", told, gradient)
    else:
        log.warning(
            "L-BFGS stopped short of its tolerance: %s, gradient %.1e, not %.1e. More "
            "train.lbfgs_max_iterations, or train.l2, helps; float32 ends at some 1e-6.",
            told, gradient, config.lbfgs_tolerance,
        )  # fmt: skip
    return _params(found.x, first["kernel"].shape), history


@dataclass(frozen=True, eq=False)
class _Step:
    """What there is to tell of one evaluation."""

    value: float
    gradient: float
    scores: NDArray[np.float64]
    losses: Mapping[int, float]
    step_s: float
    sum_s: float


class _Objective:
    """The objective and its gradient at parameters (n_features * n_classes + n_classes,) float64.

    Parameters travel as a task, once a step: one worker gets them from the driver, the others from
    it, and where it is lost Dask runs the task again.
    """

    def __init__(
        self, groups: list[Future], shape: tuple[int, ...], l2: float, client: Client, run: str
    ) -> None:
        self._groups, self._shape, self._l2 = groups, shape, l2
        self._client, self._run = client, run
        self.n_evaluations = 0
        self.steps: list[_Step] = []

    def __call__(self, x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        key, client = f"{self._run}-{self.n_evaluations}", self._client
        self.n_evaluations += 1
        params = submit_value(client, _params(x, self._shape), f"lbfgs-params-{key}")
        parts = [
            client.submit(group_gradient, params, group, key=f"gradient-{key}-{g}")
            for g, group in enumerate(self._groups)
        ]
        total: Part = tree_reduce(client, parts, combine, name=f"add-gradients-{key}").result()
        n = total.scores[0, 0]
        kernel = x[: total.kernel.size]
        value = float(total.scores[0, 2] / n + 0.5 * self._l2 * (kernel @ kernel))
        gradient = np.concatenate([total.kernel.ravel(), total.bias]) / n
        gradient[: kernel.size] += self._l2 * kernel
        self.steps.append(
            _Step(value, float(np.abs(gradient).max()), total.scores, total.losses, total.step_s,
                  total.sum_s)
        )  # fmt: skip
        return value, gradient


def _params(x: NDArray[np.float64], shape: tuple[int, ...]) -> Params:
    n_kernel = shape[0] * shape[1]
    kernel, bias = x[:n_kernel].reshape(shape), x[n_kernel:]
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
