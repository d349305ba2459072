"""A Dask cluster in YARN's containers, by skein, laid out as dask-yarn did.

An application has a service ``dask.scheduler`` and a service ``dask.worker``, and, where the driver
is submitted too, ``dask.client``. What the containers run besides Dask is :mod:`dtl.containers`.
"""

from __future__ import annotations

import functools
import logging
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import dask
from dask.utils import parse_bytes
from distributed import Client
from distributed.security import Security

from dtl import environment
from dtl.config import ClusterConfig, YarnConfig

try:
    import skein

    from dtl.containers import ADDRESS, DASHBOARD, DRIVER, PAGE, SCHEDULER, WORKER
except ImportError as error:
    raise ImportError(f"--cluster yarn needs skein: pip install 'dtl[yarn]' ({error}).") from error

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

_ANSWER_S = 25.0
"""A ResourceManager that has not answered by then is taken to be down."""

_MASTER_MIB = 512
"""Of skein's ApplicationMaster; its heap is 128 MiB."""

_LOOK_EVERY_S, _NEWS_EVERY_S = 0.3, 15.0
_END_S = 30.0
_LOGS_S = 20.0
"""How long YARN may take to gather the logs of an application that has ended."""

_MORE_WORKERS_S = 60.0
"""How long the first worker waits for the others."""

_TRIES = 3
"""Workers that may fail before one has come: more fail for the same reason."""

_ACTIVE = ("NEW", "NEW_SAVING", "SUBMITTED", "ACCEPTED", "RUNNING")


# --- what is asked of YARN -----------------------------------------------------------------------


def specification(
    cluster: ClusterConfig,
    yarn: YarnConfig,
    conf_dir: str,
    *,
    file_systems: Iterable[str] = (),
    driver: Sequence[str] = (),
    driver_files: Iterable[str] = (),
) -> skein.ApplicationSpec:
    """The application as skein takes it; ``deploy/yarn`` shows one.

    Parameters
    ----------
    conf_dir : str
        Folder of the Hadoop client's configuration, which goes into the containers.
    file_systems : iterable of str
        URLs of filesystems besides the default one that Kerberos tokens are needed for.
    driver : sequence of str
        Arguments of dtl's command line, to run it in a container, too.
    driver_files : iterable of str
        Files that only that container needs.
    """
    threads = cluster.threads_per_worker or yarn.worker_vcores
    archive = yarn.environment.endswith(environment.ENDINGS)
    python = "environment/bin/python" if archive else shlex.quote(f"{_folder(yarn)}/bin/python")
    files: dict[str, skein.File] = {
        Path(file).name: skein.File(file)
        for file in (*_hadoop_configuration(conf_dir), *yarn.files)
    }
    if archive:
        # Private: it is unpacked once on a node, for all applications of this user.
        files["environment"] = skein.File(yarn.environment, type="ARCHIVE", visibility="PRIVATE")
    own = dict(item.split("=", 1) for item in yarn.env)

    def service(
        memory: str, vcores: int, command: str, *, gpus: int = 0, n: int = 1, restarts: int = 0,
        depends: Iterable[str] = (), env: dict[str, str] | None = None, more: Iterable[str] = (),
    ) -> skein.Service:  # fmt: skip
        return skein.Service(
            resources=skein.Resources(memory=mib(memory), vcores=vcores, gpus=gpus),
            instances=n,
            max_restarts=restarts,
            depends=set(depends),
            files=files | {Path(file).name: skein.File(file) for file in more},
            env=_TLS | (env or {}) | own,
            script="\n".join(
                ["export HADOOP_CONF_DIR=$PWD TMPDIR=$PWD/tmp", *command.splitlines()]
            ),
        )

    adapt = f" --min-workers {yarn.adaptive_min} --max-workers {yarn.adaptive_max}"
    services = {
        SCHEDULER: service(
            yarn.scheduler_memory,
            yarn.scheduler_vcores,
            f"exec {python} -m distributed.cli.dask_scheduler --protocol tls --port 0 "
            f"--dashboard-address :0 --preload dtl.containers{adapt * bool(yarn.adaptive_max)}",
        ),
        WORKER: service(
            yarn.worker_memory,
            yarn.worker_vcores,
            f"scheduler=$({python} -m skein.cli kv get current --key {ADDRESS} --wait) || exit\n"
            f'exec {python} -m distributed.cli.dask_worker "$scheduler" '
            f'--name "$SKEIN_CONTAINER_ID" --nthreads {max(threads, 2)} '
            f"--memory-limit {worker_limit(cluster, yarn)} "
            "--no-nanny --no-dashboard --death-timeout 60 --local-directory .",
            gpus=yarn.worker_gpus,
            n=n_at_start(cluster, yarn),
            restarts=-1,
            depends=[SCHEDULER],
            env=_worker_environment(threads),
        ),
    }
    if driver:
        services[DRIVER] = service(
            yarn.driver_memory,
            yarn.driver_vcores,
            f"exec {python} -m dtl.containers {shlex.join(driver)}",
            depends=[SCHEDULER],
            more=driver_files,
        )
    return skein.ApplicationSpec(
        name=yarn.name,
        queue=yarn.queue,
        node_label=yarn.node_label,
        tags={"dtl"},
        file_systems=sorted(set(file_systems)),
        master=skein.Master(resources=skein.Resources(memory=_MASTER_MIB, vcores=1)),
        services=services,
    )


_TLS = {
    "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True",
    "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": ".skein.crt",
} | {
    f"DASK_DISTRIBUTED__COMM__TLS__{role}__{kind}": f".skein.{ending}"
    for role in ("SCHEDULER", "WORKER", "CLIENT")
    for kind, ending in (("CERT", "crt"), ("KEY", "pem"))
}
"""The certificate of the application, which skein puts into its containers and nowhere else."""


def _worker_environment(threads: int) -> dict[str, str]:
    # As dtl.cluster and Dask's nanny do on this machine, so that the same bits come out.
    nanny = dask.config.get("distributed.nanny.pre-spawn-environ")
    return {name: str(value) for name, value in nanny.items()} | {
        "TF_NUM_INTRAOP_THREADS": str(threads),
        # A worker that reads ahead is not stuck: no warning about its event loop.
        "DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": "60s",
    }


def _hadoop_configuration(conf_dir: str) -> list[str]:
    names = ("core-site.xml", "hdfs-site.xml")
    return [f"{conf_dir}/{name}" for name in names if Path(conf_dir, name).exists()]


def _folder(yarn: YarnConfig) -> str:
    return (yarn.environment or sys.prefix).rstrip("/")


def mib(memory: str) -> int:
    """MiB in a text.

    Examples
    --------
    >>> mib("4GiB")
    4096
    """
    return int(parse_bytes(memory)) >> 20


def n_at_start(cluster: ClusterConfig, yarn: YarnConfig) -> int:
    """Workers to begin with."""
    if not yarn.adaptive_max:
        return cluster.n_workers
    return max(yarn.adaptive_min, min(cluster.n_workers, yarn.adaptive_max))


def worker_limit(cluster: ClusterConfig, yarn: YarnConfig) -> int:
    """Bytes that Dask lets a worker use: all that its container has, unless told less.

    Raises
    ------
    ValueError
        If told more.
    """
    container = mib(yarn.worker_memory) << 20
    if cluster.memory_limit == "auto":
        return container
    limit = int(parse_bytes(cluster.memory_limit))
    if limit > container:
        raise ValueError(
            f"cluster.memory_limit = {cluster.memory_limit} is more than the container has, "
            f"yarn.worker_memory = {yarn.worker_memory}: YARN would kill it. Raise "
            "--yarn.worker-memory, or leave --cluster.memory-limit at auto."
        )
    return limit


# --- what can be known before --------------------------------------------------------------------


def check_memory(cluster: ClusterConfig, yarn: YarnConfig, needed: Callable[[], int]) -> None:
    """Refuse a worker's container, or what Dask may use of it, in which the network has no room.

    Parameters
    ----------
    needed : callable
        Tells the bytes that a worker needs; not called in a container, where it is too late.

    Raises
    ------
    ValueError
        Naming the option to change.
    """
    if inside():
        return
    limit, n_bytes = worker_limit(cluster, yarn), needed()
    if limit < n_bytes:
        name = "yarn.worker_memory" if cluster.memory_limit == "auto" else "cluster.memory_limit"
        raise ValueError(
            f"A worker with the network needs {n_bytes / 2**30:.1f} GiB, but {name} gives it "
            f"{limit / 2**30:.1f} GiB. Raise --{name.replace('_', '-')}."
        )


def inside() -> bool:
    """Whether this process runs in a container of an application that skein started."""
    return skein.properties.application_id is not None


def check(
    client: skein.Client, cluster: ClusterConfig, yarn: YarnConfig, *, driver: bool = False
) -> None:
    """Refuse what this YARN cannot give, before anything is started.

    Raises
    ------
    ValueError
        Naming the option and what YARN offers.
    FileNotFoundError
        If the environment is not there.
    """
    queues = {found.name: found for found in client.get_all_queues()}
    if yarn.queue.rsplit(".", 1)[-1] not in queues:
        raise ValueError(
            f"YARN has no queue {yarn.queue!r}. It has: {', '.join(sorted(queues))}. "
            "Choose one with --yarn.queue."
        )
    if str(queues[yarn.queue.rsplit(".", 1)[-1]].state) != "RUNNING":
        raise ValueError(f"YARN's queue {yarn.queue} is stopped. Choose another: --yarn.queue.")
    nodes = client.get_nodes(states=["RUNNING"])
    if not nodes:
        raise ValueError("YARN has no running node. See its page, or `yarn node -list -all`.")
    labels = set().union(*(node.labels for node in nodes))
    if yarn.node_label and yarn.node_label not in labels:
        known = f"They have: {', '.join(sorted(labels))}." if labels else "None has a label."
        raise ValueError(
            f"No node of YARN has the label {yarn.node_label!r}. {known} Change --yarn.node-label."
        )
    usable = [n for n in nodes if yarn.node_label in n.labels or not yarn.node_label]
    roles = [("worker", mib(yarn.worker_memory), yarn.worker_vcores, yarn.worker_gpus)]
    roles += [("scheduler", mib(yarn.scheduler_memory), yarn.scheduler_vcores, 0)]
    if driver:
        roles += [("driver", mib(yarn.driver_memory), yarn.driver_vcores, 0)]
    for role, memory, vcores, gpus in roles:
        asked = {"memory": memory, "vcores": vcores, "gpus": gpus}
        for resource, value in asked.items():
            most = max(getattr(node.total_resources, resource) for node in usable)
            if value > most:
                unit = " MiB" if resource == "memory" else ""
                raise ValueError(
                    f"yarn.{role}_{resource} asks for {value}{unit}, but YARN's largest node has "
                    f"{most}{unit}. YARN offers: {_offer(usable)}. Lower --yarn.{role}-{resource}."
                )
    needed = _MASTER_MIB + sum(memory for _, memory, _, _ in roles)
    if needed > (total := sum(node.total_resources.memory for node in usable)):
        raise ValueError(
            f"One worker, the scheduler and skein's master together need {needed} MiB, but all "
            f"nodes of YARN have {total} MiB. Lower --yarn.worker-memory."
        )
    if yarn.environment.endswith(environment.ENDINGS):
        environment.check(yarn.environment)
    elif "://" in yarn.environment:
        raise ValueError(
            f"yarn.environment must be an archive ({', '.join(environment.ENDINGS)}) or a folder "
            f"that every node has. Received: {yarn.environment}."
        )


def _offer(nodes: Sequence[Any]) -> str:
    total = _sum(node.total_resources for node in nodes)
    used = _sum(node.used_resources for node in nodes)
    return (
        f"{total['memory']} MiB, {total['vcores']} vcores and {total['gpus']} GPUs on {len(nodes)} "
        f"nodes, of which {used['memory']} MiB, {used['vcores']} vcores and {used['gpus']} GPUs "
        "are in use"
    )


def _sum(resources: Iterable[Any]) -> dict[str, int]:
    found = list(resources)
    return {name: sum(getattr(r, name) for r in found) for name in ("memory", "vcores", "gpus")}


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
        raise ConnectionError(f"{otherwise} ({_first_line(error)})") from error
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
        check(manager, cluster, yarn)
        app_id = _submit(
            manager, specification(cluster, yarn, hadoop_conf_dir(), file_systems=file_systems)
        )
        log.info("YARN application %s in queue %s", app_id, yarn.queue)
        try:
            with _connect(manager, app_id, yarn) as (app, client):
                _wait_for_workers(client, app, n_workers, app_id)
                yield client
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
        with manager.connect(app_id, wait=False) as app:
            app.shutdown(status, message)
    except skein.SkeinError:  # it has no master yet, or none any more
        manager.kill_application(app_id)
    until = time.monotonic() + _END_S
    while is_active(manager, app_id) and time.monotonic() < until:
        time.sleep(0.2)


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
    used = manager.get_queue(yarn.queue).percent_used
    nodes = manager.get_nodes(states=["RUNNING"])
    return f"queue {yarn.queue} uses {used:.0f} % of its share; YARN has {_offer(nodes)}"


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
        check(manager, cluster, yarn, driver=True)
        spec = specification(
            cluster, yarn, hadoop_conf_dir(), file_systems=file_systems,
            driver=arguments, driver_files=files,
        )  # fmt: skip
        return _submit(manager, spec)


def status(app_id: str) -> tuple[str, int]:
    """How an application is, in words, and as an exit status."""
    with resource_manager() as manager:
        report = _report(manager, app_id)
    used = report.usage.used_resources
    rows = {
        "application": f"{report.id} ({report.name}, user {report.user}, queue {report.queue})",
        "state": str(report.state),
        "ended": "not yet" if str(report.state) in _ACTIVE else str(report.final_status),
        "runs since": f"{report.start_time:%Y-%m-%d %H:%M:%S}, {report.runtime.seconds} s",
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
        while is_active(manager, app_id):
            time.sleep(1)
    return status(app_id)


def kill(app_id: str) -> str:
    """End an application; says what became of it."""
    with resource_manager() as manager:
        if str(_report(manager, app_id).state) not in _ACTIVE:
            return f"{app_id} had ended before."
        manager.kill_application(app_id)
        until = time.monotonic() + _END_S
        while is_active(manager, app_id) and time.monotonic() < until:
            time.sleep(_LOOK_EVERY_S)
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
