"""Whether probabilities, sets and answers hold on the real photographs: `make bench`.

Their features cost some minutes; with `DTL_BENCH_RUN`, the folder of a finished run on them, they
are taken from there.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from scipy.stats import betabinom, binom

from dtl.config import SplitConfig, TrainConfig
from dtl.evaluation import calibration, conformal, selective
from dtl.evaluation.calibration import count, find_temperature, score, slopes
from dtl.features import splitting
from dtl.features.store import FeatureStore
from dtl.head.model import Head
from dtl.head.softmax import log_softmax
from dtl.images.values import TEST, TRAIN
from dtl.training import trainer
from dtl.training.spec import TrainingSpec

LAYER = "block5_pool"
SPLIT = SplitConfig(train=0.6, validation=0.15, test=0.25)
SURE = TrainConfig(solver="lbfgs", l2=1e-5)
"""So small a penalty makes a head too sure."""
CONFIGS = {"by default": TrainConfig(), "too sure": SURE}
N_RESPLITS = 200
N_FITTED = 400
SEEDS = range(int(os.environ.get("DTL_BENCH_SEEDS", "10")))

Heads = Callable[[str, int], tuple[FeatureStore, Head]]


@pytest.fixture(scope="module")
def make_head(
    real_results: Path, tmp_path_factory: pytest.TempPathFactory, threads: Client
) -> Heads:
    """Makes heads on the features of the photographs, by name and seed of the split."""
    folder = tmp_path_factory.mktemp("calibration") / "features.zarr"
    shutil.copytree(real_results / "features.zarr", folder)
    store = FeatureStore.open(str(folder))

    @functools.cache
    def train(name: str, seed: int) -> Head:
        return trainer.train(TrainingSpec(store, CONFIGS[name], LAYER, seed), threads).head

    def make(name: str, seed: int) -> tuple[FeatureStore, Head]:
        splitting.split_images(store, SPLIT, seed)  # each time: the store has one split
        return store, train(name, seed)

    return make


def read_rows(store: FeatureStore, head: Head, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return head.logits(store.read(LAYER)[rows]).astype(np.float64), store.read("label")[rows]


def fit(logits: np.ndarray, labels: np.ndarray) -> float:
    return find_temperature(lambda theta: slopes(logits, labels, theta))[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_sets_hold_the_right_class(make_head: Heads, name: str) -> None:
    """200 resplits of the images that were not trained on: 400 for thresholds, 257 to measure."""
    store, head = make_head(name, 0)
    split = store.read_split()
    logits, labels = read_rows(store, head, split > TRAIN)
    n_classes, rng = len(head.class_names), np.random.default_rng(0)
    covered: dict[float, list[int]] = {0.95: [], 0.98: []}
    sizes: dict[float, list[float]] = {c: [] for c in covered}
    random: dict[float, list[tuple[float, float, float]]] = {c: [] for c in covered}
    for _ in range(N_RESPLITS):
        order = rng.permutation(len(labels))
        fitted, new = order[:N_FITTED], order[N_FITTED:]
        temperature = fit(logits[fitted], labels[fitted])
        p = np.exp(log_softmax(logits / temperature))
        above, u = conformal.mass_above(p), rng.random((len(p), 1))
        own = above[np.arange(len(p)), labels]
        for coverage, found in covered.items():
            thresholds = conformal.find_thresholds(own[fitted], labels[fitted], n_classes, coverage)
            sets = conformal.select_sets(p[new], thresholds)
            found.append(int(sets[np.arange(len(new)), labels[new]].sum()))
            sizes[coverage].append(sets.sum(axis=1).mean())
            # The paper's random version, for comparison.
            scores = above + u * p
            rising = np.sort(scores[fitted, labels[fitted]])
            sets = scores[new] <= rising[conformal.rank(N_FITTED, coverage) - 1]
            held = sets[np.arange(len(new)), labels[new]].mean()
            n_members = sets.sum(axis=1)
            random[coverage].append((held, n_members.mean(), (n_members == 0).mean()))
    n_new = len(labels) - N_FITTED
    for coverage, found in covered.items():
        k = conformal.rank(N_FITTED, coverage)
        law = betabinom(n_new, k, N_FITTED + 1 - k)
        low, high = law.ppf([0.025, 0.975])
        n_inside = sum(low <= n <= high for n in found)
        held, size, empty = np.mean(random[coverage], axis=0)
        print(
            f"\n{name}, {coverage:.0%}: held {np.mean(found) / n_new:.2%} on average; "
            f"{n_inside} of {N_RESPLITS} within {low / n_new:.1%} to {high / n_new:.1%}; "
            f"{np.mean(sizes[coverage]):.2f} classes. Random: held {held:.2%}, {size:.2f} classes, "
            f"{empty:.1%} empty"
        )
        assert n_inside >= binom(N_RESPLITS, law.cdf(high) - law.cdf(low - 1)).ppf(0.01)
        assert abs(np.mean(found) - law.mean()) < 4 * law.std() / np.sqrt(N_RESPLITS)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_temperature_takes_the_error_away(make_head: Heads, name: str) -> None:
    """Ten seeded splits; test images of all together, each with its own split's head."""
    before, after, temperatures = [], [], []
    for seed in SEEDS:
        store, head = make_head(name, seed)
        logits, labels = read_rows(store, head, store.read_split() == TEST)
        before.append(count(log_softmax(logits), labels))
        after.append(count(head.log_probabilities(logits), labels))
        temperatures.append(head.temperature)
    one, other = (score(calibration.add_counts(parts)) for parts in (before, after))
    print(
        f"\n{name}: temperature {np.mean(temperatures):.3f} (deviation "
        f"{np.std(temperatures, ddof=1):.3f}); calibration error {one.error:.2%} "
        f"({one.error_interval[0]:.2%} to {one.error_interval[1]:.2%}) before, {other.error:.2%} "
        f"({other.error_interval[0]:.2%} to {other.error_interval[1]:.2%}) after, "
        f"{other.error_by_chance:.2%} by chance; Brier {one.brier:.4f}, {other.brier:.4f}; log "
        f"loss {one.log_loss:.4f}, {other.log_loss:.4f}"
    )
    if name == "too sure":
        assert other.error <= one.error / 2
    assert other.log_loss <= one.log_loss


def test_answers_have_few_mistakes(make_head: Heads) -> None:
    store, head = make_head("by default", 0)
    logits, labels = read_rows(store, head, store.read_split() > TRAIN)
    p = np.exp(head.log_probabilities(logits))
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    rng = np.random.default_rng(0)
    for max_error in (0.05, 0.03, 0.02):
        n_answered, n_wrong, n_none, n_new = 0, 0, 0, 0
        for _ in range(N_RESPLITS):
            order = rng.permutation(len(labels))
            fitted, new = order[:N_FITTED], order[N_FITTED:]
            threshold = selective.find_threshold(confidence[fitted], right[fitted], max_error)
            answered = selective.select_answers(confidence[new], threshold)
            n_answered += int(answered.sum())
            n_wrong += int((answered & ~right[new]).sum())
            n_none += not answered.any()
            n_new += len(new)
        print(
            f"\nat most {max_error:.0%} wrong: {n_answered / n_new:.1%} answered, "
            f"{n_wrong / max(n_answered, 1):.2%} of these wrong; no answer in {n_none} of "
            f"{N_RESPLITS} resplits"
        )
        assert n_wrong <= max_error * n_answered
