"""The arguments of the command line."""

from __future__ import annotations

import argparse
import difflib
import functools
from collections.abc import Sequence
from typing import NoReturn

from dtl import config
from dtl.pipeline.commands import COMMANDS, Command


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized"):
            known = [option.flag for option in config.options()]
            for word in message.split():
                if close := difflib.get_close_matches(word.split("=")[0], known, 1):
                    message += f". Did you mean {close[0]}?"
        super().error(message)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command and its arguments; an option's value lies under its key.

    Raises
    ------
    SystemExit
        With status 0 after ``--help``, and 2 for arguments that the command does not have.
    """
    parser = _Parser(
        prog="dtl",
        description="Folders of labelled photographs to an image classifier, on Dask.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name, help=command.help, description=command.help, allow_abbrev=False
        )
        if name in argv[:1]:  # the arguments of the other commands are not looked at
            _add_arguments(sub, command)
    return parser.parse_args(argv)


def _add_arguments(parser: argparse.ArgumentParser, command: Command) -> None:
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    command.add_arguments(parser)
    if command.starts_from == "nothing":
        return
    parser.add_argument("--config", metavar="URL", help="TOML file with any of the options below")
    if command.starts_from == "model":
        parser.add_argument("--model", metavar="URL", required=True, help="--out of a run")
    for option in config.options():
        parser.add_argument(
            option.flag,
            dest=option.key,
            type=functools.partial(config.parse_text, option),
            default=argparse.SUPPRESS,
            metavar=option.metavar,
            help=option.described,
            nargs="?" if option.type is bool else None,
            const=True if option.type is bool else None,
        )
