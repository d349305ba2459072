"""How an option is declared and checked: its default, one line of help, and what is allowed."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import field
from typing import Any, Literal, Union

from dtl.config.errors import UserError

NO_URL = ""

_IN_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple[str, ...]: "a list of texts",
    tuple[int, ...]: "a list of whole numbers",
    tuple[float, ...]: "a list of numbers",
}


def option(
    default: Any,
    help: str,
    *,
    check: Callable[[Any], bool] | None = None,
    allowed: str = "",
) -> Any:
    """Declare one option; `allowed` says in words what `check` tests."""
    metadata = {"help": help, "check": check, "allowed": allowed}
    return field(default=default, metadata=metadata)


def positive(value: float) -> bool:
    """Whether a number is above 0."""
    return value > 0


def not_negative(value: float) -> bool:
    """Whether a number is 0 or more."""
    return value >= 0


def is_share(value: float | int | str) -> bool:
    """Whether a value is a fraction below 1, a number of images, or ``rest``."""
    if isinstance(value, str):
        return value == "rest"
    return 0 <= value < 1 if isinstance(value, float) else value >= 0


_MEMORY = re.compile(r"(\d+(?:\.\d+)?) ?([kMGT])(i?)B")


def is_memory(text: str) -> bool:
    """Return whether `parse_memory` understands a text."""
    return _MEMORY.fullmatch(text) is not None


def parse_memory(text: str) -> int:
    """Return the bytes in a text such as ``4GiB``.

    Examples
    --------
    >>> parse_memory("4 GiB"), parse_memory("1.5GB")
    (4294967296, 1500000000)
    """
    match = _MEMORY.fullmatch(text)
    if match is None:
        raise UserError(f"Memory must be an amount such as 4GiB. Received: {text!r}.")
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** ("kMGT".index(prefix) + 1))


def memory(default: str, help: str) -> Any:
    """Declare an amount of memory."""
    return option(default, f"memory {help}", check=is_memory, allowed="an amount such as 4GiB")


def vcores(default: int, help: str) -> Any:
    """Declare a number of virtual cores."""
    return option(default, f"virtual cores {help}", check=positive, allowed="1 or more")


class Section:
    """Checks the type and range of each option when a section is made."""

    _name: typing.ClassVar[str] = ""

    def __post_init__(self) -> None:
        hints = hints_of(type(self))
        for spec in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, spec.name)
            if dataclasses.is_dataclass(hints[spec.name]):
                continue
            key = f"{self._name}.{spec.name}".lstrip(".")
            value = _typed(value, hints[spec.name], key)
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{key} must be a finite number. Received: {value!r}.")
            object.__setattr__(self, spec.name, value)
            check = spec.metadata["check"]
            if check is not None and not check(value):
                raise UserError(f"{key} must be {spec.metadata['allowed']}. Received: {value!r}.")


def hints_of(section: type) -> dict[str, Any]:
    """The types of a section's options by name."""
    names = {spec.name for spec in dataclasses.fields(section)}
    return {k: v for k, v in typing.get_type_hints(section).items() if k in names}


def members_of(kind: Any) -> tuple[Any, ...]:
    """The types that an option may have, in the order in which a text is tried."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        # A whole number is tried before a fraction: "5000" is a count, "0.5" a share.
        return tuple(sorted(typing.get_args(kind), key=[int, float, str].index))
    return (kind,)


def _typed(value: Any, kind: Any, key: str) -> Any:
    for member in members_of(kind):
        if typing.get_origin(member) is Literal:
            if value in typing.get_args(member):
                return value
            choices = ", ".join(typing.get_args(member))
            raise UserError(f"{key} must be one of {choices}. Received: {value!r}.")
        if typing.get_origin(member) is tuple:
            item = typing.get_args(member)[0]
            kinds = {item, int} if item is float else {item}
            if type(value) in kinds:
                return (item(value),)
            if isinstance(value, list | tuple) and all(type(v) in kinds for v in value):
                return tuple(map(item, value))
        elif member is float and type(value) is int and len(members_of(kind)) == 1:
            return float(value)
        elif type(value) is member:
            return value
    expected = " or ".join(_IN_WORDS[m] for m in members_of(kind))
    raise UserError(f"{key} must be {expected}. Received: {value!r}.")
