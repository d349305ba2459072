"""Temperatures are scikit-learn's, and bins its calibration curve's; intervals hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from dtl.evaluation import calibration
from dtl.evaluation.calibration import N_BINS, count, find_temperature, score, slopes
from dtl.head.softmax import log_softmax


def draw(
    n: int, sharpness: float = 1.0, n_classes: int = 6, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits whose right temperature is `sharpness`, and labels."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, n_classes))
    shares = np.exp(log_softmax(logits)).cumsum(axis=1)
    return sharpness * logits, (shares > rng.random((n, 1))).argmax(axis=1)


def fit(logits: np.ndarray, labels: np.ndarray, times: int = 1) -> float:
    return find_temperature(lambda theta: times * slopes(logits, labels, theta))[0]


def test_slopes_are_the_derivatives() -> None:
    logits, labels = draw(50)

    def loss(theta: float) -> float:
        return float(-log_softmax(np.exp(theta) * logits)[np.arange(50), labels].sum())

    for theta in (-1.0, 0.0, 0.7):
        step, (first, second) = 1e-4, slopes(logits, labels, theta)
        ahead, here, back = (loss(theta + k * step) for k in (1, 0, -1))
        assert first == pytest.approx((ahead - back) / 2 / step, rel=1e-6, abs=1e-5)
        assert second == pytest.approx((ahead - 2 * here + back) / step**2, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_the_temperature_is_scikit_learns(sharpness: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 5))
    y = (x[:, :3] + 1.5 * rng.normal(size=(600, 3))).argmax(axis=1)
    model = LogisticRegression().fit(x[:200], y[:200])
    model.coef_, model.intercept_ = sharpness * model.coef_, sharpness * model.intercept_
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="temperature", cv=2)
    theirs.fit(x[200:], y[200:])
    wanted = 1 / theirs.calibrated_classifiers_[0].calibrators[0].beta_
    logits = model.decision_function(x[200:])
    # The prior has no weight against so many copies of the rows.
    assert fit(logits, y[200:], times=100_000) == pytest.approx(wanted, rel=1e-5)
    assert fit(logits, y[200:]) == pytest.approx(wanted, rel=0.02)


def test_the_temperature_undoes_what_logits_were_multiplied_with() -> None:
    for sharpness in (0.2, 1.0, 5.0):
        logits, labels = draw(4000, sharpness)
        temperature, deviation = find_temperature(lambda t: slopes(logits, labels, t))  # noqa: B023
        assert abs(np.log(temperature / sharpness)) < 4 * deviation < 0.2


@pytest.mark.parametrize("n", [1, 2, 30, 5000])
def test_rows_without_a_mistake_do_not_make_all_certain(n: int) -> None:
    labels = np.arange(n) % 3
    temperature = fit(4 * np.eye(3)[labels], labels)
    assert 0.05 < temperature < 1


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((5, 3)), np.zeros(5, int)),  # says nothing at any temperature
        (np.full((1, 2), 1e4), np.array([0])),
        (np.array([[1e4, 0.0]] * 3), np.array([1, 1, 1])),  # wrong, and certain
        (np.array([[1e-6, 0.0]] * 3), np.array([0, 0, 0])),
    ],
)
def test_odd_rows_have_a_finite_temperature(logits: np.ndarray, labels: np.ndarray) -> None:
    temperature, deviation = find_temperature(lambda theta: slopes(logits, labels, theta))
    assert 0 < temperature < np.inf
    assert np.isfinite(deviation)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.integers(1, 300), st.integers(2, 6), st.sampled_from([0.3, 1, 5]))
def test_counts_are_scikit_learns(seed: int, n: int, n_classes: int, sharpness: float) -> None:
    logits, labels = draw(n, sharpness, n_classes, seed)
    log_p = log_softmax(logits)
    cuts = sorted(np.random.default_rng(seed).integers(0, n + 1, 2))
    pieces = zip(np.split(log_p, cuts), np.split(labels, cuts), strict=True)
    found = score(calibration.add_counts([count(*piece) for piece in pieces]))
    p = np.exp(log_p)
    right, confidence = p.argmax(axis=1) == labels, p.max(axis=1)
    share, mean = calibration_curve(right, confidence, n_bins=N_BINS)
    n_rows, n_right, means = map(np.array, zip(*found.bins, strict=True))
    np.testing.assert_allclose(n_right / n_rows, share)
    np.testing.assert_allclose(means, mean)
    assert found.error == pytest.approx(float((n_rows * np.abs(share - mean)).sum() / n))
    everything = np.arange(n_classes)
    assert found.log_loss == pytest.approx(log_loss(labels, p, labels=everything), rel=1e-9)
    brier = brier_score_loss(labels, p, labels=everything, scale_by_half=False)
    assert found.brier == pytest.approx(brier)
    for value, interval in (
        (found.error, found.error_interval),
        (found.brier, found.brier_interval),
        (found.log_loss, found.log_loss_interval),
    ):
        assert 0 <= interval[0] <= value <= interval[1]


def test_intervals_hold_the_error_of_many_more_rows() -> None:
    for sharpness in (1.0, 2.0, 4.0):
        logits, labels = draw(60_000, sharpness)
        log_p = log_softmax(logits)
        wanted = score(count(log_p, labels))
        held = np.zeros(3)
        for rows in np.arange(60_000).reshape(100, 600):
            found = score(count(log_p[rows], labels[rows]))
            for k, name in enumerate(("error", "brier", "log_loss")):
                low, high = getattr(found, f"{name}_interval")
                held[k] += low <= getattr(wanted, name) <= high
        assert (held >= 85).all(), held
        if sharpness == 1:
            assert found.error_interval[0] == 0
            assert found.error_by_chance == pytest.approx(wanted.error, abs=0.05)


def test_the_temperature_halves_the_error_of_a_sure_head() -> None:
    logits, labels = draw(4000, sharpness=3)
    temperature = fit(logits[:2000], labels[:2000])
    before, after = (
        score(count(log_softmax(logits[2000:] / t), labels[2000:])).error for t in (1, temperature)
    )
    assert after < before / 4
