"""`export` writes classifiers that are the run's, and that others use without dtl."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import COLOURS, CUT, THREADS, Run, command, contents, draw
from PIL import Image, ImageOps

from dtl import storage
from dtl.features.network.classifiers import formats, keras_classifier
from dtl.features.network.classifiers.formats import About
from dtl.head.model import Head
from dtl.images.decoding.formats import decode
from dtl.pipeline import command_line
from dtl.report.model_card import CardInput, escape, render_card

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAMES = {"keras": "c.keras", "onnx": "c.onnx", "openvino": "c.xml", "saved_model": "c"}
ELSEWHERE = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
HOSTILE = 'a|b<i>"`*'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Photographs, the results of a run in float32 on them, and its predictions."""
    folder = tmp_path_factory.mktemp("run")
    draw(folder / "pictures", COLOURS, 24)
    (folder / "pictures" / "red").rename(folder / "pictures" / HOSTILE)
    out = folder / "out"
    options = (*CUT, "--features.precision", "float32", "--train.normalize", "sqrt-l2")
    done = command("run", "--images", folder / "pictures", "--out", out, *options)
    assert done.returncode == 0, done.stderr
    done = command(
        "predict", "--model", out, "--images", folder / "pictures", "--out", folder / "p", *THREADS
    )
    assert done.returncode == 0, done.stderr
    return folder / "pictures", out, folder / "p"


@pytest.fixture(scope="module")
def without_dtl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has what is installed here, but no dtl."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    [packages] = folder.glob("lib/python*/site-packages")
    # Folders of a .pth file are searched, but not gone through for .pth files, as dtl's is.
    paths = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (packages / "others.pth").write_text("\n".join(sorted(paths)))
    python = folder / "bin" / "python"
    found = subprocess.run(
        [python, "-c", "import dtl"], cwd=folder, capture_output=True, text=True, env=ELSEWHERE,
        check=False,
    )  # fmt: skip
    assert "No module named 'dtl'" in found.stderr
    return python


@pytest.mark.slow
@pytest.mark.parametrize("kind", formats.ENDINGS)
def test_a_classifier_is_used_as_its_card_says(
    run: tuple[Path, Path, Path], without_dtl: Path, tmp_path: Path, here: Run, kind: str
) -> None:
    pictures, out, predictions = run
    name = NAMES[kind]
    done = here("export", "--model", out, "--out", tmp_path / name, "--format", kind)
    assert done.returncode == 0, done.stderr
    assert f"Classifier of 3 classes: {tmp_path}/{name}" in done.stdout
    assert "On 72 stored images its probabilities are the run's, to " in done.stdout

    said = json.loads((tmp_path / f"{name}.json").read_text())
    head = Head.from_bytes((out / "head.npz").read_bytes())
    assert said["format"] == kind
    assert said["classifier"]["class_names"] == [*head.class_names]
    assert said["classifier"]["temperature"] == head.temperature != 1
    assert said["classifier"]["head_sha256"] == head.fingerprint
    check = said["check"]
    assert check["decisive"] == "stored"
    assert check["stored"]["n_images"] == check["stored"]["n_same_class"] == 72
    assert 0 < check["stored"]["max_difference"] < check["limit"] == 1e-4
    rows = {row["path"]: row for row in pq.read_table(predictions).to_pylist()}
    assert {image["path"] for image in check["images"]} == {*rows}
    for image in check["images"]:
        row = rows[image["path"]]
        assert image["class"] == image["exported_class"] == row["class"]
        assert image["exported_probability"] == pytest.approx(row["probability"], abs=1e-4)
    if kind == "saved_model":
        assert check["jpeg"]["n_images"] == 72
        assert check["jpeg"]["n_refused"] == 0
        assert check["jpeg"]["max_difference"] < 1e-5

    card = (tmp_path / f"{name}.md").read_text()
    assert f"| {escape(HOSTILE)} |" in card
    [code] = re.findall(r"```python\n(.*?)```", card, re.S)
    codes = [code]
    if kind == "saved_model":  # and its other way, from the file itself
        codes.append(code.replace("# found = ", "found = "))
    (tmp_path / "elsewhere").mkdir()
    for k, text in enumerate(codes):
        (tmp_path / f"use{k}.py").write_text(text)
        row = rows[f"{HOSTILE}/{k}.jpg"]
        used = subprocess.run(
            [without_dtl, "-W", "ignore", tmp_path / f"use{k}.py", tmp_path / name,
             pictures / row["path"]],
            cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=False,
            env=ELSEWHERE,
        )  # fmt: skip
        assert used.returncode == 0, used.stderr
        best, *others = used.stdout.splitlines()
        probability, class_name = best.split(" ", 1)
        assert class_name == row["class"]
        assert float(probability) == pytest.approx(row["probability"], abs=1e-4)
        assert len(others) == 2


@pytest.mark.slow
def test_a_run_in_another_precision_is_held_to_float32(
    run: tuple[Path, Path, Path], tmp_path: Path, here: Run
) -> None:
    pictures, _, _ = run
    options = (*CUT, "--features.dtype", "float16", "--images.resize", "crop", *THREADS)
    done = here("run", "--images", pictures, "--out", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    done = here("export", "--model", tmp_path / "out", "--out", tmp_path / "c.keras")
    assert done.returncode == 0, done.stderr
    assert "are those of the network in float32, to " in done.stdout
    assert "The run computed in float16: its own differ by up to " in done.stdout
    check = json.loads((tmp_path / "c.keras.json").read_text())["check"]
    assert check["decisive"] == "recomputed"
    assert check["recomputed"]["max_difference"] < 1e-5
    assert check["stored"]["max_difference"] > check["recomputed"]["max_difference"]
    card = (tmp_path / "c.keras.md").read_text()
    assert "computed again in float32" in card
    assert "its short side scaled, the middle cut out" in card


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert command_line.main([*map(str, arguments)]) == 1
    return capsys.readouterr().err


def test_what_is_refused_leaves_nothing(
    run: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pictures, out, _ = run

    def export(*options: object) -> str:
        return fails(capsys, "export", "--model", out, *options)

    assert "must end in .keras, .onnx, or .xml" in export("--out", tmp_path / "c.h5")
    (tmp_path / "c.keras.md").write_text("mine")
    said = export("--out", tmp_path / "c.keras")
    assert "c.keras.md is there already. Choose another --out, or set --overwrite." in said
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    said = export("--out", tmp_path / "mine", "--format", "saved_model", "--overwrite")
    assert "holds other files than a SavedModel, such as thesis.tex" in said
    said = export(
        "--out", tmp_path / "mine" / "thesis.tex", "--format", "saved_model", "--overwrite"
    )
    assert "thesis.tex is a file, and no saved_model classifier" in said
    (tmp_path / "e.keras").mkdir()
    said = export("--out", tmp_path / "e.keras", "--overwrite")
    assert "e.keras is a directory, and no keras classifier" in said
    shutil.copytree(pictures, tmp_path / "changed")
    for path in (tmp_path / "changed").rglob("*.jpg"):
        path.write_bytes((pictures / "green" / "0.jpg").read_bytes())
    for moved in ("changed", "gone"):
        said = export("--out", tmp_path / "d.keras", "--images", tmp_path / moved)
        assert re.search(r"checked on 72 images of the run, and 7[0-2] of them are gone, or", said)
        assert "Say where they are now (--images), or export it unchecked" in said
    load = keras_classifier.load

    def load_another(path: Path) -> object:
        classify = load(path)
        return lambda images: classify(images) + np.float32(3e-4) * np.array([1, -1, 0])

    monkeypatch.setattr(keras_classifier, "load", load_another)
    said = export("--out", tmp_path / "d.keras")
    assert re.search(
        r"is not the run's: on 72 stored images .* differ by up to 0\.0003 \(.*, and", said
    )
    assert "Nothing was written" in said
    assert {path.name for path in tmp_path.iterdir()} == {
        "c.keras.md",
        "mine",
        "changed",
        "e.keras",
    }
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_unchecked_and_overwritten(run: tuple[Path, Path, Path], tmp_path: Path, here: Run) -> None:
    _, out, _ = run
    shutil.copytree(out, tmp_path / "out")
    (tmp_path / "out" / "evaluation.json").unlink()
    options = ("--model", tmp_path / "out", "--out", tmp_path / "c", "--format", "saved_model")
    done = here("export", *options, "--unchecked")
    assert done.returncode == 0, done.stderr
    assert "It was not compared with the run (--unchecked)." in done.stdout
    assert json.loads((tmp_path / "c.json").read_text())["check"] is None
    card = (tmp_path / "c.md").read_text()
    assert "It was **not** compared with the run" in card
    assert "It was not evaluated." in card
    before = contents(tmp_path / "c")
    done = here("export", *options, "--overwrite")
    assert done.returncode == 0, done.stderr
    after = contents(tmp_path / "c")
    assert {*after} == {*before}
    assert json.loads((tmp_path / "c.json").read_text())["check"]["stored"]["n_images"] == 72


@pytest.mark.slow
def test_two_layers_in_memory_without_validation(
    run: tuple[Path, Path, Path], here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head without a temperature, on the first of two layers; the place is no folder of ours."""
    pictures, _, _ = run
    options = (
        *CUT, "--features.layers", "block1_conv1,block1_pool", "--split.validation", "0",
        "--features.precision", "float32", *THREADS,
    )  # fmt: skip
    done = here("run", "--images", pictures, "--out", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    for name, more in (("c.keras", ()), ("d", ("--format", "saved_model"))):
        done = here("export", "--model", tmp_path / "out", "--out", f"memory://{name}", *more)
        assert done.returncode == 0, done.stderr
        card = storage.read_bytes(f"memory://{name}.md").decode()
        assert "VGG16 up to block1\\_conv1, frozen," in " ".join(card.split())
        assert "which was not calibrated" in card
    assert storage.exists("memory://d/saved_model.pb")
    model = keras_classifier.keras.models.load_model
    (tmp_path / "c.keras").write_bytes(storage.read_bytes("memory://c.keras"))
    # The layers behind the head's are not in it.
    assert model(tmp_path / "c.keras").count_params() < 64 * 27 + 64 + 65 * 3 + 10
    assert not Path("memory:").exists()


@pytest.mark.parametrize(
    ("mode", "resize"), [("RGB", "crop"), ("RGBA", "stretch"), ("P", "stretch"), ("L", "crop")]
)
def test_a_card_reads_pictures_as_dtl_does(tmp_path: Path, mode: str, resize: str) -> None:
    about = About(("a",), {"image": (64, 48)}, resize, 1.0, "", "", {})
    card = render_card(CardInput("c.onnx", "onnx", about, None, None))
    [code] = re.findall(r"```python\n(.*?)```", card, re.S)
    start = code.index("def read("), code.index("sizes = ")
    found: dict[str, object] = {"Image": Image, "ImageOps": ImageOps, "np": np}
    exec(code[slice(*start)], found)
    rng = np.random.default_rng(0)
    for size in ((90, 40), (30, 200), (64, 48), (500, 700)):
        pixels = rng.integers(0, 256, (*size, 4), np.uint8)
        image = Image.fromarray(pixels).convert(mode)
        image.save(tmp_path / "a.png")
        wanted = decode((tmp_path / "a.png").read_bytes(), (64, 48), resize=resize)
        np.testing.assert_array_equal(found["read"](tmp_path / "a.png", 64, 48), wanted)
    Image.fromarray(rng.integers(0, 65536, (9, 9), np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="more than 8 bits"):
        found["read"](tmp_path / "b.png", 64, 48)
