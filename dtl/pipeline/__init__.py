"""The command line: ``python -m dtl.pipeline``, and the order of the stages."""

from dtl.pipeline.command_line import main

__all__ = ["main"]
