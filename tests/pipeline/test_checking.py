"""`check` and `run --check`, on pictures of which one has a wrong label."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from helpers import CUT, THREADS, Run

from dtl.checking.values import LABEL
from dtl.pipeline.results import Results

FOLDS = ("--check.folds", 2)
WRONG, COPY = "green/wrong.jpg", "green/copy.jpg"


@pytest.fixture
def run(here: Run, pictures: Path, tmp_path: Path) -> tuple[Run, Path]:
    """A run on red, green and blue pictures, and one red one that is called green."""
    shutil.move(pictures / "red" / "7.jpg", pictures / WRONG)
    shutil.copy(pictures / "green" / "0.jpg", pictures / COPY)
    out = tmp_path / "out"
    done = here("run", "--images", pictures, "--out", out, "--check", *FOLDS, *CUT, *THREADS)
    assert done.returncode == 0, done.stderr
    assert re.search(r"[1-9] of 25 labels are probably wrong", done.stdout)
    return here, out


def test_wrong_labels_are_corrected_and_no_feature_is_computed_again(
    run: tuple[Run, Path], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, out = run
    results = Results(str(out))
    [suspect] = [issue for issue in results.issues() if issue.kind == LABEL][:1]
    assert (suspect.path, suspect.given, suspect.suggested) == (WRONG, "green", "red")
    page = (out / "check.html").read_text()
    assert WRONG in page
    assert page.count("data:image/jpeg") > 3
    assert "relabel.csv" in page
    report = (out / "report.html").read_text()
    assert "labels are probably wrong" in report

    # Again: nothing is done.
    before = {path: path.read_bytes() for path in sorted(out.glob("*")) if path.is_file()}
    done = here("check", "--out", out, *THREADS)
    assert done.returncode == 0, done.stderr
    assert "check: done before" in done.stderr
    assert {path: path.read_bytes() for path in before} == before

    _check_another_head(here, out)
    table = out / "relabel.csv"
    lines = table.read_text().splitlines()
    assert lines[1].startswith(f"{WRONG},green,green,red,")
    lines[1] = lines[1].replace(",green,green,", ",red,green,")
    table.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr("dtl.features.featurization._fill_chunk", None)  # computing would fail
    done = here("run", "--images", pictures, "--images.labels", table, "--out", out, *CUT, *THREADS)
    assert done.returncode == 0, done.stderr
    assert "0 new, 0 changed, 0 removed, 25 as before (1 of them in another class)" in done.stderr
    assert results.check() is None  # it was of other labels
    assert not (out / "issues.parquet").exists()
    assert not (out / "check.html").exists()
    assert "labels are probably wrong" not in (out / "report.html").read_text()
    edited = table.read_bytes()
    done = here("check", "--out", out, *THREADS)
    assert done.returncode == 0, done.stderr
    assert WRONG not in {issue.path for issue in results.issues() if issue.kind == LABEL}
    assert table.read_bytes() == edited
    assert "Labels to correct" in done.stdout
    assert "relabel-2.csv" in done.stdout


def _check_another_head(here: Run, out: Path) -> None:
    """Another head costs no other check, and none is needed."""
    before = Results(str(out)).check()
    assert before is not None
    assert {*before.accuracies} == {"train", "validation", "test"}
    head = (out / "head.npz").read_bytes()
    (out / "head.npz").unlink()
    done = here("check", "--out", out, *THREADS)
    assert done.returncode == 0, done.stderr
    assert "held-out heads" not in done.stderr
    after = Results(str(out)).check()
    assert after is not None
    assert (after.head_sha256, after.accuracies) == ("", {})
    assert after.n_issues == before.n_issues
    (out / "head.npz").write_bytes(head)
    done = here("check", "--out", out, *THREADS)
    assert done.returncode == 0, done.stderr
    assert Results(str(out)).check() == before


def test_nothing_to_check(here: Run, tmp_path: Path) -> None:
    done = here("check", "--out", tmp_path / "nothing")
    assert done.returncode == 1
    assert "No config.toml" in done.stderr
