"""A cluster in containers for a driver on this machine."""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import skein
from distributed import Client
from distributed.security import Security

from dtl.cluster import live
from dtl.cluster.workers import known_workers
from dtl.cluster.yarn.capacity import check_capacity, describe_nodes
from dtl.cluster.yarn.containers import ADDRESS, DASHBOARD, PAGE, SCHEDULER, WORKER, in_container
from dtl.cluster.yarn.resource_manager import (
    LOOK_EVERY_S,
    check_client,
    connect_to_yarn,
    first_line,
    has_ended,
    last_lines,
    read_logs,
    submit_application,
    wait_for_end,
    without_trace,
)
from dtl.cluster.yarn.specification import make_specification
from dtl.config import ClusterConfig, YarnConfig

log = logging.getLogger(__name__)

_REPEAT_EVERY_S = 15.0

_MORE_WORKERS_S = 60.0
"""How long the first worker waits for the others."""

_TRIES = 3
"""Workers that may fail before one has come: more fail for the same reason."""


@contextmanager
def start_cluster(
    cluster: ClusterConfig, yarn: YarnConfig, *, file_systems: Iterable[str] = ()
) -> Iterator[Client]:
    """Start scheduler and workers in containers, and give them back, whatever happens.

    In a container of an application that has them, those are used.

    Raises
    ------
    UserError, FileNotFoundError
        If YARN cannot give what is wanted, before anything is started.
    ConnectionError
        If YARN does not answer, or the application ends by itself.
    """
    n_workers = cluster.n_workers
    if in_container():
        with (
            skein.ApplicationClient.from_current() as app,
            Client(app.kv.wait(ADDRESS).decode()) as client,
        ):
            _wait_for_workers(client, app, n_workers)
            yield client
        return
    with connect_to_yarn() as manager:
        check_capacity(manager, yarn)
        spec = make_specification(cluster, yarn, check_client(), file_systems=file_systems)
        app_id = submit_application(manager, spec)
        log.info("YARN application %s in queue %s", app_id, yarn.queue)
        try:
            with _connect(manager, app_id, yarn) as (app, client):
                _wait_for_workers(client, app, n_workers)
                try:
                    yield client
                except Exception as error:
                    report = manager.application_report(app_id)
                    if not has_ended(report):
                        raise
                    reason = _explain_end(app_id, report.diagnostics)
                    raise ConnectionError(reason) from error
        except KeyboardInterrupt:
            _shut_down(manager, app_id, "KILLED", "Interrupted.")
            raise
        except BaseException as error:
            _shut_down(manager, app_id, "FAILED", first_line(error))
            raise
        _shut_down(manager, app_id, "SUCCEEDED", "Finished.")


def _shut_down(manager: skein.Client, app_id: str, status: str, message: str) -> None:
    """Give all containers of an application back."""
    try:
        try:
            with manager.connect(app_id, wait=False) as app:
                app.shutdown(status, message)
        except skein.SkeinError:  # it has no master yet, or none any more
            manager.kill_application(app_id)
        wait_for_end(manager, app_id)
    except skein.SkeinError as error:
        # Not raised: how the run ended matters more, and the scheduler will shut down by itself.
        log.warning("%s ends by itself within a minute, for %s", app_id, first_line(error))


@contextmanager
def _connect(
    manager: skein.Client, app_id: str, yarn: YarnConfig
) -> Iterator[tuple[skein.ApplicationClient, Client]]:
    """Wait for the first container, then for Dask's scheduler in the second, and connect to it."""
    reminder = _Reminder(f"{app_id} has no container for its scheduler yet")

    def look_again() -> bool:
        report = manager.application_report(app_id)
        if has_ended(report):
            raise ConnectionError(_explain_end(app_id, report.diagnostics))
        if report.usage.num_used_containers < 2:  # its master's, and the scheduler's
            reminder.log(lambda: _describe_capacity(manager, yarn))
        time.sleep(LOOK_EVERY_S)
        return str(report.state) == "RUNNING"

    while not look_again():
        pass
    with manager.connect(app_id, wait=False) as app:
        while (address := _read_address(app)) is None:
            look_again()
        security = Security(
            tls_ca_file=manager.security.cert_bytes.decode(),
            tls_client_cert=manager.security.cert_bytes.decode(),
            tls_client_key=manager.security.key_bytes.decode(),
            require_encryption=True,
        )
        with Client(address, security=security) as client:
            log.info("Dask dashboard: %s", app.kv[DASHBOARD].decode())
            # YARN's proxy carries pages, but not the websockets that move plots.
            page = app.ui.get_pages()[PAGE].address
            log.info("  by YARN's proxy, without what moves: %sinfo/main/workers.html", page)
            live.name_other(f"{page}{live.PAGE} by YARN's proxy")
            yield app, client


def _read_address(app: skein.ApplicationClient) -> str | None:
    try:
        address = app.kv.get(ADDRESS)
    except skein.ConnectionError:
        return None  # why it ended is in the application's report
    return None if address is None else str(address.decode())


def _wait_for_workers(client: Client, app: skein.ApplicationClient, n_workers: int) -> None:
    reminder, until = _Reminder("workers are waited for"), None
    while (n := len(known_workers(client))) < n_workers:
        if n:
            until = until or time.monotonic() + _MORE_WORKERS_S
            if time.monotonic() > until:
                log.info("%d of %d workers are here; others may join later", n, n_workers)
                return
        else:
            failed = app.get_containers(services=[WORKER], states=["FAILED"])
            if len(failed) >= _TRIES:
                raise ConnectionError(
                    f"{len(failed)} worker containers ended before one worked; the last: "
                    f"{failed[-1].exit_message}\n{_advise_logs(app.id)}"
                )
        reminder.log(functools.partial("{} of {} are here".format, n, n_workers))
        time.sleep(LOOK_EVERY_S)


def _describe_capacity(manager: skein.Client, yarn: YarnConfig) -> str:
    used = manager.get_queue(yarn.queue.rsplit(".", 1)[-1]).percent_used
    nodes = manager.get_nodes(states=["RUNNING"])
    return f"queue {yarn.queue} uses {used:.0f} % of its share; YARN has {describe_nodes(nodes)}"


_LOG = re.compile(r"^LogType:(\S+)\n.*?^LogContents:\n(.*?)\nEnd of LogType", re.M | re.S)


def _explain_end(app_id: str, diagnostics: str) -> str:
    """Return why an application ended: YARN's words, and the last that its scheduler wrote."""
    log.info("%s has ended; waiting for its logs", app_id)
    done = read_logs(app_id, f"({SCHEDULER}|application.master)[.]log", wait=True)
    logs = dict(_LOG.findall(done.stdout))
    lines = [f"YARN ended {app_id}: {without_trace(diagnostics)}"]
    if tail := logs.get(f"{SCHEDULER}.log"):
        lines.append(f"The last lines of {SCHEDULER}.log:\n{last_lines(tail)}")
    elif causes := re.findall(r"^Caused by: (.*)", logs.get("application.master.log", ""), re.M):
        lines.append(f"Its container could not be set up: {causes[-1]}")
    return "\n".join([*lines, _advise_logs(app_id)])


def _advise_logs(app_id: str) -> str:
    return f"All that its containers wrote: dtl logs {app_id}"


class _Reminder:
    """A line in the log, every 15 s, that something is still waited for, and why."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = self._last = time.monotonic()

    def log(self, why: Callable[[], str]) -> None:
        now = time.monotonic()
        if now - self._last >= _REPEAT_EVERY_S:
            self._last = now
            log.info("%s, since %.0f s: %s", self._what, now - self._began, why())
