"""The configuration of a command, from its options, its file and the run that it goes on with."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dtl import config, storage
from dtl.config import Config
from dtl.pipeline.commands import Command
from dtl.pipeline.results import Results


def read_options(arguments: argparse.Namespace, command: Command) -> Config:
    """Read the options of a command, with absolute URLs.

    A later one wins: the defaults, the command's own, the run's that it goes on with, the file's
    (``--config``), the command line's.
    """
    given = _nested(arguments)
    layers: list[Mapping[str, Any]] = [command.base]
    file: dict[str, Any] = {}
    if arguments.config:
        if not storage.exists(arguments.config):
            raise FileNotFoundError(f"No such file: {arguments.config}. Check --config.")
        file = config.parse_toml(storage.read_bytes(arguments.config).decode(), arguments.config)
    if command.starts_from == "out" and (out := given.get("out") or file.get("out")):
        layers.append(Results(out).config())
    if command.starts_from == "model":
        layers.append(Results(arguments.model).config() | {"out": ""})
        layers.append({"images": {"url": ""}, "train": {"layer": ""}})
    options = config.build(*layers, file, given)
    storage.use_hdfs_client(options.storage.hdfs_client)
    return _with_absolute_urls(options)


def _nested(arguments: argparse.Namespace) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for option in config.list_options():
        if option.key in arguments:
            *section, name = option.key.split(".")
            table = given.setdefault(section[0], {}) if section else given
            table[name] = getattr(arguments, option.key)
    return given


def _with_absolute_urls(options: Config) -> Config:
    def absolute(url: str) -> str:
        return storage.absolute(url) if url not in ("", "imagenet", "random") else url

    images, features, train = options.images, options.features, options.train
    return replace(
        options,
        out=absolute(options.out),
        images=replace(images, url=absolute(images.url)),
        features=replace(features, weights=absolute(features.weights)),
        train=replace(train, start_from=absolute(train.start_from)),
    )
