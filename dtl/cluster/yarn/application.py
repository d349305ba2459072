"""A Dask cluster in YARN's containers, by skein, laid out as dask-yarn did.

An application has a service ``dask.scheduler`` and a service ``dask.worker``, and, where the driver
is submitted too, ``dask.client``. :mod:`dtl.cluster.yarn.containers` runs beside Dask in them.
"""

from __future__ import annotations

import functools
import logging
import os
import queue
import re
import shutil
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from distributed import Client
from distributed.security import Security

from dtl.config import ClusterConfig, YarnConfig

try:
    import skein

    from dtl.cluster.yarn.capacity import check, offer
    from dtl.cluster.yarn.capacity import check_worker_memory as check_worker_memory
    from dtl.cluster.yarn.containers import ADDRESS, DASHBOARD, PAGE, SCHEDULER, WORKER, inside
    from dtl.cluster.yarn.specification import n_at_start, specification
except ImportError as error:
    raise ImportError(
        f"--cluster yarn needs skein. In dtl's folder: pip install -e '.[yarn]' ({error})."
    ) from error

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

_ANSWER_S = 25.0
"""A ResourceManager that has not answered by then is taken to be down."""

_LOOK_EVERY_S, _NEWS_EVERY_S = 0.3, 15.0
_END_S = 30.0
_LOGS_S = 20.0
"""How long YARN may take to gather the logs of an application that has ended."""

_MORE_WORKERS_S = 60.0
"""How long the first worker waits for the others."""

_TRIES = 3
"""Workers that may fail before one has come: more fail for the same reason."""

_ACTIVE = ("NEW", "NEW_SAVING", "SUBMITTED", "ACCEPTED", "RUNNING")


# --- the way to YARN ----------------------------------------------------------------------------


def check_client() -> str:
    """Refuse a machine where the Hadoop client is not complete; returns its configuration's folder.

    Raises
    ------
    FileNotFoundError
    """
    conf_dir = hadoop_conf_dir()
    java = shutil.which(
        f"{os.environ['JAVA_HOME']}/bin/java" if "JAVA_HOME" in os.environ else "java"
    )
    if java is None:
        raise FileNotFoundError(
            "No Java found, which a client of YARN needs. Install Java 8, 11 or 17, and set "
            f"JAVA_HOME (now: {os.environ.get('JAVA_HOME', 'not set')}) or PATH."
        )
    if shutil.which("yarn") is None:
        raise FileNotFoundError(
            "No `yarn` command on PATH, which tells where Hadoop's jars are. Put the Hadoop "
            "client's bin folder on PATH."
        )
    return conf_dir


class _Client(skein.Client):  # type: ignore[misc]
    """Skein's, which complains of itself when its JVM did not start."""

    __slots__ = ()

    def __del__(self) -> None:
        if hasattr(self, "_proc"):
            super().__del__()


@contextmanager
def resource_manager() -> Iterator[skein.Client]:
    """Skein's way to YARN: a JVM beside this process, which ends with it.

    Raises
    ------
    FileNotFoundError
        If the Hadoop client is not complete on this machine.
    ConnectionError
        If the ResourceManager does not answer.
    """
    conf_dir = check_client()
    with tempfile.TemporaryDirectory(prefix="dtl-yarn-") as folder:
        output = Path(folder, "skein.log")
        try:
            # A certificate of this command alone, instead of one for all in ~/.skein.
            credentials = skein.Security.new_credentials()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # skein leaves its log open
                client = _Client(security=credentials, log=str(output), log_level="WARN")
        except (skein.SkeinError, OSError, subprocess.CalledProcessError) as error:
            raise ConnectionError(
                f"YARN's client did not start: {error}.\n{_tail(output.read_text())}"
            ) from error
        try:
            in_time(
                lambda: client.get_nodes(states=["RUNNING"]),
                f"YARN's ResourceManager does not answer within {_ANSWER_S:.0f} s. Is it running, "
                f"and is its address in {conf_dir}/yarn-site.xml right?",
            )
            yield client
        except skein.SkeinError as error:
            raise ConnectionError(f"YARN: {_first_line(error)}") from error
        finally:
            client.close()


def hadoop_conf_dir() -> str:
    """Where the Hadoop client's configuration is.

    Raises
    ------
    FileNotFoundError
    """
    folder = os.environ.get("HADOOP_CONF_DIR", "")
    if not folder or not Path(folder, "yarn-site.xml").is_file():
        state = f"{folder} has no yarn-site.xml" if folder else "it is not set"
        raise FileNotFoundError(
            f"HADOOP_CONF_DIR must name the folder of the Hadoop client's configuration; {state}. "
            "For example: export HADOOP_CONF_DIR=/etc/hadoop/conf"
        )
    return folder


def in_time(question: Callable[[], Answer], otherwise: str) -> Answer:
    """Ask what Hadoop's client itself would wait for a quarter of an hour."""
    answers: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue()

    def ask() -> None:
        try:
            answers.put((question(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=ask, name="dtl-yarn", daemon=True).start()
    try:
        answer, error = answers.get(timeout=_ANSWER_S)
    except queue.Empty:
        raise ConnectionError(otherwise) from None
    if error is not None:
        raise error
    return answer  # type: ignore[no-any-return]


# --- a cluster for a driver here -----------------------------------------------------------------


@contextmanager
def start(
    cluster: ClusterConfig, yarn: YarnConfig, *, file_systems: Iterable[str] = ()
) -> Iterator[Client]:
    """Start scheduler and workers in containers, and give them back, whatever happens.

    In a container of an application that has them, those are used.

    Raises
    ------
    ValueError, FileNotFoundError
        If YARN cannot give what is asked, before anything is started.
    ConnectionError
        If YARN does not answer, or the application ends by itself.
    """
    n_workers = n_at_start(cluster, yarn)
    if inside():
        with (
            skein.ApplicationClient.from_current() as app,
            Client(app.kv.wait(ADDRESS).decode()) as client,
        ):
            _wait_for_workers(client, app, n_workers, skein.properties.application_id)
            yield client
        return
    with resource_manager() as manager:
        check(manager, yarn)
        app_id = _submit(
            manager, specification(cluster, yarn, hadoop_conf_dir(), file_systems=file_systems)
        )
        log.info("YARN application %s in queue %s", app_id, yarn.queue)
        try:
            with _connect(manager, app_id, yarn) as (app, client):
                _wait_for_workers(client, app, n_workers, app_id)
                try:
                    yield client
                except Exception as error:
                    if is_active(manager, app_id):
                        raise
                    diagnostics = manager.application_report(app_id).diagnostics
                    raise ConnectionError(_why(app_id, diagnostics, SCHEDULER)) from error
        except KeyboardInterrupt:
            _end(manager, app_id, "KILLED", "Interrupted.")
            raise
        except BaseException as error:
            _end(manager, app_id, "FAILED", _first_line(error))
            raise
        _end(manager, app_id, "SUCCEEDED", "Finished.")


def _end(manager: skein.Client, app_id: str, status: str, message: str) -> None:
    """Give all containers of an application back."""
    try:
        try:
            with manager.connect(app_id, wait=False) as app:
                app.shutdown(status, message)
        except skein.SkeinError:  # it has no master yet, or none any more
            manager.kill_application(app_id)
        _wait_for_end(manager, app_id)
    except skein.SkeinError as error:
        # Not raised, for how the run ended is worth more. The scheduler sees to it.
        log.warning("%s ends by itself within a minute, for %s", app_id, _first_line(error))


def _wait_for_end(manager: skein.Client, app_id: str) -> None:
    until = time.monotonic() + _END_S
    while is_active(manager, app_id) and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S)


def is_active(manager: skein.Client, app_id: str) -> bool:
    """Whether an application has not ended yet."""
    return str(manager.application_report(app_id).state) in _ACTIVE


def _submit(manager: skein.Client, spec: skein.ApplicationSpec) -> str:
    try:
        return str(manager.submit(spec))
    except (skein.SkeinError, ValueError) as error:
        lines = [line for line in str(error).splitlines() if not line.startswith("\tat ")]
        raise ConnectionError(f"YARN refused the application: {' '.join(lines)}") from error


@contextmanager
def _connect(
    manager: skein.Client, app_id: str, yarn: YarnConfig
) -> Iterator[tuple[skein.ApplicationClient, Client]]:
    """Wait for the first container, then for Dask's scheduler in the second, and connect to it."""
    news = _News(f"{app_id} has no container for its scheduler yet")

    def wait() -> None:
        report = manager.application_report(app_id)
        if str(report.state) not in _ACTIVE:
            raise ConnectionError(_why(app_id, report.diagnostics, SCHEDULER))
        if report.usage.num_used_containers < 2:  # its master's, and the scheduler's
            news.tell(lambda: _capacity(manager, yarn))
        time.sleep(_LOOK_EVERY_S)

    while str(manager.application_report(app_id).state) in _ACTIVE[:-1]:
        wait()
    with manager.connect(app_id, wait=False) as app:
        while (address := _told(app)) is None:
            wait()
        security = Security(
            tls_ca_file=manager.security.cert_bytes.decode(),
            tls_client_cert=manager.security.cert_bytes.decode(),
            tls_client_key=manager.security.key_bytes.decode(),
            require_encryption=True,
        )
        with Client(address, security=security) as client:
            log.info("Dask dashboard: %s", app.kv[DASHBOARD].decode())
            log.info("  by YARN's proxy, without what moves: %s", _by_proxy(app))
            yield app, client


def _told(app: skein.ApplicationClient) -> str | None:
    try:
        address = app.kv.get(ADDRESS)
    except skein.ConnectionError:
        return None  # why it ended is in the application's report
    return None if address is None else str(address.decode())


def _by_proxy(app: skein.ApplicationClient) -> str:
    # YARN's proxy carries pages, but not the websockets that move plots.
    return f"{app.ui.get_pages()[PAGE].address}info/main/workers.html"


def _wait_for_workers(
    client: Client, app: skein.ApplicationClient, n_workers: int, app_id: str
) -> None:
    news, until = _News("workers are waited for"), None
    while (n := len(client.scheduler_info(n_workers=-1)["workers"])) < n_workers:
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
                    f"{failed[-1].exit_message}\n{_see_logs(app_id)}"
                )
        news.tell(functools.partial("{} of {} are here".format, n, n_workers))
        time.sleep(_LOOK_EVERY_S)


def _capacity(manager: skein.Client, yarn: YarnConfig) -> str:
    used = manager.get_queue(yarn.queue.rsplit(".", 1)[-1]).percent_used
    nodes = manager.get_nodes(states=["RUNNING"])
    return f"queue {yarn.queue} uses {used:.0f} % of its share; YARN has {offer(nodes)}"


class _News:
    """Says from time to time that something still waits, and why."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = self._told = time.monotonic()

    def tell(self, why: Callable[[], str]) -> None:
        now = time.monotonic()
        if now - self._told >= _NEWS_EVERY_S:
            self._told = now
            log.info("%s, since %.0f s: %s", self._what, now - self._began, why())


# --- a driver in a container, too ----------------------------------------------------------------

SUCCEEDED, FAILED, KILLED, NOT_ENDED = 0, 1, 3, 4
"""Exit statuses that tell how an application ended; 2 is argparse's."""


def submit(
    cluster: ClusterConfig,
    yarn: YarnConfig,
    arguments: Sequence[str],
    files: Iterable[str],
    *,
    file_systems: Iterable[str] = (),
) -> str:
    """Start a cluster and a driver in it, which goes on without this process.

    Parameters
    ----------
    arguments : sequence of str
        Of dtl's command line.
    files : iterable of str
        Local files that they name, which are put beside the driver.

    Returns
    -------
    str
        The application's id.
    """
    with resource_manager() as manager:
        check(manager, yarn, driver=True)
        spec = specification(
            cluster, yarn, hadoop_conf_dir(), file_systems=file_systems,
            driver=arguments, driver_files=files,
        )  # fmt: skip
        return _submit(manager, spec)


def status(app_id: str) -> tuple[str, int]:
    """How an application is, in words, and as an exit status."""
    with resource_manager() as manager:
        return _in_words(_report(manager, app_id))


def _in_words(report: Any) -> tuple[str, int]:
    used = report.usage.used_resources
    rows = {
        "application": f"{report.id} ({report.name}, user {report.user}, queue {report.queue})",
        "state": str(report.state),
        "ended": "not yet" if str(report.state) in _ACTIVE else str(report.final_status),
        "began": f"{report.start_time:%Y-%m-%d %H:%M:%S}",
        "took" if report.finish_time else "runs": f"{report.runtime.total_seconds():.0f} s",
        "uses": f"{report.usage.num_used_containers} containers, {used.memory} MiB, "
        f"{used.vcores} vcores",
        "page": report.tracking_url,
        "message": report.diagnostics.strip(),
    }
    text = "\n".join(f"{name:<12} {value}" for name, value in rows.items() if value)
    return text, _exit_status(report)


def wait(app_id: str) -> tuple[str, int]:
    """Wait until an application has ended; the same as `status` then."""
    with resource_manager() as manager:
        try:
            while is_active(manager, app_id):
                time.sleep(1)
        except KeyboardInterrupt:
            log.info("%s goes on. To end it: python -m dtl.pipeline kill %s", app_id, app_id)
            raise
        return _in_words(manager.application_report(app_id))


def kill(app_id: str) -> str:
    """End an application; says what became of it."""
    with resource_manager() as manager:
        if str(_report(manager, app_id).state) not in _ACTIVE:
            return f"{app_id} had ended before."
        manager.kill_application(app_id)
        _wait_for_end(manager, app_id)
    return f"{app_id} is killed."


def print_logs(app_id: str) -> int:
    """Print what an application's containers said, by Hadoop's own command, which finds it."""
    check_client()
    return subprocess.run(_logs_command(app_id, "(dask|application).*log"), check=False).returncode


def _report(manager: skein.Client, app_id: str) -> Any:
    try:
        return manager.application_report(app_id)
    except (KeyError, ValueError, skein.SkeinError) as error:
        raise ValueError(
            f"YARN knows no application {app_id!r}. `submit` prints ids; `yarn application -list "
            "-appStates ALL` lists them."
        ) from error


def _exit_status(report: Any) -> int:
    if str(report.state) in _ACTIVE:
        return NOT_ENDED
    return {"SUCCEEDED": SUCCEEDED, "KILLED": KILLED}.get(str(report.final_status), FAILED)


_LOG = re.compile(r"^LogType:(\S+)\n.*?^LogContents:\n(.*?)\nEnd of LogType", re.M | re.S)


def _logs_command(app_id: str, pattern: str) -> list[str]:
    return ["yarn", "logs", "-applicationId", app_id, "-log_files_pattern", pattern]


def _why(app_id: str, diagnostics: str, service: str) -> str:
    """Why an application ended: in YARN's words, and in its service's last."""
    command = _logs_command(app_id, f"({service}|application.master)[.]log")
    until = time.monotonic() + _LOGS_S
    logs: dict[str, str] = {}
    while not logs and time.monotonic() < until:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        logs = dict(_LOG.findall(done.stdout))
    reason = " ".join(line for line in diagnostics.splitlines() if not line.startswith("\tat "))
    said = ""
    if log := logs.get(f"{service}.log"):
        said = f"The last that {service} said:\n{_tail(log)}"
    elif causes := re.findall(r"^Caused by: (.*)", logs.get("application.master.log", ""), re.M):
        said = f"Its container could not be set up: {causes[-1]}"
    return "\n".join(filter(None, (f"YARN ended {app_id}: {reason}", said, _see_logs(app_id))))


def _see_logs(app_id: str) -> str:
    return f"All that its containers said: python -m dtl.pipeline logs {app_id}"


def _first_line(text: object) -> str:
    return (str(text).strip().splitlines() or ["no reason given"])[0]


def _tail(text: str, n_lines: int = 8) -> str:
    return "\n".join(text.strip().splitlines()[-n_lines:])
