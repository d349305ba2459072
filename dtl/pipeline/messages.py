"""Lines in the terminal, in which an option goes by its flag."""

from __future__ import annotations

import functools
import logging
import re
import sys
from collections.abc import Mapping
from typing import Any


def print_line(text: str) -> None:
    """Print to stdout at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def name_flags(message: str) -> str:
    """Put the flag of the command line in place of each option in backticks.

    Messages below `dtl.pipeline` name options as TOML does, for notebooks read them, too.

    Examples
    --------
    >>> name_flags("Choose another `out`, or set `train.keep` = last. See `dask worker --help`.")
    'Choose another --out, or set --train.keep last. See `dask worker --help`.'
    """

    def put(found: re.Match[str]) -> str:
        flag = _flags().get(found[1])
        return found[0] if flag is None else flag + " " * bool(found[2])

    return re.sub(r"`([a-z_0-9.]+)`( = )?", put, message)


@functools.cache
def _flags() -> Mapping[str, str]:
    from dtl import config  # only where there is something to say: `--help` answers sooner

    of_fetch = {"source": "--from", "md5": "--md5"}
    return {option.key: option.flag for option in config.list_options()} | of_fetch


class _ToStderr(logging.StreamHandler[Any]):
    """Writes to the stderr of the moment: a progress bar replaces it while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return name_flags(super().format(record))


def log_to_stderr() -> None:
    """Show what dtl logs."""
    ours = logging.getLogger("dtl")
    if not ours.handlers:
        handler = _ToStderr()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
