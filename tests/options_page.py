"""The page of all options: ``python tests/options_page.py > dtl/OPTIONS.md``."""

from __future__ import annotations

import itertools
import sys
import typing
from collections.abc import Iterator

from dtl import config
from dtl.config import RETIRED, Config, Option
from dtl.pipeline.commands import COMMANDS


def make_page() -> str:
    """Return the page, in Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Options"
    yield ""
    yield "Written by `python tests/options_page.py`; a test compares."
    yield ""
    yield "Each option goes on the command line, as below, or into a TOML file for `--config`:"
    yield "`--train.learning-rate 0.1` is `learning_rate = 0.1` under `[train]`. The command line"
    yield "wins over the file, and the file over the run that a command goes on with."
    yield "A list has commas on the command line, and is a list in TOML."
    sections = typing.get_type_hints(Config)
    for section, options in itertools.groupby(config.list_options(), lambda option: option.section):
        yield ""
        yield f"## [{section}]" if section else "## Every stage"
        yield ""
        if section:
            yield str(sections[section].__doc__).replace("``", "`")
            yield ""
        yield "| option | default | what it is |"
        yield "|---|---|---|"
        yield from map(_row, options)
    yield ""
    yield "## Commands, and the options that each uses"
    yield ""
    yield "| command | what it does | options |"
    yield "|---|---|---|"
    for name, command in COMMANDS.items():
        used = ", ".join(f"`{option}`" for option in command.options.split())
        yield f"| `dtl {name}` | {command.help} | {used} |"
    yield ""
    yield "## Retired options"
    yield ""
    yield "These are options no more, and always have the value below. A file that names one with"
    yield "this value stays valid."
    yield ""
    yield "| key | value |"
    yield "|---|---|"
    for section, values in RETIRED.items():
        for name, value in values.items():
            yield f"| `{section}.{name}` | `{value}` |"


def _row(option: Option) -> str:
    default = f"`{option.default_text}`" if option.default_text else ""
    choices = f" ({', '.join(option.choices)})" if option.choices else ""
    return f"| `{option.flag}` | {default} | {option.help}{choices} |"


if __name__ == "__main__":
    sys.stdout.write(make_page())
