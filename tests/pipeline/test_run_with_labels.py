"""A run with a table of labels has the bytes of a run on class folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import COLOURS, CUT, THREADS, Run, contents, draw

from dtl.pipeline.arguments import parse_arguments
from dtl.pipeline.commands import COMMANDS
from dtl.pipeline.run import read_options


def write(file: Path, rows: dict[str, str]) -> Path:
    lines = [f"{path},{name}" for path, name in rows.items()]
    file.write_text("\n".join(["file_name,breed", *lines]))
    return file


def test_a_table_gives_the_bytes_of_the_folders(here: Run, tmp_path: Path) -> None:
    draw(tmp_path / "photos", COLOURS, 8)
    rows = {path: path.split("/")[0] for path in contents(tmp_path / "photos")}
    table = write(tmp_path / "labels.csv", rows)
    options = ["--images", tmp_path / "photos", *CUT, *THREADS]
    labels = [
        "--images.labels", table, "--images.path-column", "file_name",
        "--images.label-column", "breed",
    ]  # fmt: skip
    for out, given in (("folders", []), ("table", labels)):
        done = here("featurize", "--out", tmp_path / out, *options, *given)
        assert done.returncode == 0, done.stderr
    of_folders = contents(tmp_path / "folders" / "features.zarr")
    assert len(of_folders) > 10
    assert contents(tmp_path / "table" / "features.zarr") == of_folders
    # A store of the folders is that of the table.
    done = here("run", "--out", tmp_path / "folders", *options, *labels)
    assert done.returncode == 0, done.stderr
    assert "features: done before, 24 images" in done.stderr
    assert f'labels = "{table}"' in (tmp_path / "folders" / "config.toml").read_text()
    # A correction computes no features again.
    write(table, rows | {"red/0.jpg": "blue"})
    done = here("featurize", "--out", tmp_path / "table", *options, *labels)
    assert "0 new, 0 changed, 0 removed, 24 as before (1 of them in another class)" in done.stderr
    assert "features: done before, 24 images" in done.stderr
    # Other images have other labels.
    predict = ["predict", "--model", str(tmp_path / "folders"), "--images", str(tmp_path)]
    assert read_options(parse_arguments(predict), COMMANDS["predict"]).images.labels == ""
    table.unlink()
    failed = here("run", "--out", tmp_path / "new", *options, *labels)
    assert failed.stderr.endswith(f"error: No such file: {table}. Check --images.labels.\n")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_a_flat_folder(here: Run, tmp_path: Path, packed: bool) -> None:
    draw(tmp_path / "drawn", COLOURS, 4)
    (tmp_path / "photos").mkdir()
    rows = {}
    for k, path in enumerate(contents(tmp_path / "drawn")):
        (tmp_path / "drawn" / path).rename(tmp_path / "photos" / f"{k}.jpg")
        rows[f"{k}"] = path.split("/")[0]
    del rows["0"]
    table = write(tmp_path / "photos" / "labels.csv", rows)
    options = [
        "--images", tmp_path / "photos", "--images.labels", table, "--images.path-column",
        "file_name", "--images.label-column", "breed",
    ]  # fmt: skip
    if packed:
        done = here("pack", *options, "--out", tmp_path / "tars", *THREADS)
        assert done.returncode == 0, done.stderr
        options = ["--images", tmp_path / "tars"]
    done = here("featurize", *options, "--out", tmp_path / "out", *CUT, *THREADS)
    assert done.returncode == 0, done.stderr
    assert "11 images of 3 classes" in done.stderr
    if not packed:
        assert "1 not in the table of labels: 0.jpg" in done.stderr
    attributes = json.loads((tmp_path / "out" / "features.zarr" / "zarr.json").read_text())
    assert attributes["attributes"]["class_names"] == sorted(COLOURS)
