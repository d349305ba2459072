"""The head: weights, scaling of features, class names, and the file that holds them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.config.plain import from_plain
from dtl.head import hidden
from dtl.head.held_out import HeldOut
from dtl.head.npz import from_npz, reading, to_npz
from dtl.head.scaling import NORMALISATIONS, Scaling
from dtl.head.softmax import log_softmax

WEIGHTS = ("hidden_kernel", "hidden_bias", "kernel", "bias")
"""Weights of a head, from the features on; the first two where it has a hidden layer."""

KERNELS = ("hidden_kernel", "kernel")
"""Weights that the penalty is on, and whose changes and distances are measured."""

TEMPERATURES = (1e-3, 1e3)
"""The least temperature that a head may have, and the largest."""


@dataclass(frozen=True, eq=False)
class Head:
    """A softmax layer on scaled features, or on hidden units of them.

    ``logits = (rows - mean) / scale @ kernel + bias``, or ``units @ kernel + bias`` with
    ``units = max(0, (rows - mean) / scale @ hidden_kernel + hidden_bias)``. Rows are features, or
    with `normalize` what `scaling.scale_rows` makes of them. Probabilities are those of
    ``logits / temperature``.

    Parameters
    ----------
    kernel : (n_features or n_units, n_classes) float32
    bias : (n_classes,) float32
    mean, scale : (n_features,) float32
        Of the training rows, as `scaling.Scaling` has them.
    provenance : dict
        What it was trained on and how, as JSON's types.
    hidden_kernel, hidden_bias : (n_features, n_units) and (n_units,) float32, optional
    normalize : str
        One of `scaling.NORMALISATIONS`.
    temperature : float
        Above 1 where the logits alone would be too sure; 1 where it was not fitted.
    held_out : HeldOut, optional
        Of validation images; None where there were none.

    References
    ----------
    Guo, Pleiss, Sun, Weinberger (2017), "On calibration of modern neural networks", section 4.2.
    """

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    class_names: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    hidden_kernel: NDArray[np.float32] | None = None
    hidden_bias: NDArray[np.float32] | None = None
    normalize: str = NORMALISATIONS[0]
    temperature: float = 1.0
    held_out: HeldOut | None = None

    @property
    def scaling(self) -> Scaling:
        """The scaling of the features that its first layer takes."""
        return Scaling(self.normalize, self.mean, self.scale)

    @property
    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The weights that it has, by name, in the order of `WEIGHTS`."""
        found = {name: getattr(self, name) for name in WEIGHTS}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def layers(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Kernel and bias of each layer, from the features on."""
        weights = list(self.weights.values())
        return list(zip(weights[::2], weights[1::2], strict=True))

    @property
    def n_units(self) -> int:
        """Hidden units; 0 without a hidden layer."""
        return 0 if self.hidden_bias is None else len(self.hidden_bias)

    def logits(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Return scores (n, n_classes) of features (n, n_features) as they are stored.

        They are not divided by the temperature.
        """
        logits: NDArray[np.float32]
        logits = hidden.logits(self.weights, self.scaling.apply(features))
        return logits

    def log_probabilities(self, logits: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return logarithms of the probabilities (n, n_classes) that its logits amount to."""
        found: NDArray[np.float64] = log_softmax(logits.astype(np.float64) / self.temperature)
        return found

    def folded(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Return kernel and bias of each layer, of which the first takes rows as they are.

        They are rows of features, scaled as `normalize` says, without mean and scale. The last
        layer's logits are divided by the temperature.

        Examples
        --------
        >>> one = np.ones(1, "f4")
        >>> Head(kernel=np.full((1, 1), 6, "f4"), bias=one, mean=3 * one, scale=2 * one,
        ...      class_names=("a",)).folded()
        [(array([[3.]], dtype=float32), array([-8.], dtype=float32))]
        """
        (kernel, bias), *others = self.layers
        wide: NDArray[np.float64] = kernel.astype(np.float64) / self.scale[:, None]
        shifted = bias - self.mean.astype(np.float64) @ wide
        layers: list[tuple[NDArray[Any], NDArray[Any]]] = [(wide, shifted), *others]
        kernel64, bias64 = layers.pop()
        layers.append((kernel64 / np.float64(self.temperature), bias64 / self.temperature))
        return [(k.astype(np.float32), b.astype(np.float32)) for k, b in layers]

    def to_bytes(self) -> bytes:
        """Return the bytes of an .npz file, without pickles; the same head gives the same bytes."""
        arrays: dict[str, Any] = self.weights | {"mean": self.mean, "scale": self.scale}
        meta: dict[str, Any] = {"class_names": self.class_names, "provenance": self.provenance}
        if self.normalize != NORMALISATIONS[0]:  # a head from before it was has the same bytes
            meta["normalize"] = self.normalize
        if self.temperature != 1:
            meta["temperature"] = self.temperature
        if self.held_out is not None:
            arrays |= self.held_out.to_arrays()
        return to_npz(arrays, meta)

    @classmethod
    def from_bytes(cls, data: bytes) -> Head:
        """Read what `to_bytes` wrote; other or damaged bytes are a `UserError`.

        So are arrays that do not fit each other, and numbers that no training ends with.
        """
        with reading("head"):
            found, meta = from_npz(data)
            arrays = {name: found[name] for name in (*WEIGHTS, "mean", "scale") if name in found}
            if lost := [n for n in ("kernel", "bias", "mean", "scale") if n not in arrays]:
                raise ValueError(f"it has no {lost[0]}")
            names, provenance = meta["class_names"], meta["provenance"]
            if not isinstance(provenance, dict):
                raise ValueError("its provenance is no JSON object")
            if not isinstance(names, list) or {*map(type, names)} != {str}:
                raise ValueError("its class_names are no texts")
            normalize = meta.get("normalize", NORMALISATIONS[0])
            if normalize not in NORMALISATIONS:
                raise ValueError(
                    f"its normalize is {normalize!r}, none of {', '.join(NORMALISATIONS)}"
                )
            head = cls(
                **arrays, class_names=tuple(names), provenance=provenance, normalize=normalize,
                temperature=from_plain(float, meta.get("temperature", 1.0), "its temperature"),
                held_out=HeldOut.from_arrays(found, len(names)),
            )  # fmt: skip
            head._check()
            return head

    def _check(self) -> None:
        """Refuse arrays of which one does not fit another, or has numbers that cannot be."""
        n_features, n_classes = self.mean.size, len(self.class_names)
        shapes: dict[str, tuple[int, ...]] = {"mean": (n_features,), "scale": (n_features,)}
        if (self.hidden_kernel is None) != (self.hidden_bias is None):
            raise ValueError("it has half of a hidden layer")
        n_inputs = n_features
        if self.hidden_bias is not None:
            n_inputs = self.hidden_bias.size
            shapes |= {"hidden_bias": (n_inputs,), "hidden_kernel": (n_features, n_inputs)}
        shapes |= {"kernel": (n_inputs, n_classes), "bias": (n_classes,)}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError(
                    f"its {name} is of shape {array.shape} and {array.dtype}; with {n_features} "
                    f"features and {n_classes} classes it would be of {shape} and float32"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"its {name} holds NaN or an infinite number")
        if not (self.scale > 0).all():
            raise ValueError("its scale, by which features are divided, is not above 0")
        low, high = TEMPERATURES
        if not low <= self.temperature <= high:
            raise ValueError(
                f"its temperature is {self.temperature}, and not from {low:g} to {high:g}"
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its numbers, class names and provenance."""
        return hashlib.sha256(self.to_bytes()).hexdigest()
