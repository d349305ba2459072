"""One command from its arguments to its exit status."""

from __future__ import annotations

import signal
import sys
import typing
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from dtl.pipeline.messages import list_notes, log_to_stderr, print_error

if typing.TYPE_CHECKING:
    import argparse

    from dtl.pipeline.commands import Command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of the process, or of `argv`.

    Returns the exit status: 0, 1 after an error, 130 after Ctrl-C, 143 after SIGTERM. Arguments
    that the command does not have, and ``--help``, raise `SystemExit`.
    """
    command: Command | None = None
    debug = False
    try:
        # Imported here, so that Ctrl-C during start-up ends in one line, too.
        from dtl.pipeline.arguments import parse_arguments
        from dtl.pipeline.commands import COMMANDS

        arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
        command, debug = COMMANDS[arguments.command], arguments.debug
        log_to_stderr()
        return _run(command, arguments)
    except KeyboardInterrupt as stop:
        signum = getattr(stop, "signum", signal.SIGINT)  # of `dtl.pipeline.process.Stopped`
        by = "" if signum == signal.SIGINT else f" by {signal.Signals(signum).name}"
        print_error(f"Interrupted{by}.{_advise(command)}{list_notes(stop)}")
        return 128 + signum  # as shells do
    except SystemExit:
        raise
    except BaseException as error:  # a panic of Rust's is no `Exception`
        if debug:
            raise
        from dtl.pipeline.faults import describe

        print_error(f"{describe(error, _advise(command))}{list_notes(error)}")
        return 1


def _run(command: Command, arguments: argparse.Namespace) -> int:
    from dtl.pipeline.commands import load

    function = load(command.function)
    if command.starts_from == "nothing":
        return function(arguments) or 0
    from dtl.pipeline.run import Run, read_options

    with _closing() as stack:
        return function(Run(read_options(arguments, command), stack), arguments) or 0


@contextmanager
def _closing() -> Iterator[ExitStack]:
    """Yield a stack; an error that comes while it is closed hides none that came before."""
    before: BaseException | None = None
    try:
        with ExitStack() as stack:
            try:
                yield stack
            except BaseException as error:
                before = error
                raise
    except BaseException as error:
        if before is None:
            error.add_note("This happened while closing, after all results were written.")
        elif error is not before and error.__cause__ is not before:
            if not isinstance(error, KeyboardInterrupt) and str(error) != str(before):
                before.add_note(f"Then, while closing: {type(error).__name__}: {error}")
            raise before from error
        raise


def _advise(command: Command | None) -> str:
    resumes = command is not None and command.resumes
    return " What is done stays done; the same command goes on." if resumes else ""
