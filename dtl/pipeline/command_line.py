"""One command from its arguments to its exit status."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from distributed.scheduler import KilledWorker

from dtl.cluster.workers import MORE_MEMORY
from dtl.pipeline.commands import COMMANDS, show_summary
from dtl.pipeline.logs import log_to_stderr
from dtl.pipeline.results import Results
from dtl.pipeline.settings import make_parser, resolve
from dtl.pipeline.stages import Run
from dtl.pipeline.tables import complain


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    arguments = make_parser().parse_args(argv)
    command = COMMANDS[arguments.command]
    goes_on = " What is done stays done; the same command goes on." if command.resumes else ""
    log_to_stderr()
    try:
        if command.alone:
            return command.work(arguments) or 0
        settings = resolve(arguments, command)
        if command.work is show_summary:
            show_summary(settings)
            return 0
        with ExitStack() as stack:
            run = Run(settings, stack)
            if command.needs_model:
                return command.work(run, Results(arguments.model)) or 0
            if command.arguments:
                return command.work(run, arguments) or 0
            return command.work(run) or 0
    except KeyboardInterrupt:
        complain(f"Interrupted.{goes_on}")
        return 130
    except KilledWorker as error:
        complain(f"{error}\nMost likely its memory did not suffice. {MORE_MEMORY}{goes_on}")
        return 1
    except (ValueError, OSError, ImportError) as error:
        if arguments.debug:
            raise
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        complain(f"{error}{notes}")
        return 1
