"""The command line's arguments, and its help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import options_page
import pytest

from dtl import config
from dtl.pipeline import arguments
from dtl.pipeline.arguments import parse_arguments
from dtl.pipeline.commands import COMMANDS
from dtl.pipeline.messages import name_flags

HEAVY = {
    "bokeh", "dask", "distributed", "fsspec", "keras", "numpy", "pandas", "pyarrow", "rich",
    "scipy", "skein", "sklearn", "tensorflow", "zarr",
}  # fmt: skip


def ends(capsys: pytest.CaptureFixture[str], status: int, *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(argv)
    assert stopped.value.code == status
    printed = capsys.readouterr()
    return printed.err if status else printed.out


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["run", "--tune.eta", "2"]])
def test_the_command_line_answers_before_anything_heavy_is_imported(argv: list[str]) -> None:
    code = (
        "import sys; from dtl.pipeline import main\n"
        f"try: main({argv!r})\nexcept SystemExit: pass\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_short_and_has_its_options_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = COMMANDS[name]
    text = ends(capsys, 0, name, "--help")
    assert len(text.splitlines()) <= 60
    assert f"usage: dtl {name} {command.example}\n" in text
    everything = ends(capsys, 0, name, "--help-all")
    for option in config.list_options():
        # A further option's name stands without its section.
        named = option.flag.removeprefix(f"--{option.section}.") in text
        assert named or not command.uses(option.key)
        assert (f"  {option.flag} " in everything) == (
            command.uses(option.key) or (option.key == "out" and name == "pack-environment")
        )
        if option.key in arguments.COMMON and command.uses(option.key):
            assert f"\n  {option.flag} " in text


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_is_one(name: str) -> None:
    assert parse_arguments([name, *COMMANDS[name].example.split()]).command == name


def test_an_option_of_another_command_is_refused_by_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = ends(capsys, 2, "run", "--out", "x", "--tune.eta=3")
    assert "--tune.eta is an option of tune, not of run" in said
    assert "Did you mean --train.l2?" in ends(capsys, 2, "run", "--train.l", "3")
    # Options of earlier stages are accepted: they are compared with what is stored.
    assert vars(parse_arguments(["evaluate", "--images", "x"]))["images.url"] == "x"


def test_the_page_of_options_is_what_the_code_says() -> None:
    page = Path(arguments.__file__).parents[1] / "OPTIONS.md"
    assert page.read_text() == options_page.make_page(), (
        "python tests/options_page.py > dtl/OPTIONS.md"
    )


def test_every_option_has_its_flag_in_messages() -> None:
    for option in config.list_options():
        assert name_flags(f"Set `{option.key}`.") == f"Set {option.flag}."
