"""From unlabelled images to labels and back, as a person goes."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from helpers import COLOURS, CUT, THREADS, Run, contents, draw

from dtl.features.store import FeatureStore
from dtl.images.values import NO_SPLIT


def write(file: Path, rows: list[list[str]]) -> None:
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)


def read(file: Path) -> list[list[str]]:
    with file.open(newline="") as opened:
        return list(csv.reader(opened))


@pytest.fixture
def labelled(here: Run, tmp_path: Path) -> tuple[Path, list[object]]:
    """The results of a run on pictures of which five of a class have a label, and its options."""
    draw(tmp_path / "photos", COLOURS, 10)
    rows = [[f"{name}/{k}.jpg", name] for name in COLOURS for k in range(5)]
    write(tmp_path / "labels.csv", [["path", "label"], *rows])
    options: list[object] = [
        "--images", tmp_path / "photos", "--images.unlabelled", "keep", *CUT, *THREADS,
    ]  # fmt: skip
    out = tmp_path / "out"
    done = here("run", "--out", out, "--images.labels", tmp_path / "labels.csv", *options)
    assert done.returncode == 0, done.stderr
    assert "15 images of 3 classes, and 15 without a label below" in done.stderr
    return out, options


def test_labels_come_back_without_features_computed_again(
    here: Run, labelled: tuple[Path, list[object]]
) -> None:
    out, options = labelled
    page = (out / "report.html").read_text()
    assert "15 images of 3 classes took part" in page
    assert "15 more images have no label" in page
    before = FeatureStore.open(str(out / "features.zarr"))
    split = before.read_split()
    assert (split == NO_SPLIT).sum() == 15
    done = here("suggest", "--out", out, "--n", "6", *THREADS)
    assert done.returncode == 0, done.stderr
    assert "6 of 15 unlabelled images" in done.stdout
    assert f"--images.labels {out}/suggest.csv --images.unlabelled keep" in done.stdout
    table = read(out / "suggest.csv")
    assert table[0] == ["path", "label", "guess"]
    assert [row[1] for row in table[1:7]] == [""] * 6
    assert {row[2] for row in table[1:7]} <= {*COLOURS}
    assert len(table) == 1 + 6 + 15
    page = (out / "suggest.html").read_text()
    assert page.count("data:image/jpeg") == 6
    for row in table[1:7]:
        row[1] = row[0].split("/")[0]
        assert row[0] in page
    # Nothing is written over what a person has written.
    write(out / "suggest.csv", table)
    refused = here("suggest", "--out", out, *THREADS)
    assert refused.returncode == 1
    assert "has 6 labels that no run has read" in refused.stderr
    assert read(out / "suggest.csv") == table
    files = contents(out / "features.zarr")
    done = here("run", "--out", out, "--images.labels", out / "suggest.csv", *options)
    assert done.returncode == 0, done.stderr
    assert "features: done before, 30 images" in done.stderr
    after = contents(out / "features.zarr")
    assert all(after[n] == files[n] for n in files if n.startswith(("block1_pool/", "status/")))
    store = FeatureStore.open(str(out / "features.zarr"))
    now = store.read_split()
    assert (now[split >= 0] == split[split >= 0]).all()
    assert (now == NO_SPLIT).sum() == 9
    assert not (out / "suggest.html").exists()
    done = here("suggest", "--out", out, "--n", "100", *THREADS)
    assert "9 of 9 unlabelled images" in done.stdout
    assert len(read(out / "suggest.csv")) == 1 + 9 + 21


@pytest.mark.parametrize("number", ["0", "-3", "ten"])
def test_no_number_of_images(
    here: Run, tmp_path: Path, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        here("suggest", "--out", tmp_path, "--n", number)
    assert f"expected a whole number from 1 on, not {number!r}" in capsys.readouterr().err


def test_bad_input(here: Run, tmp_path: Path, labelled: tuple[Path, list[object]]) -> None:
    out, _ = labelled
    (out / "suggest.csv").write_text("my notes")
    done = here("suggest", "--out", out, *THREADS)
    assert "is no table of suggestions, and would be written over" in done.stderr
    done = here("suggest", "--out", out, "--overwrite", *THREADS)
    assert done.returncode == 0, done.stderr
    (out / "head.npz").unlink()
    done = here("suggest", "--out", out, "--overwrite", *THREADS)
    assert done.returncode == 0, done.stderr
    assert "those that stand for most others" in done.stdout
    assert here("suggest", "--out", tmp_path / "none", *THREADS).returncode == 1
