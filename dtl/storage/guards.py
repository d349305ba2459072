"""Guards of folders: checks that must pass before this process changes anything in them.

Functions of storage on whole files and folders, and the filesystems it gives to Zarr, check them.
Code that writes by other means must call `check_guards` first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

__all__ = ["check_guards"]

_guards: dict[str, Callable[[], None]] = {}


def add_guard(url: str, check: Callable[[], None]) -> None:
    """Call `check` before each change below a folder from now on; in place of one before."""
    _guards[url] = check


def remove_guard(url: str) -> None:
    """End the checks of a folder, if there is one."""
    _guards.pop(url, None)


@contextlib.contextmanager
def guard(url: str, check: Callable[[], None]) -> Iterator[None]:
    """Call `check` before each change below a folder while the block runs; it raises to refuse."""
    add_guard(url, check)
    try:
        yield
    finally:
        remove_guard(url)


def check_guards(url: str) -> None:
    """Call the checks of the folders that a URL lies in, or is."""
    for folder, check in list(_guards.items()):
        if f"{url}/".startswith(f"{folder}/"):
            check()
