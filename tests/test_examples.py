"""What README.md and examples/ say is true."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtl import config
from dtl.pipeline import commands

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda p: p.name)
def test_example_configurations_are_valid(path: Path) -> None:
    settings = config.build(tomllib.loads(path.read_text()))
    assert settings != config.build({})


def test_the_stages_example_runs(pictures: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "stages.py", pictures, tmp_path / "out",
         "block1_pool", "random"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "24 images" in done.stdout
    assert "first image: " in done.stdout


def table() -> Iterator[str]:
    yield "| option | default | what it is |"
    yield "|---|---|---|"
    for option in config.options():
        default = option.default
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        elif isinstance(default, bool):
            default = str(default).lower()
        shown = f"`{default}`" if default != "" else ""
        text = option.help.replace("|", "\\|")
        yield f"| `{option.flag}` | {shown} | {text} |"


def test_readme_has_every_option() -> None:
    expected = "\n".join(table())
    assert expected in README, f"README.md's table of options should be:\n{expected}"


def test_readme_names_every_command() -> None:
    for name in commands.COMMANDS:
        assert f"dtl.pipeline {name}" in README or f"`{name}`" in README


def test_readme_links_lead_somewhere() -> None:
    import re

    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
