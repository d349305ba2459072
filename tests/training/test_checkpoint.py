from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from helpers import COLOURS, CUT, THREADS, MakeStore, Run, draw, wait_until

from dtl import storage
from dtl.config import TrainConfig
from dtl.config.errors import UserError
from dtl.features.store import FeatureStore
from dtl.head.model import Head
from dtl.head.schedules import Plan
from dtl.images.values import TRAIN, VALIDATION
from dtl.pipeline.results import Results
from dtl.training import checkpoint, rounds, trainer
from dtl.training.checkpoint import Checkpoint, Keeper
from dtl.training.spec import TrainingSpec
from dtl.training.values import Round

CONFIG = TrainConfig(n_shards=4, epochs=6.0, batch_size=16, averaging_frequency=2)
HIDDEN = replace(CONFIG, hidden_units=12)


@pytest.fixture(autouse=True)
def frequent_validations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "validate_every", 2)


def made(n_rounds: int = 3) -> Checkpoint:
    history = tuple(
        Round(r, r / 2, 1 / r, (0.1, float("nan")), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
        for r in range(1, n_rounds + 1)
    )
    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.normal(size=(4, 3)).astype(np.float32),
        "bias": rng.normal(size=3).astype(np.float32),
        "state/of.an optimizer": np.array(7, np.float32),
    }
    return Checkpoint(params, {"bias": params["bias"]}, history, 1.5, {"train": {"l2": 0.1}})


def keep_all(url: str, monkeypatch: pytest.MonkeyPatch) -> dict[int, bytes]:
    """The bytes of every checkpoint that is written, by round."""
    kept: dict[int, bytes] = {}
    write = storage.write_bytes

    def written(where: str, data: bytes) -> None:
        if where == url:
            kept[len(Checkpoint.from_bytes(data).history)] = data
        write(where, data)

    monkeypatch.setattr(checkpoint.storage, "write_bytes", written)
    monkeypatch.setattr(rounds, "CHECKPOINT_EVERY", 3)
    return kept


def untimed(history: list[Round]) -> str:
    return repr([replace(done, step_s=0.0, average_s=0.0, wait_s=0.0) for done in history])


def test_bytes_hold_all_of_it() -> None:
    before = made()
    after = Checkpoint.from_bytes(before.to_bytes())
    for old, new in ((before.params, after.params), (before.best, after.best)):
        assert list(new) == list(old)
        for name, value in old.items():
            assert new[name].dtype == value.dtype
            assert new[name].shape == value.shape
            assert (new[name] == value).all()
    assert repr(after.history) == repr(before.history)
    assert (after.seconds, after.provenance) == (before.seconds, before.provenance)


def test_damaged_bytes_are_told() -> None:
    whole = made().to_bytes()
    for damaged in (b"", b"no archive", whole[:100], whole[:-1], whole[len(whole) // 2 :]):
        with pytest.raises(ValueError, match="Not a checkpoint that dtl wrote"):
            Checkpoint.from_bytes(damaged)
    expected = made().params["kernel"]
    for at in range(0, len(whole), 7):  # a byte of the disk that went wrong
        flipped = whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]
        try:
            found = Checkpoint.from_bytes(flipped)
        except ValueError:
            continue
        # A byte that means nothing, such as of the archive's dates.
        assert (found.params["kernel"] == expected).all()


@pytest.mark.parametrize("n_units", [0, 8])
def test_resumed_from_any_checkpoint_ends_with_the_same_bits(
    make_store: MakeStore, threads: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    n_units: int,
) -> None:  # fmt: skip
    store, url = make_store(), str(tmp_path / "checkpoint.npz")
    config = replace(
        CONFIG, keep="best", stop_on="validation_accuracy", patience=100, hidden_units=n_units,
    )  # fmt: skip
    plain = trainer.train(TrainingSpec(store, config, "fc2", 3), threads)
    n_rounds = len(plain.history)
    with monkeypatch.context() as patched:
        kept = keep_all(url, patched)
        again = trainer.train(TrainingSpec(store, config, "fc2", 3), threads, checkpoint=url)
        assert again.head.to_bytes() == plain.head.to_bytes()
    assert list(kept) == list(range(3, n_rounds, 3))
    for n_done in list(kept)[::3]:
        storage.write_bytes(url, kept[n_done])
        again = trainer.train(TrainingSpec(store, config, "fc2", 3), threads, checkpoint=url)
        assert again.head.to_bytes() == plain.head.to_bytes()
        assert (again.other is None) == (plain.other is None)
        if again.other and plain.other:
            assert again.other.to_bytes() == plain.other.to_bytes()
        assert untimed(again.history) == untimed(plain.history)


def test_a_checkpoint_of_other_settings_is_refused(
    make_store: MakeStore, threads: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, url = make_store(200), str(tmp_path / "checkpoint.npz")
    config = CONFIG
    monkeypatch.setattr(rounds, "CHECKPOINT_EVERY", 4)
    trainer.train(TrainingSpec(store, config, "fc2", 0), threads, checkpoint=url)
    left = storage.read_bytes(url)
    other = replace(config, l2=0.5)
    with pytest.raises(
        ValueError,
        match=r"other settings:\n  train.l2: asked for 0.5, stored 0.01\nGive .* remove that file",
    ):
        trainer.train(TrainingSpec(store, other, "fc2", 0), threads, checkpoint=url)
    assert storage.read_bytes(url) == left
    trained = trainer.train(
        TrainingSpec(store, other, "fc2", 0), threads, checkpoint=url, overwrite=True
    )
    head, history = trained.head, trained.history
    assert history[0].round == 1
    assert (
        head.to_bytes()
        == trainer.train(TrainingSpec(store, other, "fc2", 0), threads).head.to_bytes()
    )
    storage.write_bytes(url, left[:-50])
    for overwrite in (False, True):  # damage is no other setting
        with pytest.raises(UserError, match=r"checkpoint.npz: Not a checkpoint.*Remove it to"):
            trainer.train(
                TrainingSpec(store, config, "fc2", 0), threads, checkpoint=url, overwrite=overwrite
            )


def test_a_checkpoint_that_cannot_be_written_ends_the_training(
    make_store: MakeStore, threads: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "CHECKPOINT_EVERY", 1)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        trainer.train(
            TrainingSpec(make_store(200), CONFIG, "fc2", 0),
            threads,
            checkpoint=str(tmp_path / "file" / "checkpoint.npz"),
        )


def test_diverging_leaves_no_checkpoint(
    make_store: MakeStore, threads: Client, tmp_path: Path
) -> None:
    url = str(tmp_path / "checkpoint.npz")
    # Without momentum the penalty multiplies the kernel by -29 in every step.
    config = replace(
        CONFIG, learning_rate=3.0, l2=10.0, momentum=0.0, averaging_frequency=1, epochs=40.0,
        schedule="constant",
    )  # fmt: skip
    seen: list[int] = []
    save = Keeper.save

    def saved(self: Keeper, params: Any, best: Any, history: list[Round], seconds: float) -> None:
        seen.append(len(history))
        save(self, params, best, history, seconds)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Keeper, "save", saved)
        patched.setattr(rounds, "CHECKPOINT_EVERY", 1)
        with pytest.raises(ValueError, match=r"diverged in round \d+.*Lower `train.learning_rate`"):
            trainer.train(TrainingSpec(make_store(), config, "fc2", 0), threads, checkpoint=url)
    assert len(seen) > 3
    assert not storage.exists(url)


# --- early stopping ------------------------------------------------------------------------------


def scores(store: FeatureStore, head: Head) -> tuple[float, float]:
    """Validation loss and accuracy, by NumPy in float64."""
    chosen = store.read("split") == VALIDATION
    x, y = store.read("fc2")[chosen].astype(np.float64), store.read("label")[chosen]
    logits = (x - head.mean) / head.scale @ head.kernel.astype(np.float64) + head.bias
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(y)), y].mean(), (logits.argmax(axis=1) == y).mean()


def overfitting(make_store: MakeStore) -> tuple[FeatureStore, TrainConfig]:
    store = make_store(n_images=300, n_features=200, distance=0.3)
    return store, replace(CONFIG, l2=0.0, epochs=20.0, schedule="constant")


@pytest.mark.slow
@pytest.mark.parametrize("stop_on", ["validation_loss", "validation_accuracy"])
def test_stops_after_validations_without_a_better_one(
    make_store: MakeStore, threads: Client, stop_on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plan, "validate_every", 1)
    store, config = overfitting(make_store)
    config = replace(config, stop_on=stop_on)
    full = trainer.train(TrainingSpec(store, config, "fc2", 0), threads).history
    values = [getattr(done, stop_on) * (1 if stop_on == "validation_loss" else -1) for done in full]
    best = next(i for i in range(len(values)) if min(values[: i + 6]) == values[i])
    stopping = replace(config, patience=5)
    last = trainer.train(TrainingSpec(store, stopping, "fc2", 0), threads)
    assert len(last.history) == best + 6 < len(full)
    assert untimed(last.history) == untimed(full[: best + 6])
    assert last.other is not None
    assert scores(store, last.other) == pytest.approx(
        (full[best].validation_loss, full[best].validation_accuracy)
    )
    assert scores(store, last.head) == pytest.approx(
        (full[best + 5].validation_loss, full[best + 5].validation_accuracy)
    )
    # However many rounds were on their way when it was known.
    for ahead in (0, 9):
        monkeypatch.setattr(rounds, "ROUNDS_AHEAD", ahead)
        again = trainer.train(TrainingSpec(store, stopping, "fc2", 0), threads)
        assert again.head.to_bytes() == last.head.to_bytes()
        assert again.other is not None
        assert again.other.to_bytes() == last.other.to_bytes()
    kept = trainer.train(TrainingSpec(store, replace(stopping, keep="best"), "fc2", 0), threads)
    assert kept.head.kernel.tobytes() == last.other.kernel.tobytes()
    assert kept.other is not None
    assert kept.other.kernel.tobytes() == last.head.kernel.tobytes()


def test_stopping_needs_validation_images(make_store: MakeStore, threads: Client) -> None:
    store = make_store(200, shares=(0.8, 0.0, 0.2))
    for change in ({"patience": 2}, {"keep": "best"}):
        with pytest.raises(ValueError, match=r"`train\.\w+` = \w+ needs validation images"):
            trainer.train(TrainingSpec(store, replace(CONFIG, **change), "fc2", 0), threads)
    assert trainer.train(TrainingSpec(store, CONFIG, "fc2", 0), threads).other is None


def test_the_exact_solver_has_no_rounds_to_stop(make_store: MakeStore, threads: Client) -> None:
    config = replace(CONFIG, solver="lbfgs", patience=3)
    with pytest.raises(ValueError, match=r"`train\.patience` = 3 is for rounds of averaging"):
        trainer.train(TrainingSpec(make_store(200), config, "fc2", 0), threads)


def test_results_keep_both_heads(
    make_store: MakeStore, threads: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plan, "validate_every", 1)
    store, config = overfitting(make_store)
    trained = trainer.train(TrainingSpec(store, config, "fc2", 0), threads)
    assert trained.other is not None
    results = Results(str(tmp_path / "out"))
    storage.write_bytes(results.checkpoint, b"of rounds before")
    files = []
    for other, keep in ((trained.other, "last"), (trained.other, "best"), (None, "last")):
        results.write_head(trained.head, trained.history, other, keep)
        files.append({path.name for path in (tmp_path / "out").iterdir()})
    always = {"head.npz", "history.parquet"}
    assert files == [always | {"head-best.npz"}, always | {"head-last.npz"}, always]


# --- on from a saved head ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("way", [CONFIG, HIDDEN], ids=["softmax", "hidden"])
def test_starts_from_a_head_as_the_same_function(
    make_store: MakeStore, threads: Client, tmp_path: Path, way: TrainConfig
) -> None:
    store = make_store()
    first = trainer.train(TrainingSpec(store, way, "fc2", 0), threads).head
    storage.write_bytes(str(tmp_path / "out" / "head.npz"), first.to_bytes())
    # Other training rows, so another mean and scale; and steps too small to see.
    split = store.read("split")
    split[np.flatnonzero(split == TRAIN)[::3]] = 2
    store.write_split(split, {"made": "by a test"})
    config = replace(way, learning_rate=1e-9, start_from=str(tmp_path / "out"))
    second = trainer.train(TrainingSpec(store, config, "fc2", 0), threads).head
    assert not np.allclose(second.mean, first.mean, rtol=1e-4)
    x = store.read("fc2")
    assert np.allclose(second.logits(x), first.logits(x), atol=1e-3)
    assert second.provenance["start_sha256"] == storage.sha256(str(tmp_path / "out" / "head.npz"))
    # From the file itself it is the same head.
    file = replace(config, start_from=str(tmp_path / "out" / "head.npz"))
    assert (
        trainer.train(TrainingSpec(store, file, "fc2", 0), threads).head.to_bytes()
        == second.to_bytes()
    )
    further = replace(way, start_from=str(tmp_path / "out"))
    history = trainer.train(TrainingSpec(store, further, "fc2", 0), threads).history
    fresh = trainer.train(TrainingSpec(store, way, "fc2", 0), threads).history
    assert history[0].loss < fresh[0].loss


def made_with(head: Head, **changed: object) -> Head:
    return replace(head, provenance=dict(head.provenance) | changed)


def test_heads_of_something_else_are_no_start(
    make_store: MakeStore, threads: Client, tmp_path: Path
) -> None:
    head = trainer.train(
        TrainingSpec(make_store(200), replace(CONFIG, epochs=1.0), "fc2", 0), threads
    ).head
    url = str(tmp_path / "other.npz")
    config = replace(CONFIG, start_from=url)
    store = make_store(200)
    with pytest.raises(FileNotFoundError, match="No such file"):
        trainer.train(TrainingSpec(store, config, "fc2", 0), threads)
    for other, message in (
        (replace(head, class_names=(*head.class_names[:-1], "cat")), "not in both: cat, class 4"),
        (replace(head, class_names=head.class_names[::-1]), "their order differs"),
        (
            replace(
                head, hidden_kernel=np.zeros((20, 7), "f4"), hidden_bias=np.zeros(7, "f4"),
                kernel=np.zeros((7, 5), "f4"),
            ),
            "hidden units: asked for 0, stored 7",
        ),
        (made_with(head, layer="fc1"), "asked for 'fc2', stored 'fc1'"),
        (made_with(head, features={"made": "elsewhere"}), "stored 'elsewhere'"),
        (made_with(head, split={"made": "otherwise"}), "stored 'otherwise'"),
    ):  # fmt: skip
        storage.write_bytes(url, other.to_bytes())
        with pytest.raises(ValueError, match="cannot be trained further here") as raised:
            trainer.train(TrainingSpec(store, config, "fc2", 0), threads)
        assert message in str(raised.value)
    storage.write_bytes(url, b"no head")
    with pytest.raises(ValueError, match="Not a head that dtl wrote"):
        trainer.train(TrainingSpec(store, config, "fc2", 0), threads)


def test_a_class_that_a_shard_lacks_is_harmless(
    make_store: MakeStore, threads: Client, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store()
    split, label = store.read("split"), store.read("label")
    chunk = np.arange(store.n_images) // store.chunk_images
    split[(label == 2) & (chunk % 4 == 1)] = -1
    store.write_split(split, {"made": "by a test"})
    with caplog.at_level(logging.WARNING, "dtl.training"):
        head = trainer.train(TrainingSpec(store, CONFIG, "fc2", 0), threads).head
    assert not caplog.records
    rows = (split == TRAIN) & (label == 2)
    assert (head.logits(store.read("fc2")[rows]).argmax(axis=1) == 2).mean() > 0.8


def test_a_class_without_training_images_is_told(
    make_store: MakeStore, threads: Client, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store()
    split = store.read("split")
    split[store.read("label") == 2] = -1
    store.write_split(split, {"made": "by a test"})
    with caplog.at_level("WARNING", "dtl.training"):
        trainer.train(TrainingSpec(store, replace(CONFIG, n_shards=1), "fc2", 0), threads)
    assert "1 classes have no training image and will never be predicted: class 2" in caplog.text


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_driver_killed_while_it_trains_goes_on_from_its_checkpoint(
    tmp_path: Path, here: Run
) -> None:
    draw(tmp_path / "pictures", COLOURS, 16)
    out, long = tmp_path / "out", ["--train.epochs", "1200"]
    first = here(
        "featurize", "--images", tmp_path / "pictures", "--out", out, *CUT, *long,
        *THREADS,
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    arguments = ["train", "--out", str(out), *THREADS]
    process = subprocess.Popen(
        [sys.executable, "-m", "dtl.pipeline", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    wait_until((out / "checkpoint.npz").exists, "a checkpoint", timeout_s=300)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "head.npz").exists()

    refused = here(*arguments, "--train.l2", "0.5")
    assert refused.returncode == 1
    assert "train.l2: asked for 0.5, stored 0.01" in refused.stderr
    assert "dashboard" not in refused.stderr
    assert f"{out}/checkpoint.npz was made with other settings" in refused.stderr
    assert "or remove that file to start again" in refused.stderr

    done = here(*arguments, "--train.l2", "0.01")
    assert done.returncode == 0, done.stderr
    assert "training: goes on after round" in done.stderr
    assert not (out / "checkpoint.npz").exists()
    resumed = (out / "head.npz").read_bytes()
    (out / "head.npz").unlink()
    assert here(*arguments).returncode == 0
    assert (out / "head.npz").read_bytes() == resumed

    own = here(*arguments, "--train.start-from", out)
    assert own.returncode == 1
    assert f"the training replaces or removes {out}/head.npz" in own.stderr
