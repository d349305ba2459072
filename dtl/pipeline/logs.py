"""Log lines in the terminal, beside progress bars."""

from __future__ import annotations

import logging
import sys
from typing import Any


class _ToStderr(logging.StreamHandler[Any]):
    """Writes to what is stderr now: a progress bar takes its place while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def log_to_stderr() -> None:
    """Show what dtl logs, and of Dask only errors."""
    ours = logging.getLogger("dtl")
    if not ours.handlers:
        handler = _ToStderr()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
    # Dask's own lines tell an operator of the cluster more than a user of it.
    logging.getLogger("distributed").setLevel(logging.ERROR)
