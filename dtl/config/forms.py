"""The forms of a configuration: TOML tables, options of the command line, texts."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dtl.config.errors import UserError
from dtl.config.options import Section, list_members
from dtl.config.sections import Config

RETIRED: Mapping[str, Mapping[str, Any]] = {
    "yarn": {"scheduler_vcores": 1, "driver_vcores": 1, "adaptive_min": 0},
    "train": {
        "lbfgs_tolerance": 1e-5, "lbfgs_max_iterations": 1000, "learning_rate_decay": 0.01,
        "outer_learning_rate": 1.0, "validate_every": 0, "max_seconds": 0.0, "checkpoint_every": 50,
    },
    "tune": {"first_epochs": 10.0},
    "report": {"n_mistakes": 24},
}  # fmt: skip
"""Options of former times by section, each with the value that it always has now.

A stored configuration may still name them, and a stored fingerprint does.
"""


ADDED: Mapping[str, tuple[str, ...]] = {"train": ("normalize",)}
"""Options by section that are part of a fingerprint only where they are not the default.

Results from before an option was added stay valid.
"""


@dataclass(frozen=True)
class Option:
    """One option as the command line and OPTIONS.md show it."""

    key: str
    type: Any
    default: Any
    help: str

    @property
    def section(self) -> str:
        """Its table in TOML; empty at the top."""
        return self.key.rpartition(".")[0]

    @property
    def flag(self) -> str:
        """Its name on the command line: a section's main key goes by the section's name."""
        short = {"cluster.address": "cluster", "images.url": "images", "with_check": "check"}
        return "--" + short.get(self.key, self.key).replace("_", "-")

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it may have; empty if there are too many to list."""
        return typing.get_args(self.type) if typing.get_origin(self.type) is Literal else ()

    @property
    def metavar(self) -> str:
        """The form of its value."""
        if self.choices:
            return "|".join(self.choices)
        if typing.get_origin(self.type) is tuple:
            return "A,B"
        names = {bool: "true|false", int: "N", float: "X"}
        is_url = self.key in ("out", "images.url", "images.labels", "train.start_from")
        forms = [names[member] for member in list_members(self.type) if member is not str]
        return "|".join(forms) or ("URL" if is_url else "TEXT")

    @property
    def default_text(self) -> str:
        """Its default as the command line takes it."""
        if isinstance(self.default, tuple):
            return ",".join(map(str, self.default))
        return str(self.default).lower() if self.type is bool else str(self.default)


def list_options(section: type = Config, prefix: str = "") -> Iterator[Option]:
    """Yield all options in the order of declaration."""
    hints = typing.get_type_hints(section)
    for spec in dataclasses.fields(section):
        kind = hints[spec.name]
        if dataclasses.is_dataclass(kind):
            yield from list_options(typing.cast(type, kind), f"{spec.name}.")
        else:
            yield Option(prefix + spec.name, kind, spec.default, spec.metadata["help"])


def build(*layers: Mapping[str, Any]) -> Config:
    """Make a configuration from nested tables, the later over the earlier.

    An unknown key, and a value of the wrong type or range, is a `UserError`.

    Examples
    --------
    >>> build({"train": {"learning_rate": 0.1}}, {"train": {"epochs": 2}}).train.epochs
    2.0
    >>> build({"train": {"learning_rat": 0.1}})
    Traceback (most recent call last):
        ...
    dtl.config.errors.UserError: Unknown key train.learning_rat. Did you mean learning_rate? ...
    """
    merged: dict[str, Any] = {}
    kinds = typing.get_type_hints(Config)
    for layer in layers:
        for name, value in layer.items():
            if isinstance(value, Mapping):
                value = _drop_retired(name, value)
                if name in RETIRED and not value:
                    continue
            check_known(name, "", kinds)
            if dataclasses.is_dataclass(kinds[name]):
                if not isinstance(value, Mapping):
                    raise UserError(f"[{name}] must be a table of options. Received: {value!r}.")
                for key in value:
                    check_known(key, f"{name}.", typing.get_type_hints(kinds[name]))
                value = {**merged.get(name, {}), **value}
            merged[name] = value
    sections = {name for name in merged if dataclasses.is_dataclass(kinds[name])}
    return Config(**merged | {name: kinds[name](**merged[name]) for name in sections})


def parse_toml(data: bytes) -> dict[str, Any]:
    r"""Read the bytes of a TOML file; a `UserError` if they are none.

    Editors of Windows begin it with a byte-order mark, and end lines with CRLF.

    Examples
    --------
    >>> parse_toml(b"\xef\xbb\xbfseed = 1\r\n")
    {'seed': 1}
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"byte {error.start} is none of UTF-8"
    else:
        try:
            if "\0" not in text:
                return tomllib.loads(text)
            problem = "it has zero bytes"
        except (ValueError, RecursionError) as error:  # ValueError itself for endless numbers
            raise UserError(f"Not valid TOML: {error}.") from error
    raise UserError(f"Not valid TOML: {problem}. Save it as UTF-8, not as UTF-16 or Latin-1.")


def parse_text(option: Option, text: str) -> Any:
    """Turn a command line's text into the option's type."""
    for kind in list_members(option.type):
        try:
            if kind is bool:
                return {"true": True, "false": False}[text.lower()]
            if typing.get_origin(kind) is tuple:
                item = typing.get_args(kind)[0]
                return tuple(item(part.strip()) for part in text.split(",") if part.strip())
            if kind is int or kind is float:
                return kind(text)
        except (ValueError, KeyError):
            continue
    return text


def to_dict(section: Section) -> dict[str, Any]:
    """Return nested tables with TOML's types, of which `build` makes the same options."""

    def use_lists(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in items}

    return dataclasses.asdict(section, dict_factory=use_lists)


def to_fingerprint(section: Section) -> dict[str, Any]:
    """Return a section's options as stored fingerprints have them, the retired ones too.

    Examples
    --------
    >>> to_fingerprint(build({"train": {"normalize": "l2"}}).train)["normalize"]
    'l2'
    >>> "normalize" in to_fingerprint(build().train)
    False
    """
    name = section.get_name()
    defaults = {key: type(section).__dataclass_fields__[key].default for key in ADDED.get(name, ())}
    options = to_dict(section) | dict(RETIRED.get(name, {}))
    return {k: v for k, v in options.items() if k not in defaults or v != defaults[k]}


def check_known(key: str, prefix: str, known: Mapping[str, Any]) -> None:
    """Refuse a key that is not known, with the nearest one that is."""
    if key not in known:
        close = difflib.get_close_matches(key, known, 1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise UserError(f"Unknown key {prefix}{key}. {hint}Known: {', '.join(known)}.")


def _drop_retired(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    retired = RETIRED.get(section, {})
    for name in retired.keys() & values.keys():
        if values[name] != retired[name]:
            raise UserError(
                f"{section}.{name} is no option any more: it is always {retired[name]}. "
                f"Leave it out. Received: {values[name]!r}."
            )
    return {name: value for name, value in values.items() if name not in retired}
