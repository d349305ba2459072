"""Scores and mistakes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dtl.config.plain import from_plain
from dtl.images.values import SPLITS

N_MISTAKES = 24
"""Most confident mistakes that an evaluation keeps, and the report shows as pictures."""


@dataclass(frozen=True)
class Mistake:
    """One wrong prediction, and how sure the head was of it."""

    path: str
    split: str
    true: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class SplitScores:
    """How well one split was classified; means are over the classes that it has (macro)."""

    n_images: int
    accuracy: float
    top5: float
    log_loss: float
    """In nats."""
    mean_precision: float
    mean_recall: float
    mean_f1: float
    classes: Mapping[str, Mapping[str, float]]
    """By class name: ``{"n_images", "precision", "recall", "f1"}``."""
    confusion: tuple[tuple[int, int, int], ...]
    """True label, predicted label and n_images of the entries that are not zero, sorted."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of a head on every split, and its most confident mistakes."""

    scores: Mapping[str, SplitScores]
    mistakes: tuple[Mistake, ...]
    class_names: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    # By hand: pydantic's TypeAdapter makes 1.0 of 1, orders splits by name, and takes 80 ms.
    def to_json(self) -> bytes:
        """Return the text of evaluation.json."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """Make an evaluation from the object in evaluation.json; another is a `ValueError`."""
        value: Evaluation = from_plain(cls, values)
        if not value.scores or not value.scores.keys() <= {*SPLITS}:
            raise ValueError(f"it has scores of {[*value.scores]} instead of {[*SPLITS]}")
        for name, scores in value.scores.items():
            _check_counts(name, scores, len(value.class_names))
        return replace(value, scores={k: value.scores[k] for k in SPLITS if k in value.scores})


def _check_counts(name: str, scores: SplitScores, n_classes: int) -> None:
    """Refuse counts that contradict each other: JSON has no checksum."""
    n_images = sum(n for _, _, n in scores.confusion)
    n_right = sum(n for true, predicted, n in scores.confusion if true == predicted)
    if n_images != scores.n_images or abs(n_right / max(n_images, 1) - scores.accuracy) > 1e-9:
        raise ValueError(
            f"{name} has {scores.n_images} images and an accuracy of {scores.accuracy}, but "
            f"{n_right} of {n_images} images are right in its confusion"
        )
    if any(not 0 <= label < n_classes for row in scores.confusion for label in row[:2]):
        raise ValueError(f"{name} has a label in its confusion that no class has")
