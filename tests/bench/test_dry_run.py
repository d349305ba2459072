"""How near a dry run's forecast is to the run: of photographs, and of a long training on features.

``pytest -s -o addopts= tests/bench/test_dry_run.py`` prints both times.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
from helpers import command

N_PHOTOGRAPHS = 600
MOST_OFF = 0.3


def forecast_s(*arguments: object) -> float:
    done = command("run", "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    (text,) = re.findall(r"^all +(.*?)$", done.stdout, re.M)
    units = {"h": 3600, "min": 60, "s": 1}
    return sum(float(n) * units[unit] for n, unit in re.findall(r"([\d.]+) (h|min|s)", text))


def run_s(*arguments: object) -> float:
    began = time.monotonic()
    done = command("run", *arguments, timeout_s=1200)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


def compare(what: str, *arguments: object) -> None:
    expected = forecast_s(*arguments)
    took = run_s(*arguments)
    print(f"{what}: forecast {expected:.1f} s, took {took:.1f} s ({expected / took - 1:+.0%})")
    assert abs(expected / took - 1) <= MOST_OFF


@pytest.fixture(scope="module")
def photographs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, n = tmp_path_factory.mktemp("dry") / "photographs", 0
    for source in sorted((data / "caltech256").iterdir()):
        n_more = min(N_PHOTOGRAPHS - n, len([*source.iterdir()]))
        if n_more >= 20:
            shutil.copytree(source, folder / source.name)
            for extra in sorted((folder / source.name).iterdir())[n_more:]:
                extra.unlink()
            n += n_more
    return folder


def test_photographs_then_a_long_training(
    photographs: Path, real_options: list[str], tmp_path: Path
) -> None:
    options = ["--images", photographs, "--out", tmp_path / "out", *real_options]
    compare(f"{N_PHOTOGRAPHS} photographs", *options)
    longer = ["--train.epochs", "2000", "--train.n-shards", "3", "--train.averaging-frequency", "5"]
    compare("a long training on their features", *options, *longer)
