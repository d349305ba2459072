"""Steps of gradient descent on a head: a loop, and a rule for each optimizer.

The kernel is larger than a core's cache and the rest is small, so what a step costs beside its two
products is how often the kernel's memory is passed over. It is twice: for the logits, and then in
blocks of rows, each with its gradient and its state, which stay in the cache until all is done with
them. The whole gradient is never written. All is NumPy's, for SciPy's BLAS keeps the interpreter
locked, and a worker's other threads wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.config import TrainConfig
from dtl.head import buffers, hidden
from dtl.head.softmax import Params, Rows, log_softmax, residuals

Array = NDArray[np.float32]

_BLOCK = 1 << 16
"""Numbers in a block: 256 KiB, of which an optimizer works on three to five at once."""

_DROPOUT = 1
"""Keeps the random numbers of dropout apart from those of the order of the rows."""


@dataclass(frozen=True)
class _Step:
    """What a rule is told of a step; `count` is from 1.

    The learning rate is one number, or of a stack of heads one for each column.
    """

    learning_rate: float | Array
    momentum: float
    count: int


def _sgd(w: Array, g: Array, _state: Sequence[Array], _scratch: Array, _step: _Step) -> None:
    w += g


def _momentum(w: Array, g: Array, state: Sequence[Array], _scratch: Array, step: _Step) -> None:
    (velocity,) = state
    velocity *= step.momentum
    velocity += g
    w += velocity


def _nesterov(w: Array, g: Array, state: Sequence[Array], _scratch: Array, step: _Step) -> None:
    (velocity,) = state
    velocity *= step.momentum
    velocity += g
    w += g
    w += np.multiply(velocity, step.momentum, out=g)


def _adam(w: Array, g: Array, state: Sequence[Array], scratch: Array, step: _Step) -> None:
    mean, square = state
    beta1, beta2 = 0.9, 0.999
    _decay(mean, g, beta1, scratch)
    g *= g
    _decay(square, g, beta2, scratch)
    bias = math.sqrt(1 - beta2**step.count) / (1 - beta1**step.count)
    np.sqrt(square, out=scratch)
    scratch += _EPSILON
    np.multiply(mean, step.learning_rate * bias, out=g)
    g /= scratch
    w -= g


def _rmsprop(w: Array, g: Array, state: Sequence[Array], scratch: Array, step: _Step) -> None:
    (square,) = state
    _decay_square(square, g, 0.9, scratch)
    g *= step.learning_rate
    g /= _root(square, scratch)
    w -= g


def _adadelta(w: Array, g: Array, state: Sequence[Array], scratch: Array, step: _Step) -> None:
    square, change_square = state
    _decay_square(square, g, 0.95, scratch)
    g *= _root(change_square, scratch)
    g /= _root(square, scratch)
    _decay_square(change_square, g, 0.95, scratch)
    g *= step.learning_rate
    w -= g


_EPSILON = 1e-7
"""Keras' default, as are the decays in the rules above."""


def _decay(mean: Array, value: Array, rate: float, scratch: Array) -> None:
    """A running mean takes a value in."""
    mean *= rate
    mean += np.multiply(value, 1 - rate, out=scratch)


def _decay_square(mean: Array, value: Array, rate: float, scratch: Array) -> None:
    np.multiply(value, value, out=scratch)
    _decay(mean, scratch, rate, scratch)


def _root(square: Array, out: Array) -> Array:
    np.add(square, _EPSILON, out=out)
    return np.sqrt(out, out=out)


_Rule = Callable[[Array, Array, Sequence[Array], Array, _Step], None]
"""Changes weights and state in place; it may write over the gradient and the scratch array.

Rules of `_SCALED` take the gradient times minus the learning rate: nothing to do where it is made.
"""

_SCALED = ("nesterov", "sgd", "momentum")

_RULES: Mapping[str, _Rule] = {
    "nesterov": _nesterov,
    "sgd": _sgd,
    "momentum": _momentum,
    "adam": _adam,
    "rmsprop": _rmsprop,
    "adadelta": _adadelta,
}

STATE: Mapping[str, tuple[str, ...]] = {
    "nesterov": ("velocity",),
    "sgd": (),
    "momentum": ("velocity",),
    "adam": ("mean", "square"),
    "rmsprop": ("square",),
    "adadelta": ("square", "change_square"),
}
"""The state that each optimizer keeps of kernel and bias: ``kernel_velocity`` and so on."""


class _Layer:
    """Kernel and bias of a layer with their state; `prefix` is what their names begin with.

    What is given stays as it is. The kernel and its state are copied by the first step, block by
    block as it comes to them: a copy before that would pass over their memory once more.
    """

    def __init__(self, start: Params, prefix: str, optimizer: str) -> None:
        self._kernel_names, self._bias_names = (
            [name, *(f"{name}_{slot}" for slot in STATE[optimizer])]
            for name in (f"{prefix}kernel", f"{prefix}bias")
        )
        self._start = start
        self.kernel, bias = start[f"{prefix}kernel"], start[f"{prefix}bias"]
        self._kernels: list[Array] = []
        self._biases = [np.array(start.get(n, np.zeros_like(bias))) for n in self._bias_names]
        self.bias = self._biases[0]
        self._rule = _RULES[optimizer]
        n_inputs, n_outputs = self.kernel.shape
        n_block = min(max(1, _BLOCK // n_outputs), n_inputs)
        self._gradient, self._scratch = buffers.empty((2, n_block, n_outputs), np.float32)
        self._bias_scratch = np.empty_like(self.bias)

    def descend(self, inputs: Array, residual: Array, decay: float | Array, step: _Step) -> None:
        """Take a step, along ``inputs.T @ residual + decay * kernel`` and the residual's sum."""
        n_inputs, n_block = len(self.kernel), len(self._gradient)
        decays = np.any(decay)
        is_first = not self._kernels
        if is_first:
            shape, dtype = self.kernel.shape, self.kernel.dtype
            self._kernels = [buffers.empty(shape, dtype) for _ in self._kernel_names]
        for start in range(0, n_inputs, n_block):
            here = slice(start, min(start + n_block, n_inputs))
            if is_first:
                self._copy(here)
            weights, *state = (value[here] for value in self._kernels)
            scratch = self._scratch[: here.stop - start]
            g = np.matmul(inputs[:, here].T, residual, out=self._gradient[: here.stop - start])
            if decays:
                g += np.multiply(weights, decay, out=scratch)
            self._rule(weights, g, state, scratch, step)
        self.kernel = self._kernels[0]
        bias, *state = self._biases
        self._rule(bias, residual.sum(axis=0), state, self._bias_scratch, step)

    def _copy(self, rows: slice) -> None:
        for name, value in zip(self._kernel_names, self._kernels, strict=True):
            value[rows] = self._start[name][rows] if name in self._start else 0

    def params(self) -> Params:
        """All of it, after the last step."""
        if not self._kernels:
            self._kernels = [np.empty_like(self.kernel) for _ in self._kernel_names]
            self._copy(slice(None))
        names, values = self._kernel_names + self._bias_names, self._kernels + self._biases
        return dict(zip(names, values, strict=True))


def _in_order(start: Params, layers: Iterable[_Layer]) -> Params:
    """The layers' parameters, in the order that they were given in, so that all sums are alike."""
    params = {name: value for layer in layers for name, value in layer.params().items()}
    return {name: params[name] for name in dict.fromkeys([*start, *params]) if name in params}


def descend(
    start: Params,
    features: Rows,
    labels: NDArray[np.int32],
    batches: Iterable[NDArray[np.intp]],
    learning_rates: Iterable[float],
    config: TrainConfig,
    *,
    class_weights: Array | None = None,
    first_step: int = 0,
    n_before: int = 0,
    seed: Sequence[int] = (0,),
) -> tuple[Params, float]:
    r"""Steps of an optimizer, from parameters and state that stay as they are.

    The gradient :math:`g` is that of `softmax.loss_and_gradient` on a batch, or with a hidden layer
    what `hidden.residuals` says, clipped to the norm `config.clip_norm`. Dropout is of the inputs
    of the softmax layer: features, or hidden units. All rules are Keras' with its defaults; the
    default one is, with velocity :math:`v` and momentum :math:`m`,

    .. math:: v \leftarrow m v - \eta g, \qquad W \leftarrow W + m v - \eta g.

    Parameters
    ----------
    start : Params
        Weights, and the optimizer's state; what is missing of that begins at zero.
    features : (n, n_features) float32 array, or what reads ahead
    labels : (n,) int32
    batches : iterable of (batch_size,) int
        The rows of each step.
    learning_rates : iterable of float
        One for each step.
    config : TrainConfig
        For `optimizer`, `momentum`, `l2`, `label_smoothing`, `dropout` and `clip_norm`.
    class_weights : (n_classes,) float32, optional
    first_step : int
        Which step of the training the first one is: dropout follows from it.
    n_before : int
        Steps that the optimizer's state has seen; Adam corrects its bias by it.
    seed : sequence of int
        Of dropout, with the step's number.

    Returns
    -------
    params : Params
        Weights and state after the last step.
    loss : float
        Mean cross-entropy of the batches, each before its step and weighted by its rows; NaN if
        there were none. Neither smoothing, weights nor penalty are in it; dropout is.

    References
    ----------
    Sutskever et al. (2013), "On the importance of initialization and momentum in deep learning",
    with the parameters at the look-ahead point, as Bengio et al. (2012), section 3.5. Kingma, Ba
    (2015), "Adam", the form before section 2.1. Tieleman, Hinton (2012), "RMSprop". Zeiler (2012),
    "Adadelta". Srivastava et al. (2014), "Dropout". Pascanu et al. (2013), "On the difficulty of
    training recurrent neural networks", for clipping.
    """
    top = _Layer(start, "", config.optimizer)
    below = _Layer(start, "hidden_", config.optimizer) if "hidden_kernel" in start else None
    total, n_rows = 0.0, 0
    for i, (rows, learning_rate) in enumerate(zip(batches, learning_rates, strict=True)):
        x, y = _take(features, rows), labels[rows]
        inputs = hidden.units(below.kernel, below.bias, x) if below else x
        if config.dropout:
            _drop(inputs, config.dropout, [*seed, first_step + i, _DROPOUT])
        log_p = log_softmax(inputs @ top.kernel + top.bias)
        total -= float(log_p[np.arange(len(rows)), y].sum(dtype=np.float64))
        n_rows += len(rows)
        residual = residuals(log_p, y, config.label_smoothing, class_weights)
        residual /= len(rows)
        passes = [(top, inputs, residual, log_p)]
        if below:
            back = hidden.residuals(residual, top.kernel, inputs, config.dropout)
            passes.append((below, x, back, inputs * (1 - config.dropout)))
        factor = -learning_rate if config.optimizer in _SCALED else 1.0
        if config.clip_norm:
            norm = math.hypot(
                *(
                    gradient_norm(layer.kernel, taken, r, outputs - layer.bias, config.l2)
                    for layer, taken, r, outputs in passes
                )
            )
            factor *= min(1.0, config.clip_norm / norm) if norm else 1.0
        step = _Step(learning_rate, config.momentum, n_before + i + 1)
        for layer, taken, r, _ in passes:
            r *= factor
            layer.descend(taken, r, config.l2 * factor, step)
    params = _in_order(start, [top, below] if below else [top])
    return params, total / n_rows if n_rows else float("nan")


def stack(heads: Sequence[Params]) -> Params:
    """Heads side by side: their kernels along the classes, and all else as these.

    Parameters
    ----------
    heads : sequence of Params
        Of the same shapes and names.

    Returns
    -------
    Params
        ``kernel`` (n_features, n_heads * n_classes), ``bias`` (n_heads * n_classes,), and so on.

    Examples
    --------
    >>> one, two = ({"bias": np.array(b, "f4")} for b in ([1, 2], [3, 4]))
    >>> stack([one, two])["bias"].tolist()
    [1.0, 2.0, 3.0, 4.0]
    >>> unstack(stack([one, two]), 1, n_heads=2)["bias"].tolist()
    [3.0, 4.0]
    """
    return {name: np.concatenate([head[name] for head in heads], axis=-1) for name in heads[0]}


def unstack(params: Params, index: int, n_heads: int) -> Params:
    """One of the heads that `stack` put side by side."""
    n_classes = len(params["bias"]) // n_heads
    columns = slice(index * n_classes, (index + 1) * n_classes)
    return {name: np.ascontiguousarray(value[..., columns]) for name, value in params.items()}


def descend_stack(
    start: Params,
    features: Rows,
    labels: NDArray[np.int32],
    batches: Iterable[NDArray[np.intp]],
    learning_rates: Iterable[Sequence[float]],
    config: TrainConfig,
    *,
    l2s: Sequence[float],
    class_weights: Array | None = None,
    first_step: int = 0,
    n_before: int = 0,
    seed: Sequence[int] = (0,),
) -> tuple[Params, float]:
    """Steps of many heads on the same batches, each as `descend` takes it.

    Rows are taken and dropped out once, and a product is as wide as all heads: BLAS and Python
    need little more time for some narrow heads than for one. A head has the numbers that `descend`
    gives it alone, but for the rounding of products, which BLAS may add up in another order where
    matrices are small. One that diverges spoils no other.

    Parameters
    ----------
    start : Params
        A `stack`.
    learning_rates : iterable of (n_heads,) float
        For each step.
    config : TrainConfig
        What the heads have in common: all but the learning rate and `l2`.
    l2s : (n_heads,) float
    features, labels, batches, class_weights, first_step, n_before, seed
        As `descend` has them.

    Returns
    -------
    params : Params
        A `stack`, too.
    loss : float
        What `descend` returns, averaged over the heads; NaN if one has diverged.
    """
    n_heads = len(l2s)
    top = _Layer(start, "", config.optimizer)
    n_columns = len(top.bias)
    n_classes = n_columns // n_heads
    total, n_rows = 0.0, 0
    for i, (rows, rates) in enumerate(zip(batches, learning_rates, strict=True)):
        x, y = _take(features, rows), np.repeat(labels[rows], n_heads)
        if config.dropout:
            _drop(x, config.dropout, [*seed, first_step + i, _DROPOUT])
        log_p = log_softmax((x @ top.kernel + top.bias).reshape(-1, n_classes))
        total -= float(log_p[np.arange(len(y)), y].sum(dtype=np.float64))
        n_rows += len(y)
        residual = residuals(log_p, y, config.label_smoothing, class_weights)
        residual = residual.reshape(len(rows), n_columns)
        residual /= len(rows)
        factors = [-rate if config.optimizer in _SCALED else 1.0 for rate in rates]
        if config.clip_norm:
            logits = log_p.reshape(len(rows), n_columns) - top.bias
            for k, l2 in enumerate(l2s):
                of_k = np.s_[:, k * n_classes : (k + 1) * n_classes]
                norm = gradient_norm(top.kernel[of_k], x, residual[of_k], logits[of_k], l2)
                factors[k] *= min(1.0, config.clip_norm / norm) if norm else 1.0
        residual *= _columns(factors, n_classes)
        decays = [l2 * factor for l2, factor in zip(l2s, factors, strict=True)]
        step = _Step(_columns(rates, n_classes), config.momentum, n_before + i + 1)
        top.descend(x, residual, _columns(decays, n_classes), step)
    return _in_order(start, [top]), total / n_rows if n_rows else float("nan")


def _columns(values: Sequence[float], n_classes: int) -> Array:
    """A value for each head as one for each column of a stack."""
    return np.repeat(np.array(values, np.float32), n_classes)


def gradient_norm(
    kernel: NDArray[Any],
    features: NDArray[Any],
    residual: NDArray[Any],
    logits: NDArray[Any],
    l2: float,
) -> float:
    r"""Norm of the gradient of a layer, :math:`x^T r + \lambda W` and :math:`1^T r`.

    It is found without the gradient: :math:`\|x^T r\|^2` is the sum of :math:`x x^T \circ r r^T`,
    and :math:`\langle x^T r, W \rangle` that of :math:`r \circ x W`.

    Parameters
    ----------
    kernel : (n_features, n_classes) float
    features : (n, n_features) float
    residual : (n, n_classes) float
        Its rows add up to 0, or it is one of `hidden.residuals`.
    logits : (n, n_classes) float
        Features times kernel; a constant more or less in a row changes nothing where the
        residual's rows add up to 0, nor does anything where the residual is 0.
    """
    squares = float(((features @ features.T) * (residual @ residual.T)).sum(dtype=np.float64))
    if l2:
        flat = kernel.reshape(-1)
        squares += l2 * (2 * float((residual * logits).sum()) + l2 * float(flat @ flat))
    return math.sqrt(max(squares, 0.0) + float((residual.sum(axis=0) ** 2).sum()))


def _take(features: Rows, rows: NDArray[np.intp]) -> Array:
    if not isinstance(features, np.ndarray):
        return features[rows]
    out = buffers.empty((len(rows), features.shape[1]), features.dtype)
    # By its default mode NumPy would make another array first; rows are of the features.
    taken: Array = np.take(features, rows, axis=0, out=out, mode="clip")
    return taken


def _drop(x: Array, rate: float, seed: Sequence[int]) -> None:
    """Zeros for a share of the inputs, and more of the others, so that their mean stays."""
    kept = np.random.default_rng(seed).random(x.shape, np.float32) >= rate
    x *= kept
    x *= np.float32(1 / (1 - rate))
