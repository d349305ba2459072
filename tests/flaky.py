"""Storage that fails: a filesystem in memory, whose next calls raise as often as a test says."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class Flaky(MemoryFileSystem):
    """Files in memory; `failing` says what fails, and how often."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    left: ClassVar[int] = 0
    error: ClassVar[Exception] = OSError()
    below: ClassVar[str] = ""
    only: ClassVar[str] = ""
    calls: ClassVar[list[str]] = []

    def _fail(self, call: str, path: str) -> None:
        if Flaky.left > 0 and Flaky.below in path and Flaky.only in call:
            Flaky.left -= 1
            Flaky.calls.append(call)
            raise Flaky.error

    def info(self, path: str, **kwargs: Any) -> Any:
        self._fail("info", path)
        return super().info(path, **kwargs)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        self._fail("ls", path)
        return super().ls(path, detail=detail, **kwargs)

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        self._fail("cat_file", path)
        return bytes(super().cat_file(path, *args, **kwargs))

    def get_file(self, path: str, target: Any, **kwargs: Any) -> None:
        self._fail("get_file", path)
        super().get_file(path, target, **kwargs)

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        self._fail("pipe_file", path)
        super().pipe_file(path, value, **kwargs)


fsspec.register_implementation("flaky", Flaky, clobber=True)


@contextmanager
def failing(
    n: int, error: Exception | None = None, below: str = "", only: str = ""
) -> Iterator[list[str]]:
    """Make the next `n` calls raise, on paths with `below` in them; yields the calls' names."""
    Flaky.left, Flaky.below, Flaky.only, Flaky.calls = n, below, only, []
    Flaky.error = OSError(errno.EIO, "Input/output error") if error is None else error
    try:
        yield Flaky.calls
    finally:
        Flaky.left = 0
