"""The summary of what was done to the runs."""

from __future__ import annotations

from collections import Counter

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the events of runs that ended in the undisturbed bytes."""
    properties = [p for r in terminalreporter.getreports("passed") for p in r.user_properties]
    events = [value for name, value in properties if name == "event"]
    if events:
        terminalreporter.section(f"{len(events)} disturbances, all survived")
        for place in (0, 1):
            for what, n in sorted(Counter(event[place] for event in events).items()):
                terminalreporter.line(f"{n:5d} {what}")
