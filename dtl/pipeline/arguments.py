"""The arguments of the command line, and what `--help` says of them."""

from __future__ import annotations

import argparse
import difflib
import functools
import itertools
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import NoReturn

from dtl import config
from dtl.pipeline.commands import COMMANDS, Command

COMMON = (
    "images.url", "out", "overwrite", "cluster.address", "cluster.n_workers", "features.network",
    "features.layers", "features.weights", "split.validation", "split.test", "train.epochs",
    "train.learning_rate", "train.l2",
)  # fmt: skip
"""Options that `--help` explains; of the others it gives the names, and `--help-all` the rest."""


class _Parser(argparse.ArgumentParser):
    command = ""
    flags: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized"):
            for word in message.split():
                message += self._hint(word.split("=")[0])
        super().error(config.hide(message))

    def _hint(self, word: str) -> str:
        for option in config.list_options():
            if option.flag == word:
                users = [name for name, command in COMMANDS.items() if command.accepts(option.key)]
                return f". {word} is an option of {', '.join(users)}, not of {self.command}"
        close = difflib.get_close_matches(word, self.flags, 1)
        return f". Did you mean {close[0]}?" if close else ""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command and its arguments; options that are given lie under their keys."""
    parser = argparse.ArgumentParser(
        prog="dtl",
        description="Folders of labelled photographs to an image classifier, on Dask.",
        epilog="`dtl COMMAND --help` shows the options of a command.",
    )
    names = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        names.add_parser(name, help=command.help, add_help=False)
    chosen: str = parser.parse_args(argv[:1]).command
    parser = _make_parser(chosen, COMMANDS[chosen], everything="--help-all" in argv)
    return parser.parse_args(argv[1:], argparse.Namespace(command=chosen))


def _make_parser(name: str, command: Command, *, everything: bool) -> argparse.ArgumentParser:
    """Make the parser of a command, which explains all of its options, or the common ones."""
    width = min(shutil.get_terminal_size().columns, 100)
    taken = {option.key: option for option in config.list_options() if command.accepts(option.key)}
    used = [key for key in taken if command.uses(key)]
    explained = (
        {*used} if everything or len(used) <= len(COMMON) else {*COMMON, *command.explained.split()}
    )
    others = [taken[key] for key in used if key not in explained]
    parser = _Parser(
        prog=f"dtl {name}",
        usage=f"dtl {name} {command.example}\n       dtl {name} [ARGUMENTS]",
        description=f"{command.help}.",
        epilog=_list_names(others, name, width),
        formatter_class=functools.partial(
            argparse.RawDescriptionHelpFormatter, max_help_position=28, width=width
        ),
        allow_abbrev=False,
        add_help=False,
    )
    parser.command, parser.flags = name, [option.flag for option in taken.values()]
    command.add_arguments(parser)
    common = parser.add_argument_group("common options")
    if command.starts_from == "model":
        common.add_argument("--model", metavar="URL", required=True, help="out of a run")
    for key in COMMON:
        if key in taken:
            _add_option(common, taken.pop(key), shown=key in used)
    for section, options in itertools.groupby(taken.values(), lambda option: option.section):
        group = parser.add_argument_group(f"[{section}]" if section else "every stage")
        for option in options:
            _add_option(group, option, shown=option.key in explained)
    general = parser.add_argument_group("every command")
    if command.starts_from != "nothing":
        general.add_argument("--config", metavar="URL", help="TOML file with options of a run")
    general.add_argument("--debug", action="store_true", help="show where an error came from")
    general.add_argument("-h", "--help", action="help", help="show this and exit")
    general.add_argument("--help-all", action="help", help="explain every option, and exit")
    return parser


def _add_option(group: argparse._ArgumentGroup, option: config.Option, *, shown: bool) -> None:
    is_flag = option.type is bool
    is_usual = option.default is False or not option.default_text
    default = "" if is_usual else f" (default: {option.default_text})"
    group.add_argument(
        option.flag,
        dest=option.key,
        type=functools.partial(config.parse_text, option),
        default=argparse.SUPPRESS,
        metavar=option.metavar,
        help=f"{option.help}{default}".replace("%", "%%") if shown else argparse.SUPPRESS,
        nargs="?" if is_flag else None,
        const=True if is_flag else None,
    )


def _list_names(others: Iterable[config.Option], command: str, width: int) -> str:
    lines = []
    for section, group in itertools.groupby(others, lambda option: option.section):
        names = " ".join(option.flag.removeprefix(f"--{section}.") for option in group)
        start = f"  --{section}.".ljust(14) if section else "  "
        lines += textwrap.wrap(
            names, width, initial_indent=start, subsequent_indent=" " * 14, break_on_hyphens=False
        )
    heading = f"further options, which `dtl {command} --help-all` explains:"
    return "\n".join([heading, *lines]) if lines else ""
