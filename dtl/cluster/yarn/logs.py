"""The logs of YARN's containers, by Hadoop's own command, which finds them."""

from __future__ import annotations

import re
import subprocess
import sys
import time

from dtl.cluster.yarn.resource_manager import (
    check_client,
    connect_to_yarn,
    get_report,
    last_lines,
    without_trace,
)

_GATHERED_S = 60.0
"""How long YARN may take to gather the logs of an application that has ended."""

_ASK_EVERY_S = 1.0

_LOG = re.compile(r"^LogType:(\S+)\n.*?^LogContents:\n(.*?)\nEnd of LogType", re.M | re.S)


def print_logs(app_id: str) -> int:
    """Print what an application's containers wrote; return the status of ``yarn logs``.

    Raises
    ------
    UserError
        If YARN knows no such application.
    """
    check_client()
    pattern = "(dask|application).*log"
    done = _ask(app_id, pattern)
    if done.returncode:
        # It fails for an unknown application, too, which would be waited for in vain.
        with connect_to_yarn() as manager:
            get_report(manager, app_id)
        done = _wait_for_logs(app_id, pattern)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr if done.returncode else "")
    return done.returncode


def explain_end(app_id: str, diagnostics: str, service: str) -> str:
    """Return why an application ended: YARN's words, and the last that its service wrote."""
    done = _wait_for_logs(app_id, f"({service}|application.master)[.]log")
    logs = dict(_LOG.findall(done.stdout))
    last = ""
    if log := logs.get(f"{service}.log"):
        last = f"The last lines of {service}.log:\n{last_lines(log)}"
    elif causes := re.findall(r"^Caused by: (.*)", logs.get("application.master.log", ""), re.M):
        last = f"Its container could not be set up: {causes[-1]}"
    ended = f"YARN ended {app_id}: {without_trace(diagnostics)}"
    return "\n".join(filter(None, (ended, last, advise_logs(app_id))))


def advise_logs(app_id: str) -> str:
    """Return how to read all that an application's containers wrote."""
    return f"All that its containers wrote: dtl logs {app_id}"


def _wait_for_logs(app_id: str, pattern: str) -> subprocess.CompletedProcess[str]:
    # `yarn logs` fails until YARN has gathered them, which may take long on a busy cluster.
    until = time.monotonic() + _GATHERED_S
    while (done := _ask(app_id, pattern)).returncode and time.monotonic() < until:
        time.sleep(_ASK_EVERY_S)
    return done


def _ask(app_id: str, pattern: str) -> subprocess.CompletedProcess[str]:
    command = ["yarn", "logs", "-applicationId", app_id, "-log_files_pattern", pattern]
    return subprocess.run(command, capture_output=True, text=True, check=False)
