"""Trials trained in stacks, against the same trials one after the other: `make bench`.

The two take turns, so that what else the machine does slows both; each counts with its quickest.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from distributed import Client
from helpers import rectified_store

from dtl import config
from dtl.cluster import connection
from dtl.config import TrainConfig, TuneConfig
from dtl.features.store import FeatureStore
from dtl.training import tuning
from dtl.training.spec import TrainingSpec

TURNS = 3
EIGHT = TuneConfig(learning_rates=(0.005, 0.01, 0.02, 0.04), l2s=(0.001, 0.01), eta=1)


def seconds(store: FeatureStore, epochs: float, client: Client) -> float:
    started = time.perf_counter()
    tuning.tune(TrainingSpec(store, TrainConfig(epochs=epochs), "fc2", 0), EIGHT, client)
    return time.perf_counter() - started


@pytest.mark.parametrize(
    ("n_features", "n_classes", "epochs", "heads", "expected"),
    [(512, 19, 40.0, 8, 1.5), (4096, 19, 20.0, 8, 1.2), (4096, 257, 2.0, 2, 0.0)],
)
def test_stacks_of_narrow_heads_are_faster(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    n_features: int,
    n_classes: int,
    epochs: float,
    heads: int,
    expected: float,
) -> None:
    """Of wide heads they are not, which is why none are made of them: here it is forced."""
    store = rectified_store(str(tmp_path / "features.zarr"), 2048, n_features, n_classes)
    limits = {"stacked": heads * n_features * n_classes, "alone": 0}
    best = dict.fromkeys(limits, float("inf"))
    made = max(1, tuning._STACKED // (n_features * n_classes))
    with connection.connect(config.build({"cluster": {"n_workers": 1}}).cluster) as client:
        load_s = seconds(store, 1e-6, client)  # one step
        for _ in range(TURNS):
            for way, limit in limits.items():
                monkeypatch.setattr(tuning, "_STACKED", limit)
                best[way] = min(best[way], seconds(store, epochs, client) - load_s)
    ratio = best["alone"] / best["stacked"]
    print(
        f"\n8 trials of {n_features} x {n_classes}, {os.cpu_count()} processors: "
        f"{best['alone']:.1f} s alone, {best['stacked']:.1f} s in stacks of {heads}: "
        f"{ratio:.2f} times as fast; as many as {made} would be stacked"
    )
    assert ratio >= expected
    assert (made >= heads) == (expected > 1)
