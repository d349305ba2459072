"""Log lines in the terminal, beside progress bars."""

from __future__ import annotations

import logging
import sys
from typing import Any

from dtl.pipeline.messages import name_flags


class _ToStderr(logging.StreamHandler[Any]):
    """Writes to the stderr of the moment: a progress bar replaces it while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return name_flags(super().format(record))


def log_to_stderr() -> None:
    """Show what dtl logs, and of Dask only errors."""
    ours = logging.getLogger("dtl")
    if not ours.handlers:
        handler = _ToStderr()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
    quieten_dask()


def quieten_dask() -> None:
    """Log only Dask's errors; its import sets its levels, so call this again after it."""
    # Dask's other lines tell an operator of the cluster more than a user of it.
    logging.getLogger("distributed").setLevel(logging.ERROR)
