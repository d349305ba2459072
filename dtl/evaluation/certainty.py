"""What a head says of how sure it is, sets and answers, and counts of how that turns out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.config.errors import UserError
from dtl.evaluation import calibration, conformal, selective
from dtl.evaluation.values import AnswerScores, SetScores, SplitScores
from dtl.head.held_out import HeldOut
from dtl.head.model import Head
from dtl.head.softmax import log_softmax

COVERAGES = (0.9, 0.95, 0.99)
"""Of the sets that an evaluation measures, as far as there are validation rows enough."""

MAX_ERRORS = (0.05, 0.02, 0.01)
"""Of the answers that an evaluation measures, as far as there are validation rows enough."""


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Where sets and answers end.

    Parameters
    ----------
    sets : (n_classes,) float64, optional
        As `conformal.find_thresholds` has them; None: no sets.
    answers : float, optional
        As `selective.find_threshold` has it; None: all are answered.
    """

    sets: NDArray[np.float64] | None = None
    answers: float | None = None

    @classmethod
    def find(
        cls, head: Head, coverage: float | None = None, max_error: float | None = None
    ) -> Thresholds:
        """Find the thresholds for a coverage, a share of mistakes, or both.

        Raises
        ------
        UserError
            For values out of range, a head without validation rows, or with too few of them.
        """
        sets = answers = None
        if coverage is not None:
            held_out = _get_held_out(head)
            sets = conformal.find_thresholds(
                held_out.above, held_out.label, len(head.class_names), coverage
            )
        if max_error is not None:
            held_out = _get_held_out(head)
            answers = selective.find_threshold(held_out.confidence, held_out.right, max_error)
        return cls(sets, answers)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that `apply` gives to predictions."""
        given = {"set": self.sets is not None, "answer": self.answers is not None}
        return tuple(name for name in given if given[name])

    def apply(self, p: NDArray[np.float64], class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Return each row's set, the likeliest class first, and its answer; None: unsure.

        Parameters
        ----------
        p : (n, n_classes) float64
            Probabilities.

        Examples
        --------
        >>> Thresholds(np.array([0.1, 0.7]), 0.8).apply(np.array([[0.6, 0.4]]), ["cat", "dog"])
        [{'set': ['cat', 'dog'], 'answer': None}]
        """
        found: list[dict[str, Any]] = [{} for _ in p]
        if self.sets is not None:
            for row, members in enumerate(conformal.select_sets(p, self.sets)):
                chosen = np.flatnonzero(members)
                order = np.argsort(-p[row, chosen], kind="stable")
                found[row]["set"] = [class_names[k] for k in chosen[order]]
        if self.answers is not None:
            answered = selective.select_answers(p.max(axis=1), self.answers)
            for row, k in enumerate(p.argmax(axis=1)):
                found[row]["answer"] = class_names[k] if answered[row] else None
        return found


def _get_held_out(head: Head) -> HeldOut:
    if head.held_out is None:
        raise UserError(
            "The head was never held against validation images, so it cannot be told how often it "
            "is right. Give some to `split.validation` and train again; a head of an earlier dtl "
            "is trained anew once head.npz is removed, to the same weights."
        )
    return head.held_out


@dataclass(frozen=True, eq=False)
class Counts:
    """Sums over rows; those of several sets of rows add up.

    Parameters
    ----------
    before, after : calibration.Counts
        Without and with the temperature.
    sets : (n, 3) int64
        Rows whose set has the right class, classes in all sets, sets of one class, of each coverage
        that is measured.
    answers : (m, 2) int64
        Answered rows, and wrong ones of them, of each share of mistakes that is measured.
    """

    before: calibration.Counts
    after: calibration.Counts
    sets: NDArray[np.int64]
    answers: NDArray[np.int64]

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.before + other.before, self.after + other.after,
            self.sets + other.sets, self.answers + other.answers,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Measured:
    """The sets and answers that an evaluation of a head measures."""

    temperature: float
    fitted: bool
    sets: tuple[tuple[float, NDArray[np.float64]], ...]
    """Coverage, and thresholds of each class."""
    answers: tuple[tuple[float, float], ...]
    """Share of mistakes, and threshold."""

    @classmethod
    def of(cls, head: Head) -> Measured:
        """Find what can be measured with as many validation rows as the head has."""
        sets, answers = [], []
        if head.held_out is not None:
            for coverage in COVERAGES:
                with contextlib.suppress(UserError):  # too few rows
                    sets.append((coverage, Thresholds.find(head, coverage=coverage).sets))
            for max_error in MAX_ERRORS:
                with contextlib.suppress(UserError):
                    answers.append((max_error, Thresholds.find(head, max_error=max_error).answers))
        fitted = head.held_out is not None
        return cls(head.temperature, fitted, tuple(sets), tuple(answers))  # type: ignore[arg-type]

    def count(self, logits: NDArray[np.float32], labels: NDArray[np.integer[Any]]) -> Counts:
        """Count rows of logits (n, n_classes) whose right classes are `labels` (n,)."""
        wide, rows = logits.astype(np.float64), np.arange(len(labels))
        log_p = log_softmax(wide / self.temperature)
        p = np.exp(log_p)
        right, confidence = p.argmax(axis=1) == labels, p.max(axis=1)
        above = conformal.mass_above(p)
        sets = np.zeros((len(self.sets), 3), np.int64)
        for found, (_, thresholds) in zip(sets, self.sets, strict=True):
            members = above <= thresholds
            sizes = members.sum(axis=1)
            found[:] = members[rows, labels].sum(), sizes.sum(), (sizes == 1).sum()
        answers = np.zeros((len(self.answers), 2), np.int64)
        for found, (_, threshold) in zip(answers, self.answers, strict=True):
            answered = selective.select_answers(confidence, threshold)
            found[:] = answered.sum(), (answered & ~right).sum()
        after = calibration.count(log_p, labels)
        before = calibration.count(log_softmax(wide), labels) if self.fitted else after
        return Counts(before, after, sets, answers)

    def score(self, scores: SplitScores, counts: Counts) -> SplitScores:
        """Return a split's scores with what its counts amount to."""
        reliability = {"before": calibration.score(counts.before)}
        if self.fitted:
            reliability["after"] = calibration.score(counts.after)
        return replace(
            scores,
            reliability=reliability,
            sets=tuple(
                SetScores(coverage, *found)
                for (coverage, _), found in zip(self.sets, counts.sets.tolist(), strict=True)
            ),
            answers=tuple(
                AnswerScores(max_error, *found)
                for (max_error, _), found in zip(self.answers, counts.answers.tolist(), strict=True)
            ),
        )


def add_counts(parts: Sequence[Counts]) -> Counts:
    """Add up the counts of several sets of rows."""
    return sum(parts[1:], start=parts[0])
