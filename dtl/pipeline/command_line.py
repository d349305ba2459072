"""One command from its arguments to its exit status."""

from __future__ import annotations

import sys
import typing
from collections.abc import Sequence
from contextlib import ExitStack

from dtl.pipeline.messages import log_to_stderr, name_flags

if typing.TYPE_CHECKING:
    from dtl.pipeline.commands import Command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of the process, or of `argv`.

    Returns the exit status: 0, 1 after an error, 130 after Ctrl-C. Arguments that the command does
    not have, and ``--help``, raise `SystemExit`.
    """
    command: Command | None = None
    debug = False
    try:
        # Imported here, so that Ctrl-C during start-up ends in one line, too.
        from dtl.pipeline.arguments import parse_arguments
        from dtl.pipeline.commands import COMMANDS, load

        arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
        command, debug = COMMANDS[arguments.command], arguments.debug
        log_to_stderr()
        function = load(command.function)
        if command.starts_from == "nothing":
            return function(arguments) or 0
        from dtl.pipeline.run import Run, read_options

        with ExitStack() as stack:
            return function(Run(read_options(arguments, command), stack), arguments) or 0
    except KeyboardInterrupt:
        sys.stderr.write(f"error: Interrupted.{_advise(command)}\n")
        return 130  # 128 and the number of SIGINT, as in shells
    except Exception as error:
        if debug:
            raise
        sys.stderr.write(f"error: {name_flags(_describe(error, command))}\n")
        return 1


def _describe(error: Exception, command: Command | None) -> str:
    from dtl.config.errors import UserError

    notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
    if isinstance(error, UserError | OSError):
        return f"{error}{notes}"
    # Dask is loaded if, and only if, the command came to need workers.
    dask = sys.modules.get("distributed.scheduler")
    if dask is not None and isinstance(error, dask.KilledWorker):
        from dtl.cluster.workers import MORE_MEMORY

        return f"{error}\nMost likely its memory did not suffice. {MORE_MEMORY}{_advise(command)}"
    return (
        f"{type(error).__name__}: {error}{notes}: this is a fault of dtl. "
        "Run again with --debug to see where."
    )


def _advise(command: Command | None) -> str:
    resumes = command is not None and command.resumes
    return " What is done stays done; the same command goes on." if resumes else ""
