"""Guards of folders: checks that must pass before this process changes anything in them.

Whole files and folders are guarded by themselves. Who changes them in other ways, as Zarr does, is
to call `check_guards` before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

__all__ = ["check_guards"]

_guards: dict[str, Callable[[], None]] = {}


def add_guard(url: str, check: Callable[[], None]) -> None:
    """Call `check` before each change below a folder from now on; in place of one before."""
    _guards[url] = check


@contextlib.contextmanager
def guard(url: str, check: Callable[[], None]) -> Iterator[None]:
    """Call `check` before each change below a folder while the block runs; it raises to refuse."""
    _guards[url] = check
    try:
        yield
    finally:
        del _guards[url]


def check_guards(url: str) -> None:
    """Call the checks of the folders that a URL lies in, or is."""
    for folder, check in list(_guards.items()):
        if f"{url}/".startswith(f"{folder}/"):
            check()
