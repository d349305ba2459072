from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import COLOURS, CUT, THREADS, Run, draw, jpeg

from dtl.features.store import FeatureStore
from dtl.pipeline import command_line


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, and their features."""
    folder = tmp_path_factory.mktemp("made")
    draw(folder / "pictures", COLOURS, 8)
    options = [o for o in CUT if not o.startswith("--train")]
    options.remove("10")
    images = ["--images", folder / "pictures", "--out", folder / "out"]
    assert command_line.main([*map(str, ["featurize", *images, *options, *THREADS])]) == 0
    return folder


@pytest.fixture
def pictures(made: Path) -> Path:
    return made / "pictures"


@pytest.fixture
def featurized(made: Path) -> Path:
    return made / "out"


def test_the_nearest_images_as_lines_and_as_a_page(
    here: Run, pictures: Path, featurized: Path, tmp_path: Path
) -> None:
    red = np.clip(np.random.default_rng(9).normal((200, 20, 20), 30, (40, 40, 3)), 0, 255)
    new, broken = tmp_path / "new.jpg", tmp_path / "broken.jpg"
    new.write_bytes(jpeg(red.astype(np.uint8)))
    broken.write_bytes(new.read_bytes()[:200])
    stored = pictures / "blue" / "3.jpg"
    page = tmp_path / "page.html"
    done = here(
        "similar", new, stored, broken, "--model", featurized, "--k", 4, "--page", page, *THREADS
    )
    assert done.returncode == 0, done.stderr
    asked = dict(part.split("\n", 1) for part in done.stdout.split("\n\n")[:2])
    lines = [line.split() for line in asked[str(new)].splitlines()]
    assert [line[1] for line in lines] == ["red"] * 4
    first = asked[str(stored)].splitlines()[0].split()
    assert first == ["1.000", "blue", "blue/3.jpg"]
    assert f"{broken}: " in done.stdout
    assert f"Page: {page}" in done.stdout
    html = page.read_text()
    assert html.count("data:image/jpeg;base64,") == 2 + 2 * 4
    assert "all 24 images" in html
    assert "It could not be read" in html


def test_the_page_lies_with_the_results_unless_told(
    here: Run, pictures: Path, featurized: Path, tmp_path: Path
) -> None:
    before = FeatureStore.open(str(featurized / "features.zarr")).fingerprint
    moved = tmp_path / "moved"
    shutil.copytree(pictures, moved)
    pictures.rename(tmp_path / "gone")
    done = here(
        "similar", moved / "red" / "1.jpg", "--model", featurized, "--images", moved, *THREADS
    )
    (tmp_path / "gone").rename(pictures)
    assert done.returncode == 0, done.stderr
    assert (featurized / "similar.html").read_text().count("data:image/jpeg;base64,") == 1 + 12
    assert FeatureStore.open(str(featurized / "features.zarr")).fingerprint == before


def test_what_cannot_be_asked_is_refused(
    here: Run, pictures: Path, featurized: Path, tmp_path: Path
) -> None:
    image = pictures / "red" / "1.jpg"
    (tmp_path / "empty").mkdir()
    for arguments, expected in {
        (image, "--k", "0"): "Expected at least 1 neighbour",
        (tmp_path / "empty",): "Received: 0, in",
        (tmp_path / "none.jpg",): "none.jpg",
        (image, "--features.layers", "block2_pool"): "made with other options",
    }.items():
        done = here("similar", *arguments, "--model", featurized, *THREADS)
        assert done.returncode == 1
        assert expected in done.stderr, done.stderr


def test_a_probe_is_done_once(here: Run, featurized: Path) -> None:
    options = [
        "probe", "--out", featurized, "--split.validation", 0.25, "--split.test", 0.25,
        "--normalisations", "l2", "--per-class", "1,2", "--draws", 2, "--k", "1,3", "--l2s", "0.1",
        *THREADS,
    ]  # fmt: skip
    done = here(*options)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()[:4]]
    assert lines[0] == ["1", "2", "all"]
    assert [line[:3] for line in lines[1:]] == [
        ["block1_pool", "l2", method] for method in ("L-BFGS", "1-NN", "3-NN")
    ]
    assert (featurized / "probe.html").exists()
    again = here(*options)
    assert again.stdout == done.stdout
    assert "probe: done before" in again.stderr
    for arguments, expected in {
        ("--draws", "1"): "at least 2 draws",
        ("--normalisations", "zscore"): "No such scaling: zscore",
        ("--layers", "fc9"): "No features of layer 'fc9'",
    }.items():
        done = here("probe", "--out", featurized, *arguments)
        assert done.returncode == 1
        assert expected in done.stderr
