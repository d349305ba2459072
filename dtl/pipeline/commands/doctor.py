"""What on this cluster would make a run fail."""

from __future__ import annotations

import argparse

from dtl.pipeline.doctor import examine
from dtl.pipeline.findings import format_findings
from dtl.pipeline.messages import name_flags, print_line
from dtl.pipeline.run import Run


def doctor(run: Run, _: argparse.Namespace) -> int:
    """Make all checks, and print what was found; exit with 1 if anything is wrong."""
    found = examine(run)
    print_line(name_flags(format_findings(found.findings)))
    return found.status
