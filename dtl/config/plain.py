"""Values of JSON's types as dataclasses, checked by the types of their fields."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin, get_type_hints


# By hand: pydantic's TypeAdapter makes 1.0 of 1, and takes longer to import than to read.
def from_plain(kind: Any, value: Any, name: str = "it") -> Any:
    """Return the value of which `asdict` and JSON made this one, by the types of its fields.

    Another value is a `ValueError`, which says where it differs; `name` is that of the whole.

    Examples
    --------
    >>> from_plain(tuple[float, ...], [1.5, 2])
    (1.5, 2)
    >>> from_plain(Mapping[str, tuple[int, ...]], {"cat": [1, "2"]}, "counts")
    Traceback (most recent call last):
        ...
    ValueError: counts.cat[1] must be a whole number. Received: '2'
    """
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, value, name)
    origin, members = get_origin(kind), get_args(kind)
    if origin is tuple:
        return _read_items(members, value, name)
    if origin is Mapping or origin is dict:
        _check(value, isinstance(value, Mapping), name, "an object")
        return {key: from_plain(members[1], v, f"{name}.{key}") for key, v in value.items()}
    if kind is float:  # a whole number is left one
        return _check(value, type(value) in (int, float), name, "a number")
    return _check(value, kind is Any or type(value) is kind, name, _IN_WORDS.get(kind, "other"))


_IN_WORDS = {bool: "true or false", int: "a whole number", str: "a text"}


def _read_fields(kind: Any, value: Any, name: str) -> Any:
    _check(value, isinstance(value, Mapping), name, "an object")
    fields, needed = _list_fields(kind)
    if unknown := sorted(value.keys() - fields.keys()):
        raise ValueError(f"{name} has an unknown field: {unknown[0]}")
    if missing := sorted(needed - value.keys()):
        raise ValueError(f"{name} lacks the field {missing[0]}")
    return kind(**{key: from_plain(fields[key], v, f"{name}.{key}") for key, v in value.items()})


def _read_items(members: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    _check(value, isinstance(value, list | tuple), name, "a list")
    kinds: Iterable[Any] = members
    if members[-1] is Ellipsis:
        kinds = itertools.repeat(members[0], len(value))
    elif len(value) != len(members):
        raise ValueError(f"{name} must have {len(members)} values. Received: {value!r}")
    if {*members} <= {int, Ellipsis} and {*map(type, value)} <= {int}:
        return tuple(value)  # a table of confusions has 10^6 of them
    pairs = zip(kinds, value, strict=True)
    return tuple(from_plain(k, v, f"{name}[{i}]") for i, (k, v) in enumerate(pairs))


@functools.cache
def _list_fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the types of a dataclass's fields by name, and the names of those that it needs."""
    hints, absent = get_type_hints(kind), dataclasses.MISSING
    fields = dataclasses.fields(kind)
    needed = {f.name for f in fields if f.default is absent and f.default_factory is absent}
    return {field.name: hints[field.name] for field in fields}, frozenset(needed)


def _check(value: Any, fits: bool, name: str, expected: str) -> Any:
    if not fits:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
        raise ValueError(f"{name} must be {expected}. Received: {shown}")
    return value
