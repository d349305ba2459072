"""Comparison of the fingerprint of a stored result with the fingerprint wanted now."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from dtl.config.errors import DifferentSettingsError

_ADVICE = "Give the settings as they were, choose another `out`, or set `overwrite` to replace it."


class Claim(Enum):
    """State of a result's place, and so what a command does next."""

    ABSENT = "nothing is stored: begin"
    BEGUN = "a part of the wanted result is stored: go on"
    FINISHED = "the wanted result is stored: use it"
    REPLACE = "another result is stored, which `overwrite` allows to remove: begin again"


def claim(
    wanted: Mapping[str, Any],
    stored: Mapping[str, Any] | None,
    place: str,
    *,
    finished: bool = False,
    overwrite: bool = False,
    advice: str = _ADVICE,
) -> Claim:
    """Decide whether a result is to be begun, continued, used or replaced.

    This is the only place that decides it. Read what is stored before: a file that cannot be read
    is a `UserError` of its reader, and never counts as a result of other settings.

    `stored` is None where nothing is, `finished` says whether it is whole, and `overwrite` allows a
    result of other settings to be replaced. Otherwise a `DifferentSettingsError` names each
    difference; its message begins with `place` and ends with `advice`.

    Examples
    --------
    >>> claim({"seed": 0}, {"seed": 0}, "out", finished=True).name
    'FINISHED'
    >>> claim({"seed": 0}, {"seed": 1}, "out", overwrite=True).name
    'REPLACE'
    >>> claim({"seed": 0}, {"seed": 1}, "out")
    Traceback (most recent call last):
        ...
    dtl.config.errors.DifferentSettingsError: out was made with other settings:
      seed: asked for 0, stored 1
    Give the settings as they were, choose another `out`, or set `overwrite` to replace it.
    """
    if stored is None:
        return Claim.ABSENT
    if overwrite and differences(wanted, stored):
        return Claim.REPLACE
    check_same(wanted, stored, f"{place} was made with other settings", advice)
    return Claim.FINISHED if finished else Claim.BEGUN


def differences(wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Name what differs between two fingerprints, one text each.

    Examples
    --------
    >>> differences({"layer": "fc2", "seed": 0}, {"layer": "fc1", "seed": 0})
    ["layer: asked for 'fc2', stored 'fc1'"]
    >>> differences({"train": {"l2": 0.0}}, {"train": {"l2": 0.1}})
    ['train.l2: asked for 0.0, stored 0.1']
    """
    wanted, stored = flatten(wanted), flatten(stored)
    return [
        f"{name}: asked for {wanted.get(name)!r}, stored {stored.get(name)!r}"
        for name in sorted({*wanted, *stored})
        if wanted.get(name) != stored.get(name)
    ]


def check_same(
    wanted: Mapping[str, Any], stored: Mapping[str, Any], problem: str, advice: str = ""
) -> None:
    """Raise a `DifferentSettingsError` with a problem, each difference, and advice, if any."""
    if found := differences(wanted, stored):
        message = "\n  ".join([f"{problem}:", *found])
        raise DifferentSettingsError(f"{message}\n{advice}" if advice else message)


def flatten(fingerprint: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, whose keys have dots.

    Examples
    --------
    >>> flatten({"train": {"l2": 0.1}, "seed": 0})
    {'train.l2': 0.1, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for name, value in fingerprint.items():
        nested = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat
