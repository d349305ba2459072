"""Signals and exit of the process that runs one command."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

from dtl.pipeline import main

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_CLOSING_S = 60.0
"""Time from a signal on in which a command closes what it opened."""

_AGAIN_S = 0.1
"""Time after which a signal that was lost is sent again."""


class Stopped(KeyboardInterrupt):
    """Signal that asks a command to end; `signum` is its number."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def enter() -> NoReturn:
    """Run the command of this process, and end the process with its exit status."""
    status = 1
    try:
        _take_signals()
        _show_any_name()
        threading.excepthook = _tell_of_thread
        sys.unraisablehook = _tell_of_unraisable
        status = main()
    except SystemExit as ended:  # by argparse
        status = ended.code if isinstance(ended.code, int) else bool(ended.code)
    except KeyboardInterrupt as stop:  # in the moment before, or after, the command
        status = 128 + getattr(stop, "signum", signal.SIGINT)
        with contextlib.suppress(OSError):
            sys.stderr.write("error: Interrupted.\n")
    except BaseException:  # with --debug
        sys.excepthook(*sys.exc_info())
    end(status)


def end(status: int) -> NoReturn:
    """End the process with an exit status, whatever its threads do.

    The interpreter is not finalized. It would kill threads of native clients (HDFS, TensorFlow)
    that return to it, and so abort the process: "FATAL: exception not rethrown", with SIGABRT in
    place of the command's status.
    """
    _answer(_say_closing)
    too_late = threading.Timer(_CLOSING_S, os._exit, [status])  # Dask waits for its threads
    too_late.daemon = True
    too_late.start()
    atexit._run_exitfuncs()  # Dask's clusters, the children of `multiprocessing`, logging
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # nobody reads it any more
    except OSError as error:
        status = status or 1
        with contextlib.suppress(OSError):
            sys.stderr.write(f"error: Cannot write to the standard output: {error}.\n")
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(status)


def _show_any_name() -> None:
    """Write what the terminal's encoding lacks as escapes, rather than fail on it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _take_signals() -> None:
    """Let the first signal end the command in order, and the process within a minute."""
    taken = [s for s in _SIGNALS if signal.getsignal(s) not in (signal.SIG_IGN, None)]
    for number in taken:  # a shell's background jobs ignore SIGINT, those of nohup SIGHUP
        signal.signal(number, _stop)
    # Python writes a signal's number there at once, even while a native call does not return.
    awake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(awake, taken), name="dtl-signals", daemon=True)
    watch.start()


def _answer(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) in (_stop, _say_closing):
            signal.signal(number, handler)


def _stop(number: int, _: FrameType | None) -> None:
    _answer(_say_closing)
    raise Stopped(number)


def _say_closing(*_: object) -> None:
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError within another line's writing
        sys.stderr.write(f"Still closing; it ends within {_CLOSING_S:.0f} s.\n")


def _watch(awake: int, taken: Sequence[int]) -> None:
    while (number := os.read(awake, 1)[0]) not in taken:
        pass
    time.sleep(_CLOSING_S)
    with contextlib.suppress(OSError):
        os.write(2, b"error: Interrupted. Some resources were not closed in time.\n")
    os._exit(128 + number)


def _tell_of_thread(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_type is not SystemExit:
        _tell(f"in {failed.thread.name if failed.thread else 'a thread'}", failed)


def _tell_of_unraisable(failed: Any) -> None:
    if isinstance(failed.exc_value, Stopped):  # a finalizer ran just then: once more
        _answer(_stop)
        again = (os.getpid(), failed.exc_value.signum)
        threading.Timer(_AGAIN_S, os.kill, again).start()
        return
    _tell(failed.err_msg or f"in {failed.object!r}", failed)


def _tell(where: str, failed: Any) -> None:
    if "--debug" in sys.argv:
        sys.excepthook(failed.exc_type, failed.exc_value, failed.exc_traceback)
    with contextlib.suppress(OSError, RuntimeError):
        error = f"{failed.exc_type.__name__}: {failed.exc_value}"
        sys.stderr.write(f"warning: {where}: {error}. Run again with --debug to see where.\n")
