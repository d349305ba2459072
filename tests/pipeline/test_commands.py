from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pyarrow.parquet as pq
import pytest
from distributed.scheduler import KilledWorker
from helpers import (
    COLOURS,
    CUT,
    THREADS,
    MakeStore,
    Run,
    command,
    contents,
    draw,
    in_session,
    jpeg,
    wait_until,
)

from dtl import config, storage
from dtl.cluster import connection
from dtl.cluster.yarn import capacity, submission
from dtl.features import splitting
from dtl.images import drawing
from dtl.pipeline import command_line, commands, stages
from dtl.pipeline.arguments import parse_arguments
from dtl.pipeline.results import Results
from dtl.pipeline.run import read_options
from dtl.storage import lock


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Pictures, the results of a whole run on them, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    draw(folder / "pictures", COLOURS, 16)
    (folder / "pictures" / "red" / "RENAME2").write_text("2 4 6")
    (folder / "pictures" / "grey").mkdir()
    (folder / "pictures" / "grey" / "1").write_bytes(b"\0\0\0\x14ftypheic\0\0\0\0mif1")
    (folder / "pictures" / "red" / "copy.jpg").write_bytes(
        (folder / "pictures" / "red" / "0.jpg").read_bytes()
    )
    out = folder / "out"
    done = command("run", "--images", folder / "pictures", "--out", out, *CUT)
    assert done.returncode == 0, done.stderr
    return folder / "pictures", out, done.stdout + done.stderr


def test_a_run_ends_with_scores_and_a_report(run: tuple[Path, Path, str]) -> None:
    _, out, printed = run
    files = {path.name for path in out.iterdir()}
    assert files == {
        "config.toml", "features.zarr", "head.npz", "history.parquet", "evaluation.json",
        "novelty.npz", "timings.json", "timeline.json", "report.html",
    }  # fmt: skip
    scores = json.loads((out / "evaluation.json").read_text())["scores"]
    for name in ("train", "validation", "test"):
        assert f"{scores[name]['accuracy']:.1%}" in printed
    assert scores["test"]["accuracy"] > 0.9  # plain colours
    assert f"Report: {out}/report.html" in printed
    assert "Dask dashboard" in printed
    assert "49 images of 3 classes" in printed
    assert "2 other files left out:\n  1 HEIC, which is not read: " in printed
    assert "Folders without an image are no classes: grey (HEIC, " in printed
    assert "1 images repeat another's bytes (0 of them in another class)" in printed
    assert "was not trained" in printed  # the network
    report = (out / "report.html").read_text()
    assert "was not trained" in report
    assert "RENAME2" in report
    assert "Folders without an image are no classes: grey (HEIC, " in report


def test_a_finished_command_starts_nothing_and_changes_nothing(
    run: tuple[Path, Path, str], here: Run
) -> None:
    pictures, out, _ = run
    before = contents(out)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dtl.pipeline", "run", "--images", pictures,
         "--out", out, *CUT],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert contents(out) == before
    assert "dashboard" not in (done.stdout + done.stderr)
    imported = set(re.findall(r"\| +([a-z][\w.]*)", done.stderr))
    heavy = {"bokeh", "distributed", "keras", "pandas", "scipy", "skein", "sklearn", "tensorflow"}
    assert not imported & heavy
    for stage in ("features", "training", "evaluation", "report"):
        assert f"{stage}: done before" in done.stderr


def test_the_saved_configuration_is_the_run(run: tuple[Path, Path, str], here: Run) -> None:
    pictures, out, _ = run
    settings = config.build(Results(str(out)).config())
    assert settings.features.layers == ("block1_pool",)
    assert settings.images.url == str(pictures)
    done = here("run", "--config", out / "config.toml")
    assert "report: done before" in done.stderr


@pytest.mark.slow
def test_stages_one_by_one_make_the_same_bits(
    run: tuple[Path, Path, str], tmp_path: Path, here: Run
) -> None:
    pictures, out, _ = run
    done = here("featurize", "--images", pictures, "--out", tmp_path, *CUT, *THREADS)
    assert done.returncode == 0, done.stderr
    for stage in ("train", "evaluate", "report"):
        done = here(stage, "--out", tmp_path)  # on THREADS, as config.toml says
        assert done.returncode == 0, done.stderr
    for name in ("head.npz", "novelty.npz", "evaluation.json"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()
    assert contents(tmp_path / "features.zarr") == contents(out / "features.zarr")


def test_a_report_without_a_byte_is_none(
    run: tuple[Path, Path, str], tmp_path: Path, here: Run
) -> None:
    pictures, out, _ = run
    copy = tmp_path / "out"
    subprocess.run(["cp", "-r", out, copy], check=True)
    (copy / "report.html").write_bytes(b"")
    done = here("run", "--images", pictures, "--out", copy, *CUT)
    assert done.returncode == 0, done.stderr
    assert "evaluation: done before" in done.stderr
    assert "report: done before" not in done.stderr
    assert (copy / "report.html").read_text().rstrip().endswith("</html>")


def test_other_training_settings_train_again_and_name_them(
    run: tuple[Path, Path, str], tmp_path: Path, here: Run
) -> None:
    _, out, _ = run
    copy = tmp_path / "out"
    subprocess.run(["cp", "-r", out, copy], check=True)
    done = here("train", "--out", copy, "--train.l2", "0.5", *THREADS)
    assert "train.l2: asked for 0.5, stored 0.01" in done.stderr
    assert (copy / "head.npz").read_bytes() != (out / "head.npz").read_bytes()
    stale = here("report", "--out", copy)
    assert stale.returncode == 1
    assert "Run the evaluate stage first" in stale.stderr


def test_a_hidden_layer_goes_through_every_stage(
    run: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run
    copy, first, local = tmp_path / "out", tmp_path / "first", ("--cluster.processes", "false")
    subprocess.run(["cp", "-r", out, copy], check=True)
    units = ("--train.hidden-units", "8", "--train.epochs", "30")
    further = ["run", "--config", str(copy / "config.toml"), *units, "--out", str(copy), *local]
    assert command_line.main(further) == 0
    printed = capsys.readouterr()
    assert "features: done before" in printed.err
    head = Results(str(copy)).head()
    assert head is not None
    assert head.weights["hidden_kernel"].shape == (64, 8)
    scores = json.loads((copy / "evaluation.json").read_text())["scores"]
    assert scores["test"]["accuracy"] > 0.9
    report = (copy / "report.html").read_text()
    assert "head of 8 hidden units and softmax trained with" in report
    assert "replicas of the hidden layer (8 units) and the softmax layer are trained" in report

    # On from it, and into one file.
    subprocess.run(["cp", "-r", copy, first], check=True)
    further = ["--train.start-from", str(first), "--train.epochs", "1"]
    assert command_line.main(["train", "--out", str(copy), *further, *local]) == 0
    plain = ["--train.hidden-units", "0"]
    capsys.readouterr()
    assert command_line.main(["train", "--out", str(copy), *further, *plain, *local]) == 1
    assert "hidden units: asked for 0, stored 8" in capsys.readouterr().err
    assert command_line.main(["train", "--out", str(first), "--train.hidden-start", "network",
                          *local]) == 1  # fmt: skip
    assert "After block1_pool VGG16 has: block2_conv1 (Conv2D)" in capsys.readouterr().err
    assert command_line.main(["summary", "--train.hidden-units", "4096"]) == 0
    assert "Trained: a hidden layer of 4,096 units, and a softmax" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_again_and_again_goes_on_to_the_same_bits(
    run: tuple[Path, Path, str], tmp_path: Path
) -> None:
    pictures, out, _ = run
    arguments = ["run", "--images", str(pictures), "--out", str(tmp_path), *CUT]
    done_at: dict[Path, int] = {}  # chunks, and when
    # While it starts, while it computes features, before it evaluates, and before its report.
    for reached in ("", "features.zarr/status/c/1", "head.npz", "evaluation.json"):
        process = subprocess.Popen(
            [sys.executable, "-m", "dtl.pipeline", *arguments],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        time.sleep(0.5)
        wait_until((tmp_path / reached).exists, reached, timeout_s=300)
        os.killpg(process.pid, signal.SIGKILL)  # the driver and its workers
        process.wait()
        wait_until(lambda session=process.pid: not in_session(session), "its workers to end")
        chunks = [f for f in tmp_path.glob("features.zarr/status/c/*") if f.name.isdigit()]
        done_at = {chunk: chunk.stat().st_mtime_ns for chunk in chunks} | done_at
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert len(done_at) > 2
    assert all(chunk.stat().st_mtime_ns == then for chunk, then in done_at.items())
    for name in ("head.npz", "novelty.npz", "evaluation.json"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()
    assert contents(tmp_path / "features.zarr") == contents(out / "features.zarr")
    assert (tmp_path / "report.html").exists()


def test_predict(run: tuple[Path, Path, str], tmp_path: Path, here: Run) -> None:
    pictures, out, _ = run
    to = tmp_path / "p.parquet"
    done = here("predict", "--model", out, "--images", pictures, "--out", to, *THREADS)
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(to).to_pylist()
    assert len(rows) == 49
    right = sum(row["class"] == row["path"].split("/")[0] for row in rows)
    assert right > 44
    again = here("predict", "--model", out, "--images", pictures, "--out", to, *THREADS)
    assert "predictions: nothing new, 49 as before" in again.stderr
    assert "dashboard" not in again.stderr
    assert again.stdout == done.stdout


def test_predict_one_image(run: tuple[Path, Path, str], tmp_path: Path, here: Run) -> None:
    pictures, out, _ = run
    image = pictures / "blue" / "3.jpg"
    done = here("predict", "--model", out, "--images", image, "--out", tmp_path / "p", *THREADS)
    assert done.stdout.startswith("Predictions for 1 images (0 unreadable): "), done.stderr
    (row,) = pq.read_table(tmp_path / "p").to_pylist()
    assert (row["path"], row["class"]) == ("3.jpg", "blue")


def test_a_second_predict_on_one_output_is_refused(
    capsys: pytest.CaptureFixture[str], run: tuple[Path, Path, str], tmp_path: Path
) -> None:
    pictures, out, _ = run
    with lock.hold(str(tmp_path)):
        message = fails(capsys, "predict", "--model", out, "--images", pictures, "--out", tmp_path)
    assert f"Another driver writes to {tmp_path}" in message


def test_summary_shows_the_cut_and_what_an_image_costs(here: Run, tmp_path: Path) -> None:
    done = here("summary", "--plot", tmp_path / "network.svg")
    assert done.returncode == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert lines["fc2,"] == "fc2, cut: 4,096 features."
    assert re.search(r"102,764,544 +0\.21 +0\.0  frozen$", lines["fc1"])
    assert lines["predictions"].endswith("not used")
    assert (
        "30.9 GFLOP (15.5 billion multiply-adds) for an image of 224 x 224, 24 MiB"
        in lines["VGG16,"]
    )
    assert "Trained: a softmax layer, features x classes." in done.stdout
    table = done.stdout.split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert f"Picture: {tmp_path}/network.svg" in done.stdout
    assert "cut: 4,096 features" in (tmp_path / "network.svg").read_text()
    again = here("summary", "--plot", tmp_path / "network.svg")
    assert (
        "network.svg is there already. Choose another --plot, or set --overwrite." in again.stderr
    )
    other = here("summary", "--plot", tmp_path / "network.png")
    assert "must end in .svg" in other.stderr
    assert not (tmp_path / "network.png").exists()
    (tmp_path / "file").touch()
    below = here("summary", "--plot", tmp_path / "file" / "network.svg")
    assert f"Cannot write to {tmp_path}/file: " in below.stderr
    assert "Choose another --plot, or ask for write permission." in below.stderr
    assert below.stdout == ""  # before the work


def test_summary_shows_the_views(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--features.layers", "block5_pool", "--features.views", "320,mirror,224"]
    assert command_line.main(["summary", *options, "--features.combine", "stack"]) == 0
    printed = capsys.readouterr().out
    assert "block5_pool, cut: 1,024 features." in printed
    assert (
        "VGG16, images of 224 x 224 and 320 x 320, each mirrored, too; the features of each size "
        "side by side; 30.7 GFLOP"
    ) in printed
    assert "56 MiB of frozen weights" in printed


def test_everything_in_memory_of_one_process(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = command_line.main(
        ["run", "--images", str(pictures), "--out", "memory://results", *CUT,
         "--cluster.processes", "false"]
    )  # fmt: skip
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "Report: memory://results/report.html" in printed.out


@pytest.mark.slow
def test_the_demo_without_imagenet_weights_says_so(tmp_path: Path) -> None:
    """The whole demo is run by hand and in `make demo`; this is its fallback, cut short."""
    if (Path.home() / ".keras/models/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5").exists():
        pytest.skip("the ImageNet weights are in Keras' cache")
    done = command(
        "demo", "--out", tmp_path / "demo", "--features.layers", "block1_pool",
        "--features.precision", "float32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if "could not be downloaded" not in done.stderr:
        pytest.skip("the ImageNet weights could be downloaded")
    assert "untrained network" in done.stderr
    assert "was not trained" in done.stdout
    assert "was not trained" in (tmp_path / "demo" / "report.html").read_text()
    n_classes = len(drawing.CLASSES)
    assert f"{drawing.N_IMAGES * n_classes} images of {n_classes} classes" in done.stderr
    assert "Dask dashboard" in done.stdout


# --- bad input -----------------------------------------------------------------------------------


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message of a command that ends before a cluster is started."""
    status = command_line.main([str(a) for a in arguments])
    printed = capsys.readouterr().err
    assert status == 1
    assert "Traceback" not in printed
    assert "dashboard" not in printed
    return printed


def usage_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        command_line.main(list(arguments))
    assert stopped.value.code == 2
    return capsys.readouterr().err


Capsys = pytest.CaptureFixture[str]


def test_misspelt_option(capsys: Capsys) -> None:
    message = usage_error(capsys, "run", "--train.learning-rat", "0.1")
    assert "--train.learning-rat" in message
    assert "Did you mean --train.learning-rate?" in message


def test_unknown_command(capsys: Capsys) -> None:
    message = usage_error(capsys, "runn")
    assert "invalid choice: 'runn'" in message
    assert "featurize" in message


def test_nothing_given(capsys: Capsys, tmp_path: Path) -> None:
    assert "Set --out" in fails(capsys, "run")
    assert "Set --images." in fails(capsys, "run", "--out", tmp_path)


def test_no_such_folder(capsys: Capsys, tmp_path: Path) -> None:
    message = fails(capsys, "run", "--images", tmp_path / "nope", "--out", tmp_path / "out")
    assert f"No such folder: {tmp_path}/nope" in message
    assert not (tmp_path / "out").exists()


def test_no_images(capsys: Capsys, tmp_path: Path) -> None:
    (tmp_path / "empty" / "a").mkdir(parents=True)
    (tmp_path / "empty" / "a" / "notes.txt").write_text("nothing here")
    message = fails(capsys, "run", "--images", tmp_path / "empty", "--out", tmp_path / "out")
    assert "No images in class folders" in message
    assert "Expected CLASS/photo.jpg" in message


def test_one_class_only(capsys: Capsys, tmp_path: Path) -> None:
    draw(tmp_path / "one", {"red": (200, 0, 0)}, 3)
    message = fails(capsys, "run", "--images", tmp_path / "one", "--out", tmp_path / "out")
    assert "Only one class, 'red'" in message


def test_a_class_with_fewer_images_than_splits(capsys: Capsys, pictures: Path) -> None:
    (pictures / "rare").mkdir()
    (pictures / "rare" / "0.jpg").write_bytes(jpeg(np.zeros((9, 9, 3), np.uint8)))
    message = fails(capsys, "run", "--images", pictures, "--out", pictures.parent / "out")
    assert "Class rare has 1 different images" in message


def test_unknown_scheme(capsys: Capsys, pictures: Path, tmp_path: Path) -> None:
    message = fails(capsys, "run", "--images", "hdsf://data/x", "--out", tmp_path)
    assert "Unknown scheme hdsf://" in message
    assert "hdfs" in message
    message = fails(capsys, "run", "--images", pictures, "--out", "nowhere://x")
    assert "Unknown scheme nowhere://" in message


def test_unwritable_output(capsys: Capsys, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "out"
    message = fails(
        capsys, "run", "--images", pictures, "--out", out, "--features.weights", "random"
    )
    assert f"Cannot write to {out}" in message
    assert "Choose another --out" in message


def test_misspelt_key_in_a_file(capsys: Capsys, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[train]\nlearning_rat = 0.1\n")
    message = fails(capsys, "run", "--config", tmp_path / "c.toml", "--out", tmp_path)
    assert f"error: {tmp_path}/c.toml: Unknown key train.learning_rat. Did you mean" in message
    (tmp_path / "config.toml").write_text("[train]\nlearning_rat = 0.1\n")
    message = fails(capsys, "train", "--out", tmp_path)
    assert f"error: {tmp_path}/config.toml: Unknown key train.learning_rat. Did you" in message
    (tmp_path / "c.toml").write_text("[train\n")
    assert "c.toml: Not valid TOML: " in fails(capsys, "run", "--config", tmp_path / "c.toml")
    assert "Check --config" in fails(capsys, "run", "--config", tmp_path / "d.toml")


def test_values_out_of_range(capsys: Capsys, pictures: Path, tmp_path: Path) -> None:
    common = ("run", "--images", pictures, "--out", tmp_path / "out")
    frequency = ("--train.averaging-frequency", "0")
    assert "train.averaging_frequency must be 1 or more" in fails(capsys, *common, *frequency)
    assert "train.schedule must be one of" in fails(capsys, *common, "--train.schedule", "step")
    assert "The splits ask for" in fails(capsys, *common, "--split.test", "0.9")
    assert "train.layer must be one of features.layers" in fails(
        capsys, *common, "--train.layer", "fc1"
    )


def test_stages_without_what_they_need(capsys: Capsys, tmp_path: Path) -> None:
    for stage in ("train", "evaluate", "report"):
        assert "No config.toml" in fails(capsys, stage, "--out", tmp_path)
    message = fails(capsys, "predict", "--model", tmp_path, "--images", tmp_path, "--out", "x")
    assert "No config.toml" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("compare --train.hidden-units 9", "A head with --train.hidden-units 9 has none"),
        ("compare --train.dropout 0.5", "train.dropout is for train.solver = averaging"),
        ("compare --train.keep best", "--train.keep best is for training alone"),
        ("compare --train.patience 3", "--train.patience 3 is for training alone. Give 0"),
        ("tune --train.solver lbfgs", "Set --train.solver averaging"),
        ("tune --tune.learning-rates 0.1 --tune.l2s 0.1", "nothing to choose from"),
        ("tune --train.averaging-frequency-end 2 --tune.frequencies 1,10", "must be at most"),
    ],
)
def test_settings_that_no_store_fits_are_told_before_any_work(
    capsys: Capsys, tmp_path: Path, arguments: str, message: str
) -> None:
    Results(str(tmp_path)).write_config(config.build({"out": str(tmp_path)}))
    assert message in fails(capsys, *arguments.split(), "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.toml"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("compare --train.n-shards 9", "the store has 4 chunks"),
        ("compare --compare.sklearn-mib 1", "more than --compare.sklearn-mib 1"),
        ("tune --train.n-shards 9", "the store has 4 chunks"),
        ("tune --split.validation 0", "the validation images, and the split has none"),
    ],
)
def test_a_store_that_does_not_fit_is_told_before_a_cluster_is_started(
    capsys: Capsys, make_store: MakeStore, tmp_path: Path, arguments: str, message: str
) -> None:
    make_store(400, n_features=1500, chunk_images=100, name="out/features.zarr")
    out = str(tmp_path / "out")
    Results(out).write_config(config.build({"out": out, "split": {"method": "random"}}))
    assert message in fails(capsys, *arguments.split(), "--out", out)


def test_a_store_of_other_settings(capsys: Capsys, run: tuple[Path, Path, str]) -> None:
    pictures, out, _ = run
    before = contents(out)
    message = fails(
        capsys, "run", "--images", pictures, "--out", out, *CUT, "--features.preprocess", "dl4j"
    )
    assert "preprocess: asked for 'dl4j', stored 'network'" in message
    assert "--overwrite" in message
    assert contents(out) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --features.pooling max", "pooling: asked for 'max', stored 'avg'"),
        ("evaluate --features.precision bfloat16", "precision: asked for 'bfloat16', stored 'floa"),
        ("report --images.resize crop", "resize: asked for 'crop', stored 'stretch'"),
        ("evaluate --train.l2 1", "train.l2: asked for 1.0, stored 0.01"),
        ("evaluate --train.normalize l2", "train.normalize: asked for 'l2', stored None"),
        ("report --seed 1", "seed: asked for 1, stored 0"),
        ("evaluate --split.test 0.5", "split.test: asked for 0.5, stored 0.25"),
        ("predict --features.preprocess dl4j", "preprocess: asked for 'dl4j', stored 'network'"),
        ("export --features.pooling max", "pooling: asked for 'max', stored 'avg'"),
    ],
)
def test_options_that_would_be_recorded_and_were_not_used(
    capsys: Capsys, run: tuple[Path, Path, str], tmp_path: Path, arguments: str, message: str
) -> None:
    pictures, out, _ = run
    before = contents(out)
    stage, *options = arguments.split()
    places: list[object] = ["--out", out]
    if stage in ("predict", "export"):
        places = ["--model", out, "--images", pictures, "--out", tmp_path / "new.keras"]
    said = fails(capsys, stage, *options, *places)
    assert message in said
    assert "Give these options as they were" in said
    assert contents(out) == before
    assert not list(tmp_path.iterdir())


def test_places_are_recorded_so_that_any_folder_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for weights, recorded in (
        ("weights/w.npz", f"{tmp_path}/weights/w.npz"),
        ("/models/w.npz", "/models/w.npz"),
        ("memory://models/w.npz", "memory://models/w.npz"),
        ("imagenet", "imagenet"),
        ("random", "random"),
    ):
        places = ["--out", "out", "--images", "photos", "--train.start-from", "before"]
        given = parse_arguments(["run", *places, "--features.weights", weights])
        c = read_options(given, commands.COMMANDS["run"])
        assert c.features.weights == recorded
        assert (c.out, c.images.url, c.train.start_from) == tuple(
            str(tmp_path / name) for name in ("out", "photos", "before")
        )


@pytest.mark.parametrize("name", ["", "head.npz", "head-best.npz", "head-last.npz"])
def test_a_start_that_the_training_removes(
    capsys: Capsys, run: tuple[Path, Path, str], name: str
) -> None:
    _, out, _ = run
    before = contents(out)
    message = fails(capsys, "train", "--out", out, "--train.start-from", out / name)
    assert f"the training replaces or removes {out / (name or 'head.npz')}. Copy" in message
    assert contents(out) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.npz", "No such file: {}. Check --train.start-from"), ("junk.npz", "{}: Not a head")],
)
def test_a_start_that_cannot_be_read_is_not_recorded(
    capsys: Capsys, run: tuple[Path, Path, str], tmp_path: Path, name: str, message: str
) -> None:
    pictures, out, _ = run
    before = contents(out)
    (tmp_path / "junk.npz").write_bytes(b"junk")
    start = ("--train.start-from", tmp_path / name)
    for stage in (("train",), ("run", "--images", pictures, *CUT)):
        said = fails(capsys, *stage, "--out", out, *start)
        assert message.format(tmp_path / name) in said
    assert contents(out) == before


def test_a_split_that_is_not_the_heads(
    capsys: Capsys, run: tuple[Path, Path, str], tmp_path: Path
) -> None:
    _, out, _ = run
    copy = tmp_path / "out"
    subprocess.run(["cp", "-r", out, copy], check=True)
    # What `tune`, `compare` and a training that is interrupted do first.
    splitting.split_images(Results(str(copy)).store(), config.SplitConfig(test=0.5), 0)
    message = fails(capsys, "report", "--out", copy)
    assert "split.test: asked for 0.25, stored 0.5" in message
    assert "Run the train stage again" in message
    (copy / "evaluation.json").unlink()
    local = ("--cluster.processes", "false")
    assert command_line.main(["evaluate", "--out", str(copy), *local]) == 1
    assert "split.test: asked for 0.25, stored 0.5" in capsys.readouterr().err
    for stage in ("train", "evaluate"):
        assert command_line.main([stage, "--out", str(copy), *local]) == 0
    assert "training: done before" in capsys.readouterr().err
    assert (copy / "evaluation.json").read_bytes() == (out / "evaluation.json").read_bytes()


def test_something_else_where_the_store_should_be(
    capsys: Capsys, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / "features.zarr").mkdir(parents=True)
    (tmp_path / "out" / "features.zarr" / "diary.txt").write_text("mine")
    message = fails(capsys, "run", "--images", pictures, "--out", tmp_path / "out", *CUT)
    assert "is no feature store" in message
    assert (tmp_path / "out" / "features.zarr" / "diary.txt").read_text() == "mine"


def test_no_scheduler_at_the_address(
    capsys: Capsys, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_CONNECT_TIMEOUT_S", 2)
    message = fails(
        capsys, "run", "--images", pictures, "--out", tmp_path, *CUT, "--cluster", "tcp://127.0.0.1:9"
    )  # fmt: skip
    assert "No Dask scheduler answers at tcp://127.0.0.1:9" in message


def test_pyarrows_hdfs_client_without_libhdfs(capsys: Capsys, tmp_path: Path) -> None:
    if os.environ.get("ARROW_LIBHDFS_DIR"):
        pytest.skip("libhdfs is here")
    arguments = ("--storage.hdfs-client", "pyarrow", "--images", "hdfs://127.0.0.1:9/photographs")
    try:
        message = fails(capsys, "run", *arguments, "--out", tmp_path)
    finally:
        storage.use_hdfs_client("native")
    assert "Unable to load lib" in message  # libjvm, or libhdfs


@pytest.mark.slow
def test_what_only_the_workers_can_tell(
    capsys: Capsys, pictures: Path, tmp_path: Path, data: Path
) -> None:
    """Networks, layers and weights are checked on the workers, before any image is read."""
    common = ["run", "--images", str(pictures), "--out", str(tmp_path / "out"),
              "--cluster.processes", "false"]  # fmt: skip
    for arguments, message in (
        (["--features.weights", "random", "--features.network", "VGG17"],
         "Unknown network 'VGG17'. Known: "),
        (["--features.weights", "random", "--features.layers", "fc3"],
         "vgg16 has no layer 'fc3'. It has: "),
        (["--features.weights", f"{data}/vgg16_imagenet_conv.npz", "--features.network", "VGG19",
          "--features.layers", "block5_pool"],
         "first difference at layer block3_conv4"),
        (["--features.weights", f"{data}/none.npz"], "No such file"),
        (["--features.weights", "random", "--cluster.memory-limit", "1GiB",
          "--cluster.processes", "true"], "--cluster.memory-limit on a local cluster"),
    ):  # fmt: skip
        assert command_line.main([*common, *arguments]) == 1
        printed = capsys.readouterr().err
        assert message in printed
        assert "Traceback" not in printed
    assert not (tmp_path / "out" / "features.zarr").exists()


def test_a_worker_without_memory_names_the_option_of_each_kind_of_cluster(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worker: Any = SimpleNamespace(address="tcp://127.0.0.1:9")

    def killed(_: object) -> NoReturn:
        raise KilledWorker("task", worker, 3)

    monkeypatch.setattr(stages, "featurize", killed)
    message = fails(capsys, "featurize", "--out", tmp_path)
    for option in (
        "--cluster.memory-limit on a local cluster", "--yarn.worker-memory on YARN",
        "`dask worker --memory-limit`", "the same command goes on",
    ):  # fmt: skip
        assert option in message


@pytest.mark.parametrize(
    ("arguments", "goes_on"),
    [
        ("train --out {out}", True),
        ("tune --out {out}", True),
        ("compare --out {out}", False),
        ("submit --wait --out {out}", False),
        ("status application_1", False),
        ("logs application_1", False),
        ("kill application_1", False),
    ],
)
def test_only_a_command_that_goes_on_says_so_when_it_is_interrupted(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: str, goes_on: bool
) -> None:
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(Results, "store", interrupted)
    monkeypatch.setattr(capacity, "check_worker_memory", interrupted)
    for name in ("get_status", "print_logs", "kill"):
        monkeypatch.setattr(submission, name, interrupted)
    Results(str(tmp_path)).write_config(config.build({"out": str(tmp_path)}))
    assert command_line.main(arguments.format(out=tmp_path).split()) == 130
    said = "Interrupted. What is done stays done; the same command goes on."
    assert capsys.readouterr().err == f"error: {said if goes_on else 'Interrupted.'}\n"


# --- real photographs ----------------------------------------------------------------------------


def test_real_photographs_to_a_real_classifier(real_run: tuple[Path, str]) -> None:
    """1,641 photographs of Caltech-256 through VGG16's convolutions, in one command.

    scikit-learn's exact solver reaches 94 % on such features.
    """
    out, printed = real_run
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["scores"]["test"]["accuracy"] >= 0.93
    assert len(evaluation["class_names"]) == 19
    assert sum(s["n_images"] for s in evaluation["scores"].values()) == 1641
    store = Results(str(out)).store()
    paths, split = store.read("path").tolist(), store.read("split")
    twins = [paths.index(f"224.touring-bike/224_{n}.jpg") for n in ("0004", "0095")]
    assert split[twins[0]] == split[twins[1]]
    assert "1 images repeat another's bytes" in printed
