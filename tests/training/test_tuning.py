from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from helpers import MakeStore, a_worker_is_killed, gaussian_store, local_cluster
from scipy.stats import binomtest

from dtl import config, storage
from dtl.cluster import connection
from dtl.config import TrainConfig, TuneConfig
from dtl.config.errors import UserError
from dtl.features.store import FeatureStore
from dtl.images.values import TEST, VALIDATION
from dtl.pipeline import command_line, tables
from dtl.pipeline.results import Results
from dtl.report import page
from dtl.training import trainer, tuning
from dtl.training.spec import TrainingSpec
from dtl.training.values import Rung, Trial, Tuning, from_json, to_json

CONFIG = TrainConfig(epochs=9.0, batch_size=16, n_shards=3)
TUNED = TuneConfig(learning_rates=(1e-5, 1e-3, 0.05, 1e9), l2s=(1e-4, 0.3, 30.0), eta=3)


@pytest.fixture(autouse=True, scope="module")
def early_cuts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "FIRST_EPOCHS", 1.0)
        yield


def few_rows(url: Path) -> FeatureStore:
    """Few rows, many features: a penalty is worth it."""
    return gaussian_store(
        str(url), n_images=600, n_features=60, n_classes=3, distance=0.35, shares=(0.4, 0.5, 0.1)
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return few_rows(tmp_path_factory.mktemp("tuning") / "features.zarr")


@pytest.fixture(scope="module")
def found(store: FeatureStore, threads: Client) -> Tuning:
    return tuning.tune(TrainingSpec(store, CONFIG, "fc2", 0), TUNED, threads)


def options(trial: Trial) -> tuple[float, float, float, int]:
    return trial.learning_rate, trial.l2, trial.dropout, trial.averaging_frequency


def way(trial: Trial, like: TrainConfig = CONFIG) -> TrainConfig:
    return tuning.choose(Tuning((trial,), (), ""), like)


def trained(store: FeatureStore, settings: TrainConfig, client: Client) -> Rung:
    """What the last round of training has."""
    last = trainer.train(TrainingSpec(store, settings, "fc2", 0), client).history[-1]
    return Rung(**{name: getattr(last, name) for name in Rung.__dataclass_fields__})


def assert_close(rung: Rung, expected: Rung) -> None:
    assert rung.epoch == expected.epoch
    assert rung.validation_loss == pytest.approx(expected.validation_loss, rel=1e-4)
    assert rung.train_loss == pytest.approx(expected.train_loss, rel=1e-4)
    assert rung.validation_accuracy == pytest.approx(expected.validation_accuracy, abs=0.01)


# --- the search ----------------------------------------------------------------------------------


def test_finds_the_good_region_and_drops_the_others(found: Tuning) -> None:
    assert found.cuts == (1.0, 3.0, 9.0)
    assert options(found.trials[0]) == (0.05, 0.3, 0.0, 10)
    assert Counter(len(t.rungs) for t in found.trials) == {3: 2, 2: 2, 1: 5, 0: 3}
    assert {options(t)[:2] for t in found.trials[-3:]} == {(1e9, l2) for l2 in TUNED.l2s}
    assert [t.diverged for t in found.trials] == [False] * 9 + [True] * 3
    assert len(set(map(options, found.trials))) == 12
    for n_rungs in (1, 2, 3):
        losses = [t.rungs[-1].validation_loss for t in found.trials if len(t.rungs) == n_rungs]
        assert losses == sorted(losses)
    for trial in found.trials:
        for rung, cut in zip(trial.rungs, found.cuts, strict=False):
            assert cut <= rung.epoch <= cut + 1.5  # a round is more than an epoch here


def test_without_cuts_the_order_is_that_of_training_each_alone(
    store: FeatureStore, threads: Client
) -> None:
    all_to_the_end = replace(TUNED, learning_rates=(1e-3, 0.05), eta=1)
    found = tuning.tune(TrainingSpec(store, CONFIG, "fc2", 0), all_to_the_end, threads)
    alone = {options(t): trained(store, way(t), threads) for t in found.trials}
    assert found.cuts == (9.0,)
    assert list(alone) == sorted(alone, key=lambda o: alone[o].validation_loss)
    for trial in found.trials:
        assert_close(trial.rungs[-1], alone[options(trial)])


@pytest.mark.parametrize(
    "more",
    [
        {"average_optimizer": False, "outer_momentum": 0.5, "class_weights": "balanced"},
        {"optimizer": "adam", "label_smoothing": 0.1, "clip_norm": 0.5, "schedule": "constant"},
        {"averaging_frequency_end": 1, "warmup_epochs": 2.0, "features_in": "store"},
        {"hidden_units": 7, "dropout": 0.2},  # never stacked
    ],
    ids=str,
)
@pytest.mark.parametrize("stacked", [True, False])
def test_who_came_through_has_what_training_with_its_options_gives(
    store: FeatureStore,
    threads: Client,
    monkeypatch: pytest.MonkeyPatch,
    more: dict[str, Any],
    stacked: bool,
) -> None:
    settings = replace(CONFIG, **more)
    if not stacked:
        monkeypatch.setattr(tuning, "_STACKED", 0)
    tuned = replace(TUNED, learning_rates=(0.002, 0.02), l2s=(0.0, 0.3), frequencies=(3, 10))
    found = tuning.tune(TrainingSpec(store, settings, "fc2", 0), tuned, threads)
    winner = found.trials[0]
    assert len(winner.rungs) == len(found.cuts) > 1
    expected = trained(store, way(winner, settings), threads)
    if stacked and not settings.hidden_units:
        assert_close(winner.rungs[-1], expected)
    else:
        assert winner.rungs[-1] == expected


def test_a_search_by_accuracy(store: FeatureStore, threads: Client) -> None:
    settings = replace(CONFIG, stop_on="validation_accuracy", keep="best", patience=1)
    found = tuning.tune(TrainingSpec(store, settings, "fc2", 0), TUNED, threads)
    assert found.metric == "validation_accuracy"
    for n_rungs in (1, 2, 3):
        ended = [t.rungs[-1] for t in found.trials if len(t.rungs) == n_rungs]
        keys = [(-rung.validation_accuracy, rung.validation_loss) for rung in ended]
        assert keys == sorted(keys)
    through = {options(t) for t in found.trials if len(t.rungs) == 3}
    at_two = {options(t): t.rungs[1].validation_accuracy for t in found.trials if t.rungs[1:]}
    assert min(at_two[o] for o in through) >= max(at_two[o] for o in at_two if o not in through)


def test_test_rows_make_no_difference(tmp_path: Path, threads: Client) -> None:
    founds = []
    for name in ("a.zarr", "b.zarr"):
        store = few_rows(tmp_path / name)
        if founds:
            split = store.read("split")
            store.write_split(np.where(split == TEST, -1, split), store.split_fingerprint)
        founds.append(tuning.tune(TrainingSpec(store, CONFIG, "fc2", 0), TUNED, threads))
    assert founds[0] == founds[1]


# --- the same on any workers ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [1, 4])
def test_same_bits_on_any_workers(store: FeatureStore, found: Tuning, n_workers: int) -> None:
    with local_cluster(n_workers) as local, Client(local) as client:
        again = tuning.tune(TrainingSpec(store, CONFIG, "fc2", 0), TUNED, client)
    assert again == found


@pytest.mark.slow
def test_same_bits_when_a_worker_is_killed_on_the_way(
    make_store: MakeStore, threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "FIRST_EPOCHS", 3.0)
    store = make_store(n_images=2000, n_features=200)
    settings = replace(CONFIG, epochs=12.0)
    tuned = TuneConfig(learning_rates=(0.001, 0.01), l2s=(0.001, 0.01), eta=2)
    expected = tuning.tune(TrainingSpec(store, settings, "fc2", 1), tuned, threads)
    with a_worker_is_killed(once="stats") as client:
        found = tuning.tune(TrainingSpec(store, settings, "fc2", 1), tuned, client)
    assert found == expected


# --- on from a cut -------------------------------------------------------------------------------


def interrupt_after(n_cuts: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let a search be interrupted on the way to the cut after so many; where it was to end."""
    reached: list[float] = []
    train = tuning._train

    def trained_or_interrupted(*arguments: Any) -> Any:
        reached.append(arguments[4][1])
        if len(reached) > n_cuts:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(tuning, "_train", trained_or_interrupted)
    return reached


@pytest.mark.parametrize(
    "more", [{}, {"average_optimizer": False, "outer_momentum": 0.5}, {"hidden_units": 7}], ids=str
)
def test_interrupted_after_any_cut_goes_on_to_the_same_bits(
    store: FeatureStore, threads: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    more: dict[str, Any],
) -> None:  # fmt: skip
    settings, url = replace(CONFIG, **more), str(tmp_path / "tune.npz")
    expected = tuning.tune(TrainingSpec(store, settings, "fc2", 0), TUNED, threads)
    for n_cuts, cut in ((1, 3.0), (1, 9.0)):  # interrupted once more, when it has gone on
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):  # noqa: PT012
            reached = interrupt_after(n_cuts, patched)
            tuning.tune(TrainingSpec(store, settings, "fc2", 0), TUNED, threads, checkpoint=url)
        assert reached[-1] == cut
    reached = interrupt_after(99, monkeypatch)
    found = tuning.tune(TrainingSpec(store, settings, "fc2", 0), TUNED, threads, checkpoint=url)
    assert reached == [9.0]
    assert found == expected
    assert to_json(found) == to_json(expected)


def test_a_search_that_cannot_go_on_says_why(
    store: FeatureStore, threads: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "tune.npz")

    def tune(tuned: TuneConfig = TUNED, **more: Any) -> Tuning:
        return tuning.tune(
            TrainingSpec(store, CONFIG, "fc2", 0), tuned, threads, checkpoint=url, **more
        )

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        interrupt_after(1, patched)
        tune()
    left = storage.read_bytes(url)
    other = replace(TUNED, eta=2)
    with pytest.raises(ValueError, match=r"other settings:\n  tune.eta: asked for 2, stored 3"):
        tune(other)
    assert storage.read_bytes(url) == left
    storage.write_bytes(url, left[:-50])
    with pytest.raises(ValueError, match=r"tune.npz: Not a checkpoint .*Remove it to"):
        tune()
    with pytest.raises(UserError, match="Not a checkpoint"):  # damage is no other setting
        tune(overwrite=True)
    storage.write_bytes(url, left)
    assert tune(other, overwrite=True) == tuning.tune(
        TrainingSpec(store, CONFIG, "fc2", 0), other, threads
    )


def test_a_search_that_diverges_later_leaves_no_checkpoint(
    store: FeatureStore, threads: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, judge = str(tmp_path / "tune.npz"), tuning._judge

    def diverge_later(trial: Trial, rung: Rung) -> Trial:
        late = replace(rung, train_loss=np.nan) if trial.rungs else rung
        assert storage.exists(url) == bool(trial.rungs)
        return judge(trial, late)

    monkeypatch.setattr(tuning, "_judge", diverge_later)
    with pytest.raises(ValueError, match="All trials have diverged, the last before epoch 3"):
        tuning.tune(TrainingSpec(store, CONFIG, "fc2", 0), TUNED, threads, checkpoint=url)
    assert not storage.exists(url)


# --- which trials --------------------------------------------------------------------------------


def test_random_trials_lie_between_the_values_and_follow_from_the_seed() -> None:
    tuned = TuneConfig(
        method="random", n_trials=200, learning_rates=(1.0, 0.001, 0.1), l2s=(1e-5, 1e-2),
        dropouts=(0.0, 0.5), frequencies=(1, 10),
    )  # fmt: skip
    ways = tuning.list_trials(CONFIG, tuned, 0)
    assert len(ways) == 200
    for name, low, high in (("learning_rate", 0.001, 1.0), ("l2", 1e-5, 1e-2)):
        values = np.array([getattr(way, name) for way in ways])
        assert low <= values.min() < 1.5 * low
        assert high / 1.5 < values.max() <= high
        middle = np.sqrt(low * high)
        assert 0.4 < (values < middle).mean() < 0.6  # log-uniform
        assert all(float(f"{value:.3g}") == value for value in values)
    for name, expected in (("dropout", {0.0, 0.5}), ("averaging_frequency", {1, 10})):
        assert {getattr(way, name) for way in ways} == expected
    assert tuning.list_trials(CONFIG, tuned, 0) == ways
    assert tuning.list_trials(CONFIG, tuned, 1) != ways
    assert tuning.list_trials(CONFIG, replace(tuned, n_trials=5), 0) == ways[:5]


def test_a_grid_has_every_combination_once() -> None:
    tuned = TuneConfig(learning_rates=(0.1, 0.1, 0.2), l2s=(0.0,), frequencies=(1, 5, 10))
    ways = tuning.list_trials(replace(CONFIG, dropout=0.25), tuned, 0)
    assert [(w.learning_rate, w.averaging_frequency) for w in ways] == [
        (0.1, 1), (0.1, 5), (0.1, 10), (0.2, 1), (0.2, 5), (0.2, 10),
    ]  # fmt: skip
    assert {(w.l2, w.dropout) for w in ways} == {(0.0, 0.25)}


@pytest.mark.parametrize(
    ("epochs", "eta", "first_epochs", "n_trials", "expected"),
    [
        (27.0, 3, 1.0, 100, [1.0, 3.0, 9.0, 27.0]),
        (27.0, 3, 2.0, 100, [3.0, 9.0, 27.0]),
        (27.0, 3, 1.0, 9, [3.0, 9.0, 27.0]),  # 9, 3, and one that goes to the end
        (27.0, 3, 1.0, 2, [9.0, 27.0]),
        (3.0, 3, 4.0, 100, [3.0]),
        (8.0, 2, 0.5, 100, [0.5, 1.0, 2.0, 4.0, 8.0]),
    ],
)
def test_cuts(
    epochs: float, eta: int, first_epochs: float, n_trials: int, expected: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(tuning, "FIRST_EPOCHS", first_epochs)
    assert tuning.list_cuts(epochs, TuneConfig(eta=eta), n_trials) == expected


def test_a_best_value_at_the_edge_is_told(found: Tuning) -> None:
    assert found.hints == ()
    for name, edge, said in (
        ("learning_rate", 1e-5, "least that was tried. A smaller one"),
        ("learning_rate", 1e9, "largest that was tried. A larger one"),
        ("l2", 30.0, "largest that was tried. A larger one"),
    ):
        [hint] = tuning.list_hints(replace(found.trials[0], **{name: edge}), TUNED)
        assert said in hint
        assert f"`tune.{name}s`" in hint
    assert tuning.list_hints(found.trials[0], replace(TUNED, l2s=(0.3,))) == []
    assert tuning.list_hints(replace(found.trials[0], l2=0.0), replace(TUNED, l2s=(0.0, 1.0))) == []


# --- what is refused -----------------------------------------------------------------------------


def test_all_diverge(store: FeatureStore, threads: Client) -> None:
    tuned = replace(TUNED, learning_rates=(1e8, 1e9))
    said = r"All trials have diverged.*Lower `tune.learning_rates` \(now 1e\+08, 1e\+09\)"
    with pytest.raises(ValueError, match=said):
        tuning.tune(TrainingSpec(store, CONFIG, "fc2", 0), tuned, threads)


def test_what_cannot_be_tuned_is_told_before_the_work(tmp_path: Path) -> None:
    store = few_rows(tmp_path / "features.zarr")

    def refused(said: str, settings: TrainConfig = CONFIG, tuned: TuneConfig = TUNED) -> None:
        with pytest.raises(ValueError, match=said):
            tuning.tune(
                TrainingSpec(store, settings, "fc2", 0), tuned, client=None
            )  # asks nothing of it

    refused("nothing to choose from", tuned=replace(TUNED, learning_rates=(0.1,), l2s=(0.1,)))
    refused("options of averaging.*Set `train.solver` = averaging", replace(CONFIG, solver="lbfgs"))
    refused(
        "averaging_frequency_end must be at most train.averaging_frequency = 1",
        replace(CONFIG, averaging_frequency_end=2),
        replace(TUNED, frequencies=(1, 10)),
    )
    refused("`train.n_shards` = 99, but the store has 12 chunks", replace(CONFIG, n_shards=99))
    split = store.read("split")
    store.write_split(np.where(split == VALIDATION, TEST, split), {"made": "by a test"})
    refused("the validation images, and the split has none")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"learning_rates": []}, r"tune\.learning_rates must be numbers, each above 0"),
        ({"learning_rates": [0.1, 0]}, r"tune\.learning_rates must be numbers, each above 0"),
        (
            {"learning_rates": [0.1, float("inf")]},
            r"tune\.learning_rates must be numbers, each above 0",
        ),
        ({"learning_rates": "0.1;1"}, r"tune\.learning_rates must be a list of numbers"),
        ({"learning_rates": [True]}, r"tune\.learning_rates must be a list of numbers"),
        ({"l2s": [-0.1]}, r"tune\.l2s must be numbers, each 0 or more"),
        ({"dropouts": [0.5, 1]}, r"tune\.dropouts must be numbers, each from 0"),
        ({"frequencies": [0]}, r"tune\.frequencies must be numbers, each 1 or more"),
        ({"frequencies": [1.5]}, r"tune\.frequencies must be a list of whole numbers"),
        ({"eta": 0}, r"tune\.eta must be 1 or more"),
        ({"method": "bayes"}, r"tune\.method must be one of grid, random"),
        ({"method": "random", "l2s": [0, 1]}, r"tune\.l2s must be above 0 for tune\.method = ra"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config.build({"tune": table})


# --- what comes of it ----------------------------------------------------------------------------


def test_json_gives_the_same_tuning(found: Tuning) -> None:
    assert from_json(Tuning, to_json(found)) == found


def test_page_has_every_trial_and_fetches_nothing(found: Tuning) -> None:
    html = page.render_tuning(found, "<photographs>")
    assert "&lt;photographs&gt;" in html
    rows = re.findall(r'<tr.*?><th scope="row">\d+</th><td>(.*?)</td><td>(.*?)</td>', html)
    assert rows == [(str(t.learning_rate), str(t.l2)) for t in found.trials]
    assert html.count("diverged</td>") == 3
    laid_out = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    assert not re.search(r'(?:src|href)="(?!data:|#)', laid_out)
    assert page.render_tuning(found, "<photographs>") == html
    table = tables.format_trials(found)
    for trial in found.trials:
        n = found.n_validation
        n_right = round(trial.rungs[-1].validation_accuracy * n) if not trial.diverged else n
        low, high = binomtest(n_right, n).proportion_ci(method="wilson")
        assert trial.diverged or f"{100 * low:.1f} to {100 * high:.1f}\u202f%" in html
        assert trial.diverged or f"{100 * low:.1f}-{high:.1%}" in table
    assert "interval" not in tables.format_trials(replace(found, n_validation=0))
    plots = json.loads(re.search(r'id="plots">(.*?)</script>', html, re.S)[1])
    assert list(plots) == ["rungs", "options"]
    only_one = replace(found, cuts=(9.0,))
    assert 'id="plot-rungs"' not in page.render_tuning(only_one, "<photographs>")


@pytest.mark.slow
def test_command_finds_options_that_train_takes(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    make_store(name="out/features.zarr", n_images=300)
    out = tmp_path / "out"
    metadata = out / "features.zarr" / "zarr.json"  # a report warns of random weights, by network
    metadata.write_text(metadata.read_text().replace('"weights": "random"', '"weights": "made"'))
    settings = config.build({
        "out": str(out), "split": {"method": "random"}, "cluster": {"processes": False},
        "train": {"epochs": 6, "batch_size": 16, "n_shards": 2},
        "tune": {"learning_rates": [1e-4, 0.02], "l2s": [0.01, 1], "eta": 2},
    })  # fmt: skip
    Results(str(out)).write_config(settings)

    def run(*command: str) -> str:
        assert command_line.main([*command, "--out", str(out)]) == 0
        return capsys.readouterr().out

    with monkeypatch.context() as patched:
        interrupt_after(1, patched)
        assert command_line.main(["tune", "--out", str(out)]) == 130
    left = {"config.toml", "features.zarr", "tune.npz"}
    assert {path.name for path in out.iterdir()} - {"timeline.json"} == left
    with monkeypatch.context() as patched:
        patched.setattr(connection, "connect", None)  # it is told before
        assert command_line.main(["tune", "--out", str(out), "--tune.eta", "4"]) == 1
    assert "tune.eta: asked for 4, stored 2" in capsys.readouterr().err
    shown = run("tune")
    assert not (out / "tune.npz").exists()
    interval = r"\d+\.\d-\d+\.\d%"
    row = rf"\n *1 +0\.02 +0\.01 +0 +10 +6 +0\.\d+ +\d+\.\d% +{interval} +\d+\.\d%\n"
    assert re.search(row, shown), shown
    assert "Best: --train.learning-rate 0.02 --train.l2 0.01 --train.dropout 0.0" in shown
    assert "The best learning rate, 0.02, is the largest that was tried." in shown
    assert shown.endswith(f"Page: {out}/tune.html\n")
    assert (out / "tune.html").exists()
    before = (out / "tune.json").read_bytes()
    best = from_json(Tuning, before).trials[0]

    # What it says to do, it has done: the head has the scores of the trial.
    [line] = re.findall(r"Train with it: dtl (train .*)", shown)
    assert command_line.main(line.split()) == 0
    last = Results(str(out)).history()[-1]
    assert last.validation_loss == pytest.approx(best.rungs[-1].validation_loss, rel=1e-4)
    saved = tomllib.loads((out / "config.toml").read_text())
    assert (saved["train"]["learning_rate"], saved["train"]["l2"]) == (0.02, 0.01)
    run("evaluate")
    run("report")
    page = (out / "report.html").read_text()
    assert "Options that were tried" in page
    assert re.search(r'<th scope="row">tune</th>', page)  # the seconds that it took

    capsys.readouterr()
    assert run("tune") == shown  # done before, though training's own options changed
    assert (out / "tune.json").read_bytes() == before
    assert "0.05" in run("tune", "--tune.learning-rates", "0.02,0.05")
    assert (out / "tune.json").read_bytes() != before
    assert not (out / "report.html").exists()


def test_a_report_shows_no_search_on_other_features(found: Tuning, store: FeatureStore) -> None:
    from dtl.pipeline.gather import select_tuning

    made_from = TrainingSpec(store, CONFIG, "fc2", 0).provenance
    assert select_tuning(found, made_from) is found
    assert select_tuning(found, made_from | {"layer": "fc1"}) is None
    assert select_tuning(None, made_from) is None
