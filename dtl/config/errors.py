"""Errors that a person can mend; any other is a fault of dtl."""

from __future__ import annotations

from dataclasses import dataclass

DRIVER = "driver"
"""The place of a fault that is on no worker."""


class UserError(ValueError):
    """Input, an option or a file that has to be changed; the message says how."""


class DifferentSettingsError(UserError):
    """Stored results that follow from other settings than the ones given now."""


class MissingExtraError(UserError, ImportError):
    """A package that one of dtl's extras installs."""


@dataclass(frozen=True)
class Fault:
    """Something that would make a run fail, and what to type.

    Parameters
    ----------
    check : str
        The name of the check that found it.
    message : str
        What was expected, and what came.
    advice : str
        What to type, or to change.
    where : str
        The address of a worker, or `DRIVER`.
    """

    check: str
    message: str
    advice: str
    where: str = DRIVER

    def __str__(self) -> str:
        place = "" if self.where == DRIVER else f"Worker {self.where}: "
        return f"{place}{self.message} {self.advice}"


_MOST_SHOWN = 5


class FaultsError(UserError):
    """Faults that one check found, of which several workers may have one each.

    Examples
    --------
    >>> print(FaultsError([Fault("clocks", "2 s behind.", "Set its clock.", "tcp://b:1")]))
    Worker tcp://b:1: 2 s behind. Set its clock.
    """

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        lines = [*map(str, faults[:_MOST_SHOWN])]
        if n_more := len(faults) - _MOST_SHOWN:
            lines += [f"And {n_more} more workers."] * (n_more > 0)
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type, tuple[list[Fault]]]:
        return type(self), (self.faults,)


def refuse(faults: list[Fault]) -> None:
    """Raise a `FaultsError`, if there are faults."""
    if faults:
        raise FaultsError(faults)
