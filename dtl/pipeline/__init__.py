"""The command line (`dtl`, or ``python -m dtl.pipeline``) and the order of the stages.

Nothing heavy is imported before a command needs it: `--help` answers at once, and a finished run is
recognised without Keras, Bokeh or a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of the process, or of `argv`, as `dtl.pipeline.command_line.main`."""
    # Imported here, so that a process takes signals before it imports anything else.
    from dtl.pipeline import command_line

    return command_line.main(argv)
