"""Learning curve of suggested labels against random ones, on the real photographs: `make bench`.

Over ten random splits: three quarters of the images are unlabelled, of which some are chosen and
get their label, then more, up to 320; a head's optimum on them is scored on the rest.
`DTL_BENCH_RUN` is a run with features of `block5_pool`; without it, they are computed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dtl.checking.suggested import FEW_PER_CLASS
from dtl.checking.suggestion import measure_margin
from dtl.config import TrainConfig
from dtl.features.store import FeatureStore
from dtl.head.fitting import fit_softmax
from dtl.head.scaling import Moments, Scaling, scale_rows
from dtl.neighbours.selection import select_covering

LAYER = "block5_pool"
N_SEEDS = int(os.environ.get("DTL_BENCH_SEEDS", "10"))
BUDGETS = (20, 40, 80, 160, 320)

pytestmark = pytest.mark.timeout(0)

Rows = NDArray[np.intp]
Choose = Callable[[Rows, Rows, int, NDArray[np.float64]], Rows]


@pytest.fixture(scope="module")
def store(real_results: Path) -> FeatureStore:
    return FeatureStore.open(str(real_results / "features.zarr"))


def choose_randomly(seed: int) -> Choose:
    rng = np.random.default_rng(seed)
    return lambda pool, _labelled, n, _logits: rng.permutation(pool)[:n]


def choose_suggested(unit: NDArray[np.float32], n_classes: int, *, margin: bool = True) -> Choose:
    def choose(pool: Rows, labelled: Rows, n: int, logits: NDArray[np.float64]) -> Rows:
        weight = None
        if margin and len(labelled) >= FEW_PER_CLASS * n_classes:
            weight = 1 - measure_margin(logits[pool]).margin
        return pool[select_covering(unit[pool], n, unit[labelled], weight)]

    return choose


def draw_curve(
    choose: Choose, features: NDArray[np.float32], label: NDArray[np.int32], train: Rows, test: Rows
) -> list[float]:
    n_classes = int(label.max()) + 1
    labelled, logits, curve = np.empty(0, np.intp), np.zeros((len(label), n_classes)), []
    for budget in BUDGETS:
        pool = np.setdiff1d(train, labelled)
        labelled = np.r_[labelled, choose(pool, labelled, budget - len(labelled), logits)]
        fitted = Scaling.fit(Moments.of(scale_rows(features[labelled], "sqrt-l2")), "sqrt-l2")
        scaled = fitted.apply(features)
        known = np.unique(label[labelled])  # a head knows no other classes
        of_known = np.searchsorted(known, label[labelled])
        head = fit_softmax(scaled[labelled], of_known, len(known), TrainConfig().l2)
        logits = np.full((len(label), n_classes), -1e9)
        logits[:, known] = scaled @ head["kernel"] + head["bias"]
        curve.append(float((logits[test].argmax(axis=1) == label[test]).mean()))
    return curve


def test_suggested_labels_teach_more_than_random_ones(store: FeatureStore) -> None:
    features, label = store.read(LAYER), store.read("label")
    n_classes = len(store.class_names)
    rows = scale_rows(features, "sqrt-l2")
    curves: dict[str, list[list[float]]] = {"random": [], "coverage": [], "suggested": []}
    for seed in range(N_SEEDS):
        order = np.random.default_rng(seed).permutation(len(label))
        test, train = np.split(order, [len(order) // 4])
        scaling = Scaling.fit(Moments.of(rows[train]), "sqrt-l2")
        unit = scale_rows(scaling.apply(features), "l2")
        ways = {
            "random": choose_randomly(seed), "suggested": choose_suggested(unit, n_classes),
            "coverage": choose_suggested(unit, n_classes, margin=False),
        }  # fmt: skip
        for name, choose in ways.items():
            curves[name].append(draw_curve(choose, features, label, np.sort(train), test))
    print(f"\nlabels      {'  '.join(f'{n:>12}' for n in BUDGETS)}")
    random = np.array(curves["random"])
    for name, found in curves.items():
        gain = np.array(found) - random
        half = 2.262 * gain.std(axis=0, ddof=1) / np.sqrt(N_SEEDS)  # Student's, of ten
        means = zip(np.mean(found, axis=0), gain.mean(axis=0), half, strict=True)
        print(f"{name:12}" + "  ".join(f"{m:.3f} {g:+.3f}±{h:.3f}" for m, g, h in means))
    gain = (np.array(curves["suggested"]) - random).mean(axis=0)
    assert (gain > 0).all()
    assert gain[0] > 0.1
