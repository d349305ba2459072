"""One command from its arguments to its exit status."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import pytest

from dtl.config.errors import UserError
from dtl.pipeline import commands
from dtl.pipeline.command_line import main
from dtl.pipeline.run import Run


def failing(error: BaseException) -> Callable[[object], NoReturn]:
    def work(_: object) -> NoReturn:
        raise error

    return work


def with_note(error: Exception) -> Exception:
    error.add_note("while reading a.jpg")
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            UserError("Give `train.l2` and `images.url` as they were; run `dask worker`."),
            "error: Give --train.l2 and --images as they were; run `dask worker`.\n",
        ),
        (
            with_note(PermissionError("Choose another `out`.")),
            "error: Choose another --out.\n  while reading a.jpg\n",
        ),
        (
            ValueError("Labels must lie in [0, 3)."),
            "error: ValueError: Labels must lie in [0, 3).: this is a fault of dtl. Run again with "
            "--debug to see where.\n",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_one_line_and_says_whose_fault_it_is(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    said: str,
) -> None:
    monkeypatch.setattr(commands, "load", lambda _: failing(error))
    assert main(["status", "application_1"]) == 1
    assert capsys.readouterr().err == said
    with pytest.raises(type(error)) as raised:
        main(["status", "application_1", "--debug"])
    assert raised.value is error


class Closing:
    def __init__(self, error: BaseException | None = None, cause: bool = False) -> None:
        self.error, self.cause = error, cause

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self.error is not None:
            raise self.error from (error if self.cause else None)


def closes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *parts: BaseException | None,
    cause: bool = False,
) -> tuple[int, str]:
    """What a command says and returns that fails, or does not, and then fails to close."""
    work, closing = parts

    def function(run: Run, _: object) -> None:
        run._stack.enter_context(Closing(closing, cause))
        if work is not None:
            raise work

    monkeypatch.setattr(commands, "load", lambda _: function)
    return main(["run"]), capsys.readouterr().err


def test_how_a_command_failed_is_not_hidden_by_how_it_closed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = closes(monkeypatch, capsys, UserError("No images."), OSError("the lock is gone"))
    assert told == (1, "error: No images.\n  Then, while closing: OSError: the lock is gone\n")
    told = closes(monkeypatch, capsys, KeyboardInterrupt(), OSError("the lock is gone"))
    assert told == (
        130,
        "error: Interrupted. What is done stays done; the same command goes on.\n"
        "  Then, while closing: OSError: the lock is gone\n",
    )
    told = closes(monkeypatch, capsys, UserError("No images."), KeyboardInterrupt())
    assert told == (1, "error: No images.\n")


def test_an_error_while_closing_is_told_and_what_it_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = closes(monkeypatch, capsys, None, OSError("the lock is gone"))
    assert told == (
        1,
        "error: the lock is gone\n  This happened while closing, after all results were written.\n",
    )


def test_what_is_closed_may_say_the_error_in_its_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ConnectionError("YARN ended the application.")
    assert closes(monkeypatch, capsys, KeyError("x"), words, cause=True) == (
        1, "error: YARN ended the application.\n"
    )  # fmt: skip


def test_ctrl_c_during_start_up_ends_in_one_line() -> None:
    # Interrupted at the first import of a command, which is when most of the start-up passes.
    code = (
        "import builtins, signal, sys\n"
        "from dtl.pipeline import main\n"
        # A shell's background jobs, and what they start, ignore it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "real = builtins.__import__\n"
        "def interrupted(name, *rest, **others):\n"
        "    if name == 'dtl.pipeline.run': signal.raise_signal(signal.SIGINT)\n"
        "    return real(name, *rest, **others)\n"
        "builtins.__import__ = interrupted\n"
        "sys.exit(main(['run', '--out', 'x']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr == (
        "error: Interrupted. What is done stays done; the same command goes on.\n"
    )
