"""What a head said of images that it was not trained on: thresholds follow from it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

_TYPES = {"label": np.int32, "above": np.float64, "confidence": np.float64}


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Probabilities of validation images, as far as sets and answers need them.

    Parameters
    ----------
    label : (n,) int32
        The right class.
    above : (n,) float64
        Probability of all classes that are likelier than the right one; 0 where that is likeliest.
    confidence : (n,) float64
        Probability of the likeliest class.
    """

    label: NDArray[np.int32]
    above: NDArray[np.float64]
    confidence: NDArray[np.float64]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the likeliest class (n,) is the right one."""
        right: NDArray[np.bool_] = self.above == 0
        return right

    def __len__(self) -> int:
        return len(self.label)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return its arrays by the names that they have in a file."""
        return {f"held_out_{field.name}": getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[np.generic]], n_classes: int) -> HeldOut | None:
        """Read what `to_arrays` named; None where nothing is.

        Raises
        ------
        ValueError
            If some of it is missing, or not what `to_arrays` returns.
        """
        found = {name: arrays.get(f"held_out_{name}") for name in _TYPES}
        if all(array is None for array in found.values()):
            return None
        for name, array in found.items():
            if array is None or array.ndim != 1 or array.dtype != _TYPES[name]:
                raise ValueError(f"its held_out_{name} is no list of {np.dtype(_TYPES[name])}")
        value = cls(**found)  # type: ignore[arg-type]
        if not len(value.label) == len(value.above) == len(value.confidence) > 0:
            raise ValueError("its held_out arrays have other lengths than each other, or none")
        if not ((value.label >= 0) & (value.label < n_classes)).all():
            raise ValueError(f"its held_out_label has labels that {n_classes} classes do not have")
        for name in ("above", "confidence"):
            share = getattr(value, name)
            if not ((share >= 0) & (share <= 1 + 1e-9)).all():  # sums of many probabilities
                raise ValueError(f"its held_out_{name} holds numbers that are no probabilities")
        return value
