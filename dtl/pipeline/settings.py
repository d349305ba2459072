"""The configuration of a command, from its options, its file and the run that it goes on with."""

from __future__ import annotations

import argparse
import difflib
import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

from dtl import config, storage
from dtl.config import Config
from dtl.pipeline.commands import COMMANDS, Command
from dtl.pipeline.results import Results


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized"):
            known = [option.flag for option in config.options()]
            for word in message.split():
                if close := difflib.get_close_matches(word.split("=")[0], known, 1):
                    message += f". Did you mean {close[0]}?"
        super().error(message)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    parser = _Parser(
        prog="python -m dtl.pipeline",
        description="Folders of labelled photographs to an image classifier, on Dask.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name, help=command.help, description=command.help, allow_abbrev=False
        )
        sub.add_argument("--debug", action="store_true", help="show where an error came from")
        if command.arguments:
            command.arguments(sub)
        if command.alone:
            continue
        sub.add_argument("--config", metavar="URL", help="TOML file with any of the options below")
        if command.needs_model:
            sub.add_argument("--model", metavar="URL", required=True, help="--out of a run")
        for option in config.options():
            sub.add_argument(
                option.flag,
                dest=option.key,
                type=functools.partial(config.parse_text, option),
                default=argparse.SUPPRESS,
                metavar=option.metavar,
                help=option.described,
                nargs="?" if option.type is bool else None,
                const=True if option.type is bool else None,
            )
    return parser


def resolve(arguments: argparse.Namespace, command: Command) -> Config:
    """Resolve the configuration of a command, with absolute URLs."""
    given: dict[str, Any] = {}
    for option in config.options():
        if option.key in arguments:
            *section, name = option.key.split(".")
            table = given.setdefault(section[0], {}) if section else given
            table[name] = getattr(arguments, option.key)
    layers: list[Mapping[str, Any]] = [command.base]
    file: dict[str, Any] = {}
    if arguments.config:
        if not storage.exists(arguments.config):
            raise FileNotFoundError(f"No such file: {arguments.config}. Check --config.")
        file = config.parse_toml(storage.read_bytes(arguments.config).decode(), arguments.config)
    if command.goes_on and (out := given.get("out") or file.get("out")):
        layers.append(Results(out).config())
    if command.needs_model:
        layers.append(Results(arguments.model).config() | {"out": ""})
        layers.append({"images": {"url": ""}, "train": {"layer": ""}})
    settings = config.build(*layers, file, given)
    _ = settings.layer  # says if it is none of the layers
    storage.use_hdfs_client(settings.storage.hdfs_client)
    weights = settings.features.weights
    if weights not in ("", "imagenet", "random"):
        weights = storage.absolute(weights)
    return replace(
        settings,
        out=settings.out and storage.absolute(settings.out),
        images=replace(
            settings.images, url=settings.images.url and storage.absolute(settings.images.url)
        ),
        features=replace(settings.features, weights=weights),
        train=replace(
            settings.train,
            start_from=settings.train.start_from and storage.absolute(settings.train.start_from),
        ),
    )
