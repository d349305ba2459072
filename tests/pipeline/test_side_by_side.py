"""Runs beside each other, from the command to the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import COLOURS, CUT, THREADS, Run, draw

from dtl.pipeline import command_line

Runs = dict[str, Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Four runs of the same features, but the last, which is of other pictures."""
    folder = tmp_path_factory.mktemp("runs")
    found = {name: folder / name for name in ("good", "bad", "unfair", "other")}

    def run(*arguments: object) -> None:
        assert command_line.main([*map(str, arguments), *THREADS]) == 0

    draw(folder / "pictures", COLOURS, 12)
    draw(folder / "others", {name: (9, *colour[1:]) for name, colour in COLOURS.items()}, 5)
    for path in (folder / "others").glob("*/*.jpg"):
        path.rename(path.with_name(f"new {path.name}"))
    run("run", "--images", folder / "pictures", "--out", found["good"], *CUT)
    run("run", "--images", folder / "others", "--out", found["other"], *CUT)
    for name in ("bad", "unfair"):
        shutil.copytree(found["good"], found[name])
    # Too few units for three classes; and test images that are training images of the others.
    run("train", "--out", found["bad"], "--train.hidden-units", "1")
    run("train", "--out", found["unfair"], "--split.validation", "0", "--split.test", "0.75")
    for name in ("bad", "unfair"):
        run("evaluate", "--out", found[name])
    return found


def test_two_runs_on_the_same_images(here: Run, runs: Runs) -> None:
    done = here("report", runs["bad"], runs["good"], *THREADS)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    [row] = [line.split() for line in lines if line.startswith("good ") and "to" in line]
    name, n_images, points, *_, lost, won, _ = row
    assert (name, n_images, lost) == ("good", "9", "0")
    assert float(points) == pytest.approx(100 * int(won) / 9, abs=0.05)
    assert int(won) >= 3
    assert "Warning" not in done.stdout
    page = (runs["bad"] / "side-by-side.html").read_text()
    assert f"Page: {runs['bad']}/side-by-side.html" in done.stdout
    assert page.count("data:image/jpeg") == int(won)
    assert "Only " in page
    assert '<th scope="row">train.hidden_units</th><td>1</td>' in page
    assert '<th scope="row">out</th>' not in page
    assert page.count('<th scope="row">train.') == 1
    # The same runs give the same page, and nothing else of them changes.
    assert here("report", runs["bad"], runs["good"], *THREADS).returncode == 0
    assert (runs["bad"] / "side-by-side.html").read_text() == page


def test_what_cannot_be_compared_is_told(here: Run, runs: Runs, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    three = (runs["good"], runs["unfair"], runs["other"])
    done = here("report", *three, "--page", page, *THREADS)
    assert done.returncode == 0, done.stderr
    assert "test images of unfair were training images of good" in done.stdout
    assert "good and other have no test image in common" in done.stdout
    assert page.read_text().count('role="alert"') == 2
    assert "They have no test image in common" in page.read_text()


def test_one_run_by_its_name(here: Run, runs: Runs) -> None:
    assert here("report", runs["unfair"]).returncode == 0
    assert (runs["unfair"] / "report.html").exists()


def test_where_the_decision_lies(here: Run, runs: Runs) -> None:
    bad = runs["bad"]
    done = here("report", bad, "--occlusion", 2, *THREADS)
    assert done.returncode == 0, done.stderr
    pictures = json.loads((bad / "occlusion.json").read_text())["pictures"]
    mistakes = json.loads((bad / "evaluation.json").read_text())["mistakes"][:2]
    for seen, mistake in zip(pictures, mistakes, strict=True):
        for name in ("path", "true", "predicted"):
            assert seen[name] == mistake[name]
        assert seen["probability"] == pytest.approx(mistake["probability"], rel=1e-4)
        assert seen["least"] <= seen["probability"] + 1e-6
    page = (bad / "report.html").read_text()
    assert page.count('<svg viewBox="0 0 8 8"') == 2
    assert "100 passes" in page  # that they took
    # It stays on the page, and is not done again.
    assert here("report", bad).returncode == 0
    assert (bad / "report.html").read_text() == page
    done = here("report", bad, "--occlusion", 2, *THREADS)
    assert "occlusion: done before" in done.stderr


def test_what_cannot_be_asked_is_refused(here: Run, runs: Runs, tmp_path: Path) -> None:
    good, bad = runs["good"], runs["bad"]
    for arguments, said in (
        ((good, bad, good), "each once. Received: 3, of which"),
        ((good, "--out", bad), "Give the runs by their names alone, or one as --out"),
        ((good, "--page", tmp_path / "page.html"), "--page is for several runs"),
        ((good, "--occlusion", 25), "Expected 0 to 24 pictures for --occlusion"),
        ((good, tmp_path), f"nothing at {tmp_path}"),
        ((good, bad, "--page", good / "head.npz"), "is a file that is no page"),
    ):
        done = here("report", *arguments, *THREADS)
        assert done.returncode == 1
        assert said in done.stderr or "features.zarr" in done.stderr, done.stderr
