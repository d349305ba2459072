"""Lines in the terminal, in which an option goes by its flag."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping


def name_flags(message: str) -> str:
    """Put the flag of the command line in place of each option in backticks.

    Messages below `dtl.pipeline` name options as TOML does, for notebooks read them, too.

    Examples
    --------
    >>> name_flags("Choose another `out`, or set `images.max_skipped`. See `dask worker --help`.")
    'Choose another --out, or set --images.max-skipped. See `dask worker --help`.'
    """
    return re.sub(r"`([a-z_0-9.]+)`", lambda found: _flags().get(found[1], found[0]), message)


@functools.cache
def _flags() -> Mapping[str, str]:
    from dtl import config  # only where there is something to say: `--help` answers sooner

    return {option.key: option.flag for option in config.options()}


def print_line(text: str) -> None:
    """Print to stdout at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_error(text: str) -> None:
    """Print an error to stderr."""
    sys.stderr.write(f"error: {text}\n")
