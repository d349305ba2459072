"""How an option is declared and checked: its default, one line of help, and what is allowed."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Union

from dtl.config.errors import UserError
from dtl.config.secrets import HIDDEN, hide_options, hide_values
from dtl.config.text import printable

_MEMORY = re.compile(r"(\d+(?:\.\d+)?) ?([kMGT])(i?)B")
_IN_WORDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text",
    tuple[str, ...]: "a list of texts", tuple[int, ...]: "a list of whole numbers",
    tuple[float, ...]: "a list of numbers",
}  # fmt: skip


class Rule(NamedTuple):
    """Values that an option may have: a test, and the same in words."""

    allows: Callable[[Any], bool]
    words: str


def above(limit: float) -> Rule:
    """Allow larger numbers."""
    return Rule(lambda value: value > limit, f"above {limit}")


def at_least(limit: int) -> Rule:
    """Allow a number and all larger ones."""
    return Rule(lambda value: value >= limit, f"{limit} or more")


def each(rule: Rule, *, may_be_empty: bool = False) -> Rule:
    """Allow lists whose members a rule allows."""
    return Rule(
        lambda values: (may_be_empty or bool(values)) and all(map(rule.allows, values)),
        f"numbers, each {rule.words}",
    )


BELOW_1 = Rule(lambda value: 0 <= value < 1, "from 0 to below 1")
MEMORY = Rule(lambda text: _MEMORY.fullmatch(text) is not None, "an amount such as 4GiB")
NAME = Rule(bool, "a name")
URL = Rule(
    lambda url: "::" not in url and printable(url) == url,
    "a URL or path without :: (which chains filesystems) and control characters; rename it, or "
    "give a link to it",
)


def parse_memory(text: str) -> int:
    """Return the bytes in a text such as ``4GiB``.

    Examples
    --------
    >>> parse_memory("4 GiB"), parse_memory("1.5GB")
    (4294967296, 1500000000)
    """
    if (match := _MEMORY.fullmatch(text)) is None:
        raise UserError(f"Memory must be an amount such as 4GiB. Received: {text!r}.")
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** ("kMGT".index(prefix) + 1))


def option(default: Any, help: str, rule: Rule | None = None) -> Any:
    """Declare one option."""
    return dataclasses.field(default=default, metadata={"help": help, "rule": rule})


# By hand, for pydantic's dataclasses with cyclopts took longer to start and said less: their
# imports and schemas take 0.7 s of the half that `--help` has, "Input should be a valid string"
# names neither the key nor what to do, and strict types refuse TOML's lists.
@dataclass(frozen=True)
class Section:
    """Options that are checked, each and together, when they are made."""

    @classmethod
    def get_name(cls) -> str:
        """Return the name of its table in TOML; empty at the top."""
        return cls.__name__.removesuffix("Config").lower()

    def __post_init__(self) -> None:
        for name, kind in typing.get_type_hints(type(self)).items():
            if dataclasses.is_dataclass(kind):
                continue
            key = f"{self.get_name()}.{name}".lstrip(".")
            value = _convert(getattr(self, name), kind, key)
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{key} must be a finite number. Received: {value!r}.")
            object.__setattr__(self, name, value)
            rule: Rule | None = self.__dataclass_fields__[name].metadata["rule"]
            if rule is not None and not rule.allows(value):
                raise UserError(f"{key} must be {rule.words}. Received: {_show(key, value)}.")
        for is_wrong, problem in self._conflicts():
            if is_wrong:
                raise UserError(problem)

    def _conflicts(self) -> Iterator[tuple[bool, str]]:
        """Yield whether options contradict each other, and the message if so."""
        return iter(())


def list_members(kind: Any) -> tuple[Any, ...]:
    """Return the types that an option may have, in the order in which a text is tried."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        # A whole number is tried before a fraction: "5000" is a count, "0.5" a share.
        return tuple(sorted(typing.get_args(kind), key=[int, float, str].index))
    return (kind,)


def _convert(value: Any, kind: Any, key: str) -> Any:
    for member in list_members(kind):
        if typing.get_origin(member) is Literal:
            if value in typing.get_args(member):
                return value
            choices = ", ".join(typing.get_args(member))
            raise UserError(f"{key} must be one of {choices}. Received: {value!r}.")
        if typing.get_origin(member) is tuple:
            item = typing.get_args(member)[0]
            kinds = {item, int} if item is float else {item}
            values = [value] if type(value) in kinds else value
            if isinstance(values, list | tuple) and all(type(v) in kinds for v in values):
                return tuple(map(item, values))
        elif member is float and type(value) is int and len(list_members(kind)) == 1:
            return float(value)
        elif type(value) is member:
            return value
    expected = " or ".join(_IN_WORDS[m] for m in list_members(kind))
    raise UserError(f"{key} must be {expected}. Received: {_show(key, value)}.")


def _show(key: str, value: Any) -> str:
    if key != "yarn.env":
        return repr(hide_options(value))
    return repr(tuple(hide_values(value))) if isinstance(value, list | tuple) else HIDDEN
