from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from helpers import MakeStore, local_cluster
from sklearn.neighbors import KNeighborsClassifier

from dtl.config import TrainConfig
from dtl.config.errors import UserError
from dtl.features.store import FeatureStore
from dtl.images.values import NO_SPLIT, SPLITS, TEST, TRAIN, VALIDATION
from dtl.pipeline.results import Results
from dtl.report.probing import render_probe
from dtl.training.probing import HEAD, ProbeOptions, draw_rows, probe, provenance
from dtl.training.spec import TrainingSpec
from dtl.training.values import Probe, Probed, from_json, to_json

FEW = ProbeOptions(
    normalize=("l2",), n_per_class=(1, 4), n_draws=2, neighbours=(1, 5), l2s=(0.1, 1.0)
)


def spec_of(store: FeatureStore) -> TrainingSpec:
    return TrainingSpec(store, TrainConfig(n_shards=2), "fc2", 0)


@pytest.fixture
def store(make_store: MakeStore) -> FeatureStore:
    return make_store(n_images=300, n_features=12, distance=1.0)


def test_all_training_images_and_few_of_them(store: FeatureStore, threads: Client) -> None:
    found = probe(spec_of(store), FEW, threads)
    of = {(r.method, r.n_per_class): r for r in found.results}
    assert of.keys() == {(m, n) for m in (HEAD, "1-NN", "5-NN") for n in (0, 1, 4)}
    assert found.split == "test"
    for (method, n), r in of.items():
        assert 0 <= r.low <= r.accuracy <= r.high
        assert (r.l2 in FEW.l2s) == (method == HEAD)
        assert r.n_draws == (FEW.n_draws if n else 1)
    assert of[HEAD, 1].accuracy < of[HEAD, 4].accuracy < of[HEAD, 0].accuracy
    rows, split, label = store.read("fc2"), store.read_split(), store.read("label")
    x = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    x = x - x[split == TRAIN].mean(axis=0)
    model = KNeighborsClassifier(1, metric="cosine").fit(x[split == TRAIN], label[split == TRAIN])
    expected = model.score(x[split == TEST], label[split == TEST])
    assert of["1-NN", 0].accuracy == pytest.approx(expected)


def test_the_nearest_of_drawn_images(store: FeatureStore, threads: Client) -> None:
    """A draw by hand, with scikit-learn."""
    found = probe(spec_of(store), FEW, threads)
    label, split, x = store.read("label"), store.read_split(), store.read("fc2")
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    scores = []
    for draw in range(FEW.n_draws):
        drawn, _ = draw_rows(label, split == TRAIN, 4, [0, draw])
        assert np.bincount(label[drawn]).tolist() == [4] * 5
        assert (split[drawn] == TRAIN).all()
        centred = x - x[drawn].mean(axis=0)
        model = KNeighborsClassifier(1, metric="cosine").fit(centred[drawn], label[drawn])
        scores.append(model.score(centred[split == TEST], label[split == TEST]))
    [r] = [r for r in found.results if (r.method, r.n_per_class) == ("1-NN", 4)]
    assert r.accuracy == pytest.approx(np.mean(scores))
    assert r.high - r.accuracy == pytest.approx(np.std(scores, ddof=1))


def test_the_same_on_one_worker_and_on_four(store: FeatureStore) -> None:
    made = []
    for n_workers in (1, 4):
        with local_cluster(n_workers=n_workers) as cluster, Client(cluster) as client:
            made.append(to_json(probe(spec_of(store), FEW, client)))
    assert made[0] == made[1]
    again = from_json(Probe, made[0])
    assert to_json(again) == made[0]
    assert again.provenance == provenance(spec_of(store), FEW)


def test_without_test_images_validation_images_are_scored(
    store: FeatureStore, threads: Client
) -> None:
    split = store.read_split()
    store.write_split(np.where(split == TEST, NO_SPLIT, split), {"made": "without test"})
    found = probe(spec_of(store), FEW, threads)
    assert found.split == SPLITS[VALIDATION]
    assert {r.l2 for r in found.results if r.method == HEAD} == {FEW.l2s[0]}  # nothing to choose by
    store.write_split(np.where(split == TRAIN, TRAIN, NO_SPLIT), {"made": "without both"})
    with pytest.raises(UserError, match=r"Received: \d+ and 0\. Set `split\.test`"):
        probe(spec_of(store), FEW, threads)


def test_draws_hold_smaller_ones_and_take_what_there_is() -> None:
    label = np.repeat([0, 1, 2], [9, 2, 5])
    rows = np.ones(16, bool)
    drawn, rank = draw_rows(label, rows, 4, [7])
    fewer, _ = draw_rows(label, rows, 2, [7])
    assert np.bincount(label[drawn]).tolist() == [4, 2, 4]
    np.testing.assert_array_equal(drawn[rank < 2], fewer)
    others, _ = draw_rows(label, rows, 2, [8])
    assert fewer.tolist() != others.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": ("zscore",)}, "No such scaling: zscore"),
        ({"n_per_class": (0,)}, "Expected numbers from 1 on"),
        ({"neighbours": (-1,)}, "Expected numbers from 1 on"),
        ({"n_draws": 1}, "at least 2 draws"),
        ({"l2s": ()}, "at least one scaling"),
    ],
)
def test_options_that_cannot_be_probed(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ProbeOptions(**options)


def test_a_probe_and_its_page_are_stored_and_outdated_together(tmp_path: Path) -> None:
    made_from = {"features": {}, "split": {}, "probe": {"l2s": [0.1, 1.0], "neighbours": [5]}}
    found = Probe((*_made_up("l2"), *_made_up("sqrt-l2")), "test", made_from)
    html = render_probe(found, "a <title>")
    assert "a &lt;title&gt;" in html
    assert html.count("fc2, sqrt-l2</span>") == 3  # the key, and two rows
    results = Results(str(tmp_path))
    results.write_probe(found, html)
    assert results.probe() == found
    results.remove_outdated()
    assert results.probe() is None
    assert not (tmp_path / "probe.html").exists()


def _made_up(normalize: str) -> list[Probed]:
    return [
        Probed("fc2", normalize, method, n, 0.5 + n / 100, 0.45, 0.7, 0.1, 3 if n else 1)
        for method in (HEAD, "5-NN")
        for n in (0, 1, 5)
    ]
