"""Lines in the terminal, in which an option goes by its flag."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import Any


def print_line(text: str) -> None:
    """Print to stdout at once, without secrets; do nothing once nobody reads it."""
    try:
        sys.stdout.write(_show(text) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # such as `dtl … | head`: the work itself goes on
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    except OSError as error:
        raise OSError(f"Cannot write to the standard output: {error}.") from error


def print_error(text: str) -> None:
    """Print the error that ends a command to stderr, without secrets."""
    with contextlib.suppress(OSError):  # there is no other place to tell it
        sys.stderr.write(f"error: {name_flags(_show(text))}\n")
        sys.stderr.flush()


def _show(text: str) -> str:
    from dtl.config import hide  # with all of `config`: see below
    from dtl.config.text import printable

    return hide(printable(text, keep="\n"))


def list_notes(error: BaseException) -> str:
    """Return the notes on an error, a line each."""
    return "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))


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
        return name_flags(_show(super().format(record)))


def log_to_stderr() -> None:
    """Show what dtl logs."""
    ours = logging.getLogger("dtl")
    if not ours.handlers:
        handler = _ToStderr()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
