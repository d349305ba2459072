"""Steps of gradient descent on a head, or on a stack of heads side by side.

The kernel is larger than a core's cache and the rest is small, so a step costs its two products and
its passes over the kernel's memory. There are two: for the logits, and then in blocks of rows, each
with its gradient and its state, which stay in the cache until all is done with them. The whole
gradient is never written. All is NumPy's, for SciPy's BLAS keeps the interpreter locked, and a
worker's other threads wait.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.head import buffers, hidden
from dtl.head.optimizers import OPTIMIZERS, Array, Optimizer, Step
from dtl.head.schedules import Steps
from dtl.head.softmax import Params, Rows, log_softmax, residuals

_BLOCK = 1 << 16
"""Numbers in a block: 256 KiB, of which an optimizer works on three to five at once."""

_DROPOUT = 1
"""Keeps the random numbers of dropout apart from those of the order of the rows."""


class _Layer:
    """Kernel and bias of a layer with their state; their names begin with `prefix`.

    The parameters given stay as they are. The first step copies the kernel and its state block by
    block, as it comes to them: a copy before that would pass over their memory once more.
    """

    def __init__(self, before: Params, prefix: str, optimizer: Optimizer) -> None:
        self._kernel_names, self._bias_names = (
            [name, *(f"{name}_{slot}" for slot in optimizer.state)]
            for name in (f"{prefix}kernel", f"{prefix}bias")
        )
        self._before = before
        self.kernel, bias = before[f"{prefix}kernel"], before[f"{prefix}bias"]
        self._kernels: list[Array] = []
        self._biases = [np.array(before.get(n, np.zeros_like(bias))) for n in self._bias_names]
        self.bias = self._biases[0]
        self._update = optimizer.update
        n_inputs, n_outputs = self.kernel.shape
        n_block = min(max(1, _BLOCK // n_outputs), n_inputs)
        self._gradient, self._scratch = buffers.empty((2, n_block, n_outputs), np.float32)
        self._bias_scratch = np.empty_like(self.bias)

    def descend(self, inputs: Array, residual: Array, decay: float | Array, step: Step) -> None:
        """Take a step along ``inputs.T @ residual + decay * kernel`` and the residual's sum."""
        n_inputs, n_block = len(self.kernel), len(self._gradient)
        decays = np.any(decay)
        is_first = not self._kernels
        if is_first:
            shape, dtype = self.kernel.shape, self.kernel.dtype
            self._kernels = [buffers.empty(shape, dtype) for _ in self._kernel_names]
        for first in range(0, n_inputs, n_block):
            rows = slice(first, min(first + n_block, n_inputs))
            if is_first:
                self._copy(rows)
            weights, *state = (value[rows] for value in self._kernels)
            scratch = self._scratch[: rows.stop - first]
            g = np.matmul(inputs[:, rows].T, residual, out=self._gradient[: rows.stop - first])
            if decays:
                g += np.multiply(weights, decay, out=scratch)
            self._update(weights, g, state, scratch, step)
        self.kernel = self._kernels[0]
        bias, *state = self._biases
        self._update(bias, residual.sum(axis=0), state, self._bias_scratch, step)

    def _copy(self, rows: slice) -> None:
        for name, value in zip(self._kernel_names, self._kernels, strict=True):
            value[rows] = self._before[name][rows] if name in self._before else 0

    def params(self) -> Params:
        """Return weights and state after the last step."""
        if not self._kernels:
            self._kernels = [np.empty_like(self.kernel) for _ in self._kernel_names]
            self._copy(slice(None))
        names, values = self._kernel_names + self._bias_names, self._kernels + self._biases
        return dict(zip(names, values, strict=True))


def descend(
    before: Params,
    features: Rows,
    labels: NDArray[np.int32],
    batches: Sequence[NDArray[np.intp]],
    steps: Steps,
    class_weights: Array | None = None,
) -> tuple[Params, float]:
    r"""Take steps of an optimizer, from parameters and state that stay as they are.

    The gradient :math:`g` is that of ``mean cross-entropy + l2 / 2 * sum(kernel ** 2)`` of a batch,
    of both kernels if there is a hidden layer, clipped to the norm `clip_norm`. Dropout is of the
    inputs of the softmax layer: features, or hidden units. All rules are Keras' with its defaults;
    the default one is, with velocity :math:`v` and momentum :math:`m`,

    .. math:: v \leftarrow m v - \eta g, \qquad W \leftarrow W + m v - \eta g.

    A `stack` of heads takes the same batches with the same dropout, and its products are as wide as
    all heads: BLAS and Python need little more time for some narrow heads than for one. A head has
    the numbers that it would have alone, but for the rounding of products, which BLAS may add up in
    another order where matrices are small. One that diverges spoils no other.

    Parameters
    ----------
    before : Params
        Weights and the optimizer's state, of one head or of a stack; missing state begins at zero.
    features : (n, n_features) float32 array, or a reader of such rows
    batches : sequence of (batch_size,) int
        The rows of each step.
    steps : Steps
        As many as batches. Of its options these are read: `optimizer`, `momentum`,
        `label_smoothing`, `dropout`, `clip_norm` and `average_optimizer`.
    class_weights : (n_classes,) float32, optional

    Returns
    -------
    params : Params
        Weights and state after the last step.
    loss : float
        Mean cross-entropy of the batches, each before its step and weighted by its rows; NaN if
        there were none, or if a head of the stack has diverged. Neither smoothing, weights nor
        penalty are in it; dropout is.

    References
    ----------
    Sutskever et al. (2013), "On the importance of initialization and momentum in deep learning",
    with the parameters at the look-ahead point, as Bengio et al. (2012), section 3.5. Kingma, Ba
    (2015), "Adam", the form before section 2.1. Tieleman, Hinton (2012), "RMSprop". Zeiler (2012),
    "Adadelta". Srivastava et al. (2014), "Dropout". Pascanu et al. (2013), "On the difficulty of
    training recurrent neural networks", for clipping.
    """
    config, n_heads = steps.config, len(steps.l2s)
    optimizer = OPTIMIZERS[config.optimizer]
    top = _Layer(before, "", optimizer)
    below = _Layer(before, "hidden_", optimizer) if "hidden_kernel" in before else None
    n_classes = len(top.bias) // n_heads
    n_seen = steps.first if config.average_optimizer else 0
    total, n_rows = 0.0, 0
    for i, (rows, rates) in enumerate(zip(batches, steps.learning_rates, strict=True)):
        x, y = _take(features, rows), np.repeat(labels[rows], n_heads)
        inputs = hidden.units(below.kernel, below.bias, x) if below else x
        if config.dropout:
            _drop(inputs, config.dropout, [*steps.seed, steps.first + i, _DROPOUT])
        logits = inputs @ top.kernel + top.bias
        log_p = log_softmax(logits.reshape(-1, n_classes))
        total -= float(log_p[np.arange(len(y)), y].sum(dtype=np.float64))
        n_rows += len(y)
        residual = residuals(log_p, y, config.label_smoothing, class_weights)
        residual = residual.reshape(logits.shape)
        residual /= len(rows)
        passes = [(top, inputs, residual, log_p.reshape(logits.shape))]
        if below:
            back = hidden.residuals(residual, top.kernel, inputs, config.dropout)
            passes.append((below, x, back, inputs * (1 - config.dropout)))
        scales, factors = zip(*map(optimizer.split_rate, rates), strict=True)
        if config.clip_norm:
            clips = [_clip(passes, k, steps.l2s, config.clip_norm) for k in range(n_heads)]
            scales = tuple(scale * clip for scale, clip in zip(scales, clips, strict=True))
        decays = [l2 * scale for l2, scale in zip(steps.l2s, scales, strict=True)]
        step = Step(_per_column(factors, n_classes), config.momentum, n_seen + i + 1)
        for layer, taken, r, _ in passes:
            r *= _per_column(scales, n_classes)
            layer.descend(taken, r, _per_column(decays, n_classes), step)
    # In the order of the parameters before, so that sums over them have the same bits.
    params = top.params() | (below.params() if below else {})
    params = {name: params[name] for name in dict.fromkeys([*before, *params]) if name in params}
    return params, total / n_rows if n_rows else float("nan")


def stack_heads(heads: Sequence[Params]) -> Params:
    """Put heads of the same shapes and names side by side, along their classes.

    The kernel is (n_features, n_heads * n_classes), and so on.

    Examples
    --------
    >>> one, two = ({"bias": np.array(b, "f4")} for b in ([1, 2], [3, 4]))
    >>> stack_heads([one, two])["bias"].tolist()
    [1.0, 2.0, 3.0, 4.0]
    >>> take_head(stack_heads([one, two]), 1, n_heads=2)["bias"].tolist()
    [3.0, 4.0]
    """
    return {name: np.concatenate([head[name] for head in heads], axis=-1) for name in heads[0]}


def take_head(params: Params, index: int, n_heads: int) -> Params:
    """Return one of the heads that `stack_heads` put side by side."""
    return {k: np.ascontiguousarray(_columns(v, index, n_heads)) for k, v in params.items()}


def _columns(value: NDArray[Any], index: int, n_heads: int) -> NDArray[Any]:
    n = value.shape[-1] // n_heads
    return value[..., index * n : (index + 1) * n]


def _per_column(values: Sequence[float], n_classes: int) -> float | Array:
    """Return a single head's value, or one for each column of a stack."""
    return values[0] if len(values) == 1 else np.repeat(np.array(values, np.float32), n_classes)


def _clip(
    passes: Sequence[tuple[_Layer, Array, Array, Array]],
    index: int,
    l2s: Sequence[float],
    clip_norm: float,
) -> float:
    """Return the factor that brings a head's gradient to the largest norm allowed."""
    norms = []
    for layer, taken, residual, outputs in passes:
        kernel, residual, logits = (
            _columns(value, index, len(l2s))
            for value in (layer.kernel, residual, outputs - layer.bias)
        )
        norms.append(gradient_norm(kernel, taken, residual, logits, l2s[index]))
    norm = math.hypot(*norms)
    return min(1.0, clip_norm / norm) if norm else 1.0


def gradient_norm(
    kernel: NDArray[Any],
    features: NDArray[Any],
    residual: NDArray[Any],
    logits: NDArray[Any],
    l2: float,
) -> float:
    r"""Return the norm of the gradient of a layer, :math:`x^T r + \lambda W` and :math:`1^T r`.

    It is found without the gradient: :math:`\|x^T r\|^2` is the sum of :math:`x x^T \circ r r^T`,
    and :math:`\langle x^T r, W \rangle` that of :math:`r \circ x W`.

    Parameters
    ----------
    residual : (n, n_classes) float
        Its rows add up to 0, or it is one of `hidden.residuals`.
    logits : (n, n_classes) float
        Features times kernel. Where the residual's rows add up to 0, a constant may be added to a
        row of them; where the residual is 0, they do not matter.
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
    """Set a share of the inputs to zero, and scale the others up so that the mean stays."""
    x *= np.random.default_rng(seed).random(x.shape, np.float32) >= rate
    x *= np.float32(1 / (1 - rate))
