"""Label errors, from held-out class probabilities.

Two findings make a suspect. Confident learning counts a row for a class if its probability is at
least what rows with that label have on average. As many labels are suspected as rows are counted
for another class than their label's: those of the least probability. Where labels look as if some
were drawn by lot, so is every label that is more likely drawn than right.

All here is pure, and adds up over chunks: first the sums that calibration follows from, then those
that thresholds follow from, then verdicts, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from dtl.head.softmax import log_softmax

NO_CLASS = -1
"""The class of a row that is counted for none."""

_LEAST_THRESHOLD, _CLOSE = 2e-6, 1e-6
"""The least threshold, and by how much less a probability may be: cleanlab's."""

_POWERS = 2.0 ** (np.arange(-16, 17) / 8)
"""Inverse temperatures that are tried."""
_SHARES = np.r_[0.0, 0.001 * 1.25 ** np.arange(28)]
"""Shares of labels drawn by lot that are tried, up to 0.41."""


@dataclass(frozen=True)
class Calibration:
    """Powers that make held-out probabilities fit the labels, the most likely ones.

    Parameters
    ----------
    power : float
        Inverse temperature at which all labels are taken for right.
    true_power, share : float
        Inverse temperature, and share of labels that were drawn by lot among all classes, where
        that is allowed for: wrong labels make probabilities look too sure.

    References
    ----------
    Guo et al. (2017), "On calibration of modern neural networks", section 4.2, for `power`.
    """

    power: float
    true_power: float
    share: float


def sum_likelihoods(
    log_probabilities: NDArray[Any], labels: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """Add up what calibration follows from: log-likelihoods of the labels.

    Parameters
    ----------
    log_probabilities : (n, n_classes) float
    labels : (n,) int

    Returns
    -------
    (n_powers, n_shares) float64
        For each power and each share of labels drawn by lot that are tried.
    """
    n_classes = log_probabilities.shape[1]
    at = np.arange(len(labels))
    total = np.empty((len(_POWERS), len(_SHARES)))
    for k, power in enumerate(_POWERS):
        own = np.exp(raise_to(log_probabilities, power)[at, labels])[:, None]
        total[k] = np.log((1 - _SHARES) * own + _SHARES / n_classes + 1e-300).sum(axis=0)
    return total


def calibrate(likelihoods: NDArray[np.float64]) -> Calibration:
    """Choose the likeliest calibration by the sums of `sum_likelihoods` over all rows.

    Examples
    --------
    >>> log_p = np.log([[0.9, 0.1]] * 10)
    >>> round(calibrate(sum_likelihoods(log_p, np.array([0] * 10))).power, 2)
    4.0
    >>> calibrate(sum_likelihoods(log_p, np.array([0] * 9 + [1]))).power
    1.0
    """
    power, share = np.unravel_index(likelihoods.argmax(), likelihoods.shape)
    plain = likelihoods[:, 0].argmax()
    return Calibration(float(_POWERS[plain]), float(_POWERS[power]), float(_SHARES[share]))


def raise_to(log_probabilities: NDArray[Any], power: float) -> NDArray[np.float64]:
    """Return the logarithms of powers of probabilities (n, n_classes), scaled to sums of 1."""
    raised: NDArray[np.float64] = log_softmax(log_probabilities.astype(np.float64) * power)
    return raised


@dataclass(frozen=True, eq=False)
class ClassSums:
    """Rows of each label, and the sum of their probabilities of it, (n_classes,)."""

    n: NDArray[np.int64]
    own: NDArray[np.float64]


def sum_classes(probabilities: NDArray[Any], labels: NDArray[np.integer[Any]]) -> ClassSums:
    """Add up what the thresholds follow from.

    Parameters
    ----------
    probabilities : (n, n_classes) float
    labels : (n,) int
    """
    n_classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return ClassSums(
        np.bincount(labels, minlength=n_classes).astype(np.int64),
        np.bincount(labels, own, minlength=n_classes).astype(np.float64),
    )


def add_sums(parts: Sequence[ClassSums]) -> ClassSums:
    """Add up the sums of several sets of rows, from the first to the last."""
    total = parts[0]
    for part in parts[1:]:
        total = ClassSums(total.n + part.n, total.own + part.own)
    return total


def find_thresholds(sums: ClassSums) -> NDArray[np.float64]:
    """Return the mean probability of their own class that rows of each label have, (n_classes,).

    It is infinite for a class without rows, so that no row is counted for it.

    Examples
    --------
    >>> p = np.array([[0.9, 0.1, 0.0], [0.7, 0.3, 0.0], [0.2, 0.8, 0.0]])
    >>> find_thresholds(sum_classes(p, np.array([0, 0, 1]))).round(6)
    array([0.8, 0.8, inf])
    """
    means = np.maximum(sums.own / np.maximum(sums.n, 1), _LEAST_THRESHOLD)
    return np.where(sums.n > 0, means, np.inf)


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What held-out probabilities say of labels, by row.

    Parameters
    ----------
    counted : (n,) int32
        Class that the row is counted for, or `NO_CLASS`.
    likeliest : (n,) int32
        Class of the highest probability.
    other : (n,) int32
        Class of the highest probability but for the label's.
    own, best_other : (n,) float32
        Calibrated probabilities of the label's class and of `other`.
    chance : (n,) float32
        Probability that the label was drawn by lot.
    """

    counted: NDArray[np.int32]
    likeliest: NDArray[np.int32]
    other: NDArray[np.int32]
    own: NDArray[np.float32]
    best_other: NDArray[np.float32]
    chance: NDArray[np.float32]


def judge(
    log_probabilities: NDArray[Any],
    labels: NDArray[np.integer[Any]],
    thresholds: NDArray[Any],
    calibration: Calibration,
) -> Verdicts:
    """Judge the labels of rows.

    Parameters
    ----------
    log_probabilities : (n, n_classes) float, of two classes or more
        As they were before `calibration`.
    labels : (n,) int
    thresholds : (n_classes,) float
        Of `find_thresholds`.

    References
    ----------
    Northcutt, Jiang, Chuang (2021), "Confident learning: estimating uncertainty in dataset
    labels", J. Artif. Intell. Res. 70: equation 1.
    """
    at, n_classes = np.arange(len(labels)), log_probabilities.shape[1]
    probabilities = np.exp(raise_to(log_probabilities, calibration.power))
    passed = probabilities >= thresholds - _CLOSE
    likeliest = probabilities.argmax(axis=1)
    n_passed = passed.sum(axis=1)
    counted = np.where(n_passed > 1, likeliest, passed.argmax(axis=1))
    counted[n_passed == 0] = NO_CLASS
    own = probabilities[at, labels]
    probabilities[at, labels] = -1
    other = probabilities.argmax(axis=1)
    share = calibration.share
    true = np.exp(raise_to(log_probabilities, calibration.true_power)[at, labels])
    chance = share / n_classes / ((1 - share) * true + share / n_classes + 1e-300)
    return Verdicts(
        counted.astype(np.int32), likeliest.astype(np.int32), other.astype(np.int32),
        own.astype(np.float32), probabilities[at, other].astype(np.float32),
        chance.astype(np.float32),
    )  # fmt: skip


def count_errors(labels: NDArray[np.integer[Any]], verdicts: Verdicts) -> int:
    """Count the rows that are counted for another class than their label's, and likelier of it.

    References
    ----------
    cleanlab's ``num_label_issues``.
    """
    v = verdicts
    is_other = (v.counted != NO_CLASS) & (v.counted != labels)
    return int((is_other & (v.best_other > v.own + _CLOSE)).sum())


def find_suspects(labels: NDArray[np.integer[Any]], verdicts: Verdicts) -> NDArray[np.bool_]:
    """Return which labels are probably wrong, (n,) bool.

    Parameters
    ----------
    labels : (n,) int
    verdicts : Verdicts
        Of all rows.

    References
    ----------
    Those that confident learning gives are cleanlab's ``find_label_issues(...,
    filter_by="low_self_confidence")``.

    Examples
    --------
    >>> p = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.1, 0.9]])
    >>> labels, plain = np.array([0, 0, 1, 0]), Calibration(1.0, 1.0, 0.0)
    >>> find_suspects(labels, judge(np.log(p), labels, np.array([0.6, 0.8]), plain))
    array([False, False, False,  True])
    """
    suspects: NDArray[np.bool_] = verdicts.chance > 0.5
    suspects[np.argsort(verdicts.own, kind="stable")[: count_errors(labels, verdicts)]] = True
    suspects &= verdicts.likeliest != labels
    return suspects


def join_verdicts(parts: Sequence[Verdicts]) -> Verdicts:
    """Put the verdicts of several sets of rows one after the other."""
    return Verdicts(
        **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Verdicts)}
    )


def estimate_joint(
    labels: NDArray[np.integer[Any]], counted: NDArray[np.integer[Any]], n_classes: int
) -> sparse.csr_array:
    """Estimate how many rows have each label and each true class, (n_classes, n_classes).

    The counts of rows with a label are scaled to the number of all rows with it, and then all to
    the number of rows. Sparse: 10,000 classes have 100 million pairs.

    Parameters
    ----------
    labels : (n,) int
    counted : (n,) int
        Of `Verdicts`.

    References
    ----------
    Northcutt, Jiang, Chuang (2021), equation 3, before it is divided by n.

    Examples
    --------
    >>> estimate_joint(np.array([0, 0, 0, 1]), np.array([0, 1, -1, 1]), 2).toarray()
    array([[1.5, 1.5],
           [0. , 1. ]])
    """
    sure = counted != NO_CLASS
    n_labels = np.bincount(labels, minlength=n_classes)
    ones = np.ones(int(sure.sum()))
    counts = sparse.coo_array((ones, (labels[sure], counted[sure])), (n_classes, n_classes)).tocsr()
    # At least one row of each class is right, as cleanlab has it.
    missing = np.maximum(1 - counts.diagonal(), 0)
    counts = (counts + sparse.diags_array(missing)).tocsr()
    joint = sparse.diags_array(n_labels / counts.sum(axis=1)) @ counts
    return sparse.csr_array(joint * (len(labels) / max(joint.sum(), 1)))
