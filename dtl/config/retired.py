"""Options that there were once, each with the value that it always has now.

A stored configuration may still name them, and a stored fingerprint does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dtl.config.errors import UserError

RETIRED: Mapping[str, Mapping[str, Any]] = {
    "yarn": {"scheduler_vcores": 1, "driver_vcores": 1, "adaptive_min": 0},
    "train": {
        "lbfgs_tolerance": 1e-5,
        "lbfgs_max_iterations": 1000,
        "learning_rate_decay": 0.01,
        "outer_learning_rate": 1.0,
        "validate_every": 0,
        "max_seconds": 0.0,
        "checkpoint_every": 50,
    },
    "tune": {"first_epochs": 10.0},
    "report": {"n_mistakes": 24},
}
"""Values by section and name: what each was unless set."""


def drop_retired(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Drop retired options from a table.

    Raises
    ------
    UserError
        If one has another value than it always has now.

    Examples
    --------
    >>> drop_retired("train", {"epochs": 2, "max_seconds": 0})
    {'epochs': 2}
    >>> drop_retired("report", {"n_mistakes": 9})
    Traceback (most recent call last):
        ...
    dtl.config.errors.UserError: report.n_mistakes is no option any more: it is always 24. ...
    """
    retired = RETIRED.get(section, {})
    for name in retired.keys() & values.keys():
        if values[name] != retired[name]:
            raise UserError(
                f"{section}.{name} is no option any more: it is always {retired[name]}. "
                f"Leave it out. Received: {values[name]!r}."
            )
    return {name: value for name, value in values.items() if name not in retired}
