from __future__ import annotations

import json
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from helpers import MakeStore, gaussian_store
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dtl import config
from dtl.cluster.spread import count_tree_inputs
from dtl.config import CompareConfig, TrainConfig
from dtl.config.provenance import differences
from dtl.features.store import FeatureStore
from dtl.images.values import TRAIN, VALIDATION
from dtl.pipeline import command_line, tables
from dtl.pipeline.results import Results
from dtl.report import page
from dtl.training import comparison
from dtl.training.spec import TrainingSpec
from dtl.training.values import Comparison, from_json, to_json

# With groups of two shards, bytes do not depend on the threads that the client knows of just then.
CONFIG = TrainConfig(epochs=20.0, batch_size=16, shards_per_task=2)
COMPARED = CompareConfig(frequencies=(1, 5), shards=(1, 4))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    url = str(tmp_path_factory.mktemp("comparison") / "features.zarr")
    return gaussian_store(url, n_images=1500, chunk_images=150, distance=0.5)


@pytest.fixture(scope="module")
def compared(store: FeatureStore, threads: Client) -> Comparison:
    return comparison.compare(TrainingSpec(store, CONFIG, "fc2", 0), COMPARED, threads)


@pytest.mark.slow
def test_every_way_is_compared_with_the_optimum(store: FeatureStore, compared: Comparison) -> None:
    assert [c.name for c in compared.contenders] == [
        "L-BFGS", "SGD, 1 shard", "synchronous SGD, 4 shards", "averaged every 5, 4 shards",
        "scikit-learn",
    ]  # fmt: skip
    optimum, *others = compared.contenders
    split, x, y = (store.read(name) for name in ("split", "fc2", "label"))
    x = x.astype(np.float64)
    l2, n = CONFIG.l2, int((split == TRAIN).sum())
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=1 / (l2 * n), tol=1e-9, max_iter=10_000)
    ).fit(x[split == TRAIN], y[split == TRAIN])
    loss = log_loss(y[split == TRAIN], model.predict_proba(x[split == TRAIN]))
    assert optimum.objective == pytest.approx(loss + l2 / 2 * (model[-1].coef_ ** 2).sum(), 1e-5)
    validation = x[split == VALIDATION], y[split == VALIDATION]
    expected = log_loss(validation[1], model.predict_proba(validation[0]))
    assert optimum.log_loss["validation"] == pytest.approx(expected, 1e-3)
    assert optimum.accuracy["validation"] == pytest.approx(model.score(*validation), abs=0.01)
    for other in others:
        assert -1e-6 < other.objective_gap < 0.05
        assert 0 < other.kernel_distance < 0.5
        assert other.log_loss["validation"] <= 1.01 * optimum.log_loss["validation"]
        assert set(other.accuracy) == {"train", "validation", "test"}
    assert others[-1].objective_gap < 1e-4  # scikit-learn's
    assert others[-1].kernel_distance < 0.02


def test_curves_end_where_the_table_says(compared: Comparison) -> None:
    for contender in compared.contenders[:-1]:
        seconds, objective = zip(*contender.curve, strict=True)
        assert list(seconds) == sorted(seconds)
        assert seconds[-1] == pytest.approx(contender.seconds)
        assert objective[-1] == pytest.approx(contender.objective, rel=1e-5)
        assert objective[0] > objective[-1]


def test_bytes_moved_follow_from_the_tasks(compared: Comparison) -> None:
    moved = {c.name: c.bytes_moved for c in compared.contenders}
    parameters, steps = 20 * 5 + 5, int(np.ceil(1500 / 16))
    # Parameters and momentum go to the tasks and, as they were and as the tasks made them, to the
    # average. Of four shards two tasks have two each. A single shard's rounds have 5 batches.
    one_round = 2 * parameters * 4 * 3
    assert moved["SGD, 1 shard"] % one_round == 0
    assert moved["SGD, 1 shard"] / one_round < 20 * steps / 5 + 1
    four = 2 * parameters * 4 * 5
    assert moved["averaged every 5, 4 shards"] % four == 0
    assert 4 < moved["synchronous SGD, 4 shards"] / moved["averaged every 5, 4 shards"] < 6
    assert 0.5 * 1500 < moved["scikit-learn"] / (20 * 4) < 0.7 * 1500


@pytest.mark.parametrize("other", [{"aggregation_depth": 3}, {"shards_per_task": 1}])
def test_what_bytes_moved_follow_from_is_compared_with_what_was_done(
    make_store: MakeStore, other: dict[str, int]
) -> None:
    store = make_store()
    asked, made = (
        comparison.provenance(TrainingSpec(store, way, "fc2", 0), COMPARED)
        for way in (replace(CONFIG, **other), CONFIG)
    )
    (found,) = differences(asked, made)
    assert f"train.{next(iter(other))}" in found


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 9, 27])
def test_tree_inputs_are_those_of_the_tree(n: int, depth: int) -> None:
    fan_in = next(f for f in (2, 4, 8, 16, 32) if f**depth >= n)
    level, total = n, 0
    first = True
    while level > 1 or first:
        total, level, first = total + level, -(-level // fan_in), False
    assert count_tree_inputs(n, depth) == total


def test_two_classes_have_the_same_optimum(make_store: MakeStore, threads: Client) -> None:
    store = make_store(n_images=600, n_classes=2, distance=0.3)
    few = replace(COMPARED, shards=(1,), frequencies=(5,))
    *_, sklearn = comparison.compare(TrainingSpec(store, CONFIG, "fc2", 0), few, threads).contenders
    assert sklearn.name == "scikit-learn"
    assert abs(sklearn.objective_gap) < 1e-4
    assert sklearn.kernel_distance < 0.02


def test_a_class_without_training_rows(make_store: MakeStore, threads: Client) -> None:
    store = make_store(n_images=600)
    split = store.read("split")
    split[(store.read("label") == 3) & (split == TRAIN)] = -1
    store.write_split(split, {"made": "by a test"})
    few = replace(COMPARED, shards=(1,), frequencies=(5,))
    *_, sklearn = comparison.compare(TrainingSpec(store, CONFIG, "fc2", 0), few, threads).contenders
    assert abs(sklearn.objective_gap) < 2e-3


def test_what_cannot_be_compared_is_told_before_the_work(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(n_images=3000, n_features=800)

    def refused(said: str, compared: CompareConfig = COMPARED, **changes: object) -> None:
        with pytest.raises((ValueError, ImportError), match=said):
            comparison.compare(  # it asks nothing of the client
                TrainingSpec(store, replace(CONFIG, **changes), "fc2", 0), compared, client=None
            )

    refused("`train.hidden_units` = 9 has none. Give 0", hidden_units=9)
    refused(r"train.label_smoothing is for train.solver = averaging", label_smoothing=0.1)
    refused("`train.patience` = 3 is for training alone", patience=3)
    refused(r"`train.n_shards` = 99, but the store has 60 chunks", n_shards=99)
    refused(
        r"would hold \d MiB.*more than `compare.sklearn_mib` = 1", replace(COMPARED, sklearn_mib=1)
    )
    monkeypatch.setitem(sys.modules, "sklearn", None)
    refused("Comparing needs scikit-learn.*set `compare.sklearn_mib` = 0")


def test_scikit_learn_can_be_left_out(make_store: MakeStore, threads: Client) -> None:
    few = replace(COMPARED, shards=(2,), frequencies=(5,), sklearn_mib=0)
    found = comparison.compare(TrainingSpec(make_store(), CONFIG, "fc2", 0), few, threads)
    assert [c.name for c in found.contenders] == ["L-BFGS", "averaged every 5, 2 shards"]


def test_json_gives_the_same_comparison(compared: Comparison) -> None:
    assert from_json(Comparison, to_json(compared)) == compared


def test_page_has_every_way_and_fetches_nothing(compared: Comparison) -> None:
    html = page.render_comparison(compared, "<photographs>")
    assert "&lt;photographs&gt;" in html
    for contender in compared.contenders:
        assert contender.name in html
    laid_out = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    assert not re.search(r'(?:src|href)="(?!data:|#)', laid_out)
    assert page.render_comparison(compared, "<photographs>") == html
    table = tables.format_comparison(compared)
    for split, n in compared.n_images.items():
        n_right = round(compared.contenders[0].accuracy[split] * n)
        low, high = binomtest(n_right, n).proportion_ci(method="wilson")
        assert f"{100 * low:.1f} to {100 * high:.1f}\u202f%" in html
        assert f"{split} {100 * low:.1f}-{high:.1%}" in table
    plots = json.loads(re.search(r'id="plots">(.*?)</script>', html, re.S)[1])
    assert list(plots) == ["gaps"]


@pytest.mark.slow
def test_command_writes_a_table_and_is_not_run_again(
    make_store: MakeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(name="out/features.zarr", n_images=300)
    results = Results(str(tmp_path / "out"))
    settings = config.build({
        "out": str(tmp_path / "out"), "split": {"method": "random"},
        "train": {"epochs": 3, "batch_size": 16}, "compare": {"shards": [1, 3]},
        "cluster": {"processes": False},
    })  # fmt: skip
    results.write_config(settings)
    assert command_line.main(["compare", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"synchronous SGD, 3 shards( +\d+\.\d%){3}", shown)
    assert shown.endswith(f"Page: {tmp_path}/out/compare.html\n")
    assert (tmp_path / "out" / "compare.html").exists()
    before = (tmp_path / "out" / "compare.json").read_bytes()
    assert command_line.main(["compare", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == shown
    assert (tmp_path / "out" / "compare.json").read_bytes() == before
    changed = ["compare", "--out", str(tmp_path / "out"), "--compare.shards", "2"]
    assert command_line.main(changed) == 0
    assert "2 shards" in capsys.readouterr().out
    saved = tomllib.loads((tmp_path / "out" / "config.toml").read_text())
    assert saved["compare"]["shards"] == [1, 3]  # a comparison does not change the run's options
