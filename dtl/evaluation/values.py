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
class Occluded:
    """One picture, and what covering each of its parts does to the class that was predicted.

    Parameters
    ----------
    path, true, predicted
        As `Mistake` has them.
    probability : float
        Of the predicted class, of the whole picture.
    least : float
        The same where covering a part lowers it most.
    drop : tuple of rows of float
        How far covering each of 8 x 8 cells lowers it: the mean of the patches that cover the cell.
    """

    path: str
    true: str
    predicted: str
    probability: float
    least: float
    drop: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Occlusion:
    """The pictures that were looked into."""

    pictures: tuple[Occluded, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reliability:
    """How far probabilities are from what happens; intervals are of 95 %."""

    bins: tuple[tuple[int, int, float], ...]
    """Images, right ones, and mean confidence of each bin that has images, from 0 up."""
    error: float
    """Expected calibration error."""
    error_interval: tuple[float, float]
    error_by_chance: float
    """Its mean on so many images if every probability held."""
    brier: float
    """Mean of the squared distance from the right class's unit vector, from 0 to 2."""
    brier_interval: tuple[float, float]
    log_loss: float
    """In nats."""
    log_loss_interval: tuple[float, float]


@dataclass(frozen=True)
class SetScores:
    """How often sets of classes hold the right one, and how large they are."""

    coverage: float
    """The share of images that was asked for."""
    n_covered: int
    n_members: int
    """Classes in all sets together."""
    n_single: int
    """Sets of one class."""


@dataclass(frozen=True)
class AnswerScores:
    """How many images are answered where so few mistakes are allowed, and how many wrongly."""

    max_error: float
    n_answered: int
    n_wrong: int


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
    reliability: Mapping[str, Reliability] = field(default_factory=dict)
    """Of probabilities ``before`` the temperature and, where one was fitted, ``after``."""
    sets: tuple[SetScores, ...] = ()
    answers: tuple[AnswerScores, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """The scores of a head on every split, and its most confident mistakes."""

    scores: Mapping[str, SplitScores]
    mistakes: tuple[Mistake, ...]
    class_names: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    n_held_out: int = 0
    """Validation images that the temperature and all thresholds are of; 0: there were none."""

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
    if scores.reliability and not {"before"} <= scores.reliability.keys() <= {"before", "after"}:
        raise ValueError(f"{name} has reliabilities of {[*scores.reliability]}")
    for when, found in scores.reliability.items():
        if sum(n for n, _, _ in found.bins) != n_images or any(r > n for n, r, _ in found.bins):
            raise ValueError(f"{name} has other images in the bins {when} than in its confusion")
    counts = [s.n_covered for s in scores.sets] + [a.n_answered for a in scores.answers]
    if any(not 0 <= n <= n_images for n in counts):
        raise ValueError(f"{name} has more images in sets or answers than its {n_images}")
