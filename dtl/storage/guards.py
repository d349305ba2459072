"""Guards of folders: checks that must pass before this process changes anything in them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

_guards: dict[str, Callable[[], None]] = {}


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
