"""The command line (`dtl`, or ``python -m dtl.pipeline``) and the order of the stages.

Nothing heavy is imported before a command needs it: `--help` answers at once, and a finished run is
recognised without Keras, Bokeh or a cluster.
"""

from dtl.pipeline.command_line import main

__all__ = ["main"]
