"""Comparison of what a result follows from with what is asked for now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def differences(asked: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """What differs between two settings, one text each.

    Examples
    --------
    >>> differences({"layer": "fc2", "seed": 0}, {"layer": "fc1", "seed": 0})
    ["layer: asked for 'fc2', stored 'fc1'"]
    >>> differences({"train": {"l2": 0.0}}, {"train": {"l2": 0.1}})
    ['train.l2: asked for 0.0, stored 0.1']
    """
    asked, stored = _flat(asked), _flat(stored)
    return [
        f"{name}: asked for {asked.get(name)!r}, stored {stored.get(name)!r}"
        for name in sorted({*asked, *stored})
        if asked.get(name) != stored.get(name)
    ]


def check_same(
    asked: Mapping[str, Any], stored: Mapping[str, Any], what: str, advice: str = ""
) -> None:
    """Refuse settings that differ: `what` says of what, `advice` what to do.

    Raises
    ------
    ValueError
        Naming each difference.

    Examples
    --------
    >>> check_same({"seed": 0}, {"seed": 1}, "The split is another", "Give --seed as it was.")
    Traceback (most recent call last):
        ...
    ValueError: The split is another:
      seed: asked for 0, stored 1
    Give --seed as it was.
    """
    if found := differences(asked, stored):
        raise ValueError("\n  ".join([f"{what}:", *found]) + f"\n{advice}" * bool(advice))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat
