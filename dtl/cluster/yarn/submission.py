"""A submitted driver: it runs in a container, too, and goes on without this process."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from dtl.cluster.yarn.capacity import check_capacity
from dtl.cluster.yarn.resource_manager import (
    check_client,
    connect_to_yarn,
    get_report,
    has_ended,
    read_logs,
    submit_application,
    wait_for_end,
)
from dtl.cluster.yarn.specification import make_specification
from dtl.config import ClusterConfig, YarnConfig

log = logging.getLogger(__name__)

SUCCEEDED, FAILED, KILLED, NOT_ENDED = 0, 1, 3, 4
"""Exit statuses that say how an application ended; 2 is argparse's."""


def submit(
    cluster: ClusterConfig,
    yarn: YarnConfig,
    arguments: Sequence[str],
    files: Iterable[str],
    *,
    file_systems: Iterable[str] = (),
) -> str:
    """Start a cluster with a driver in it; return the application's id.

    Parameters
    ----------
    arguments : sequence of str
        Arguments of dtl's command line.
    files : iterable of str
        Local files named by the arguments, which are put beside the driver.
    file_systems : iterable of str
        URLs that containers need Kerberos tokens for.
    """
    with connect_to_yarn() as manager:
        check_capacity(manager, yarn, driver=True)
        spec = make_specification(
            cluster, yarn, check_client(), file_systems=file_systems,
            driver=arguments, driver_files=files,
        )  # fmt: skip
        return submit_application(manager, spec)


def get_status(app_id: str) -> tuple[str, int]:
    """Return how an application is doing, in words, and as an exit status."""
    with connect_to_yarn() as manager:
        return _describe(get_report(manager, app_id))


def wait(app_id: str) -> tuple[str, int]:
    """Wait until an application has ended; return what `get_status` does then."""
    with connect_to_yarn() as manager:
        try:
            while not has_ended(report := get_report(manager, app_id)):
                time.sleep(1)
        except KeyboardInterrupt:
            log.info("%s goes on. To end it: dtl kill %s", app_id, app_id)
            raise
        return _describe(report)


def kill(app_id: str) -> str:
    """End an application; return what became of it, in words."""
    with connect_to_yarn() as manager:
        if has_ended(get_report(manager, app_id)):
            return f"{app_id} had ended before."
        manager.kill_application(app_id)
        wait_for_end(manager, app_id)
    return f"{app_id} is killed."


def print_logs(app_id: str) -> int:
    """Print what an application's containers wrote; return the exit status of ``yarn logs``."""
    check_client()
    pattern = "(dask|application).*log"
    done = read_logs(app_id, pattern, wait=False)
    if done.returncode:
        with connect_to_yarn() as manager:
            get_report(manager, app_id)  # an unknown one would be waited for in vain
        done = read_logs(app_id, pattern, wait=True)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr if done.returncode else "")
    return done.returncode


def _describe(report: Any) -> tuple[str, int]:
    used = report.usage.used_resources
    rows = {
        "application": f"{report.id} ({report.name}, user {report.user}, queue {report.queue})",
        "state": str(report.state),
        "ended": str(report.final_status) if has_ended(report) else "not yet",
        "began": f"{report.start_time:%Y-%m-%d %H:%M:%S}",
        "took" if report.finish_time else "runs": f"{report.runtime.total_seconds():.0f} s",
        "uses": f"{report.usage.num_used_containers} containers, {used.memory} MiB, "
        f"{used.vcores} vcores",
        "page": report.tracking_url,
        "message": report.diagnostics.strip(),
    }
    text = "\n".join(f"{name:<12} {value}" for name, value in rows.items() if value)
    statuses = {"SUCCEEDED": SUCCEEDED, "KILLED": KILLED}
    return text, statuses.get(str(report.final_status), FAILED) if has_ended(report) else NOT_ENDED
