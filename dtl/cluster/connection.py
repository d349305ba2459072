"""A Dask client, as the configuration says: of this machine, of YARN, of a running scheduler."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import dask
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, Nanny, Worker
from distributed.comm import connect as connect_comm
from distributed.comm.core import CommClosedError, FatalCommClosedError
from distributed.security import Security
from distributed.system import MEMORY_LIMIT
from distributed.utils import LoopRunner
from tornado.ioloop import IOLoop

from dtl.cluster import live
from dtl.cluster.dashboard import serve_dashboard
from dtl.cluster.losses import start_local
from dtl.cluster.security import LOOPBACK, keep_local, load_certificate, make_private_folder
from dtl.cluster.workers import SETTINGS, warn_of_pauses
from dtl.config import ClusterConfig, YarnConfig, parse_memory

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 20
"""Time for a scheduler to answer, and then for its first worker."""

_NO_SCHEDULER = (
    "The server at {} is no Dask scheduler. Is this the port of its dashboard? A scheduler listens "
    "on 8786 unless told otherwise."
)


@contextmanager
def connect(
    config: ClusterConfig, yarn: YarnConfig | None = None, *, file_systems: Iterable[str] = ()
) -> Iterator[Client]:
    """Start or reach a cluster; one that was started is stopped afterwards.

    Parameters
    ----------
    config : ClusterConfig
        Its ``address`` is ``local``, ``yarn``, or that of a running scheduler.
    yarn : YarnConfig, optional
        The containers, if YARN starts the cluster.
    file_systems : iterable of str
        URLs that YARN's containers need Kerberos tokens for.

    Raises
    ------
    ConnectionError
        If no scheduler answers, or it has no workers and none comes in 20 s.
    """
    if config.address == "local":
        cluster = _start_local(config)
    elif config.address == "yarn":
        from dtl.cluster.yarn import application  # with skein, which is an extra

        cluster = application.start_cluster(config, yarn or YarnConfig(), file_systems=file_systems)
    else:
        cluster = _connect_to_scheduler(config.address)
    with cluster as client, warn_of_pauses(client), live.follow(client):
        yield client


class _WorkerThread(Worker):  # type: ignore[misc]
    """Worker in this process, whose page is for this machine alone, too.

    Its address is no host's, so Dask would choose an address that the network reaches.
    """

    def start_http_server(self, routes: Any, dashboard_address: str | None, **others: Any) -> None:
        super().start_http_server(routes, dashboard_address or f"{LOOPBACK}:0", **others)


def make_local(
    *, processes: bool, dashboard_address: str | None = None, **options: Any
) -> LocalCluster:
    """Start a cluster on this machine that nobody else can use.

    Processes talk TLS, with a certificate that is in their memory only. Threads open no port for
    work. All that listens is on the loopback, unless the address of the dashboard has another host.

    Parameters
    ----------
    dashboard_address : str, optional
        None for no dashboard; Dask serves some text there, all the same.
    options
        For `distributed.LocalCluster`.

    Raises
    ------
    ConnectionError
        If the workers do not start.
    """
    cluster = start_local(
        processes=processes,
        protocol="tls://" if processes else "inproc://",
        security=Security.temporary() if processes else Security(require_encryption=False),
        worker_class=Nanny if processes else _WorkerThread,
        dashboard_address=dashboard_address,
        scheduler_kwargs={
            "dashboard": False, "dashboard_address": dashboard_address or f"{LOOPBACK}:0",
        },
        local_directory=make_private_folder(),
        silence_logs=logging.CRITICAL,
        **options,
    )  # fmt: skip
    if dashboard_address is not None:
        serve_dashboard(cluster.scheduler)
    return cluster


@contextmanager
def _run_loop() -> Iterator[IOLoop]:
    """Run an event loop that no Ctrl-C comes to, nor to what it starts.

    A terminal sends it to the workers, too, and each would end with a traceback. The driver ends
    them in order.
    """
    runner = LoopRunner()
    resource_tracker.ensure_running()  # it unblocks signals in the thread that starts it
    # A thread has the blocked signals of the one that starts it, and so has a process.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        runner.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield runner.loop
    finally:
        runner.stop()


@contextmanager
def _start_local(config: ClusterConfig) -> Iterator[Client]:
    threads = config.threads_per_worker or max(CPU_COUNT // config.n_workers, 1)
    # TensorFlow would otherwise take all processors in each of several workers. Not by Dask's
    # `pre-spawn-environ`, which stays in this process and would win in its next cluster.
    variable = "TF_NUM_INTRAOP_THREADS"
    environment = {variable: os.environ.get(variable, str(threads))}
    memory_limit: str | int = config.memory_limit
    if memory_limit != "auto":
        memory_limit = parse_memory(config.memory_limit)
    elif not config.processes:
        memory_limit = MEMORY_LIMIT  # a thread counts the whole process's memory as its own
    page = keep_local(config.dashboard_address)
    settings = dict(SETTINGS)
    if page.startswith(LOOPBACK):  # for threads, Dask would name an address of the network
        settings["distributed.dashboard.link"] = f"{{scheme}}://{LOOPBACK}:{{port}}/status"
    with (
        dask.config.set(settings),
        _run_loop() as loop,
        make_local(
            loop=loop,
            processes=config.processes,
            dashboard_address=page,
            n_workers=config.n_workers,
            # Two at least: a chunk is written while the next is computed.
            threads_per_worker=max(threads, 2),
            memory_limit=memory_limit,
            **({"env": environment} if config.processes else {}),
        ) as cluster,
        Client(cluster) as client,
    ):
        log.info("Dask dashboard: %s", client.dashboard_link)
        yield client


async def _check_answer(address: str, security: Security) -> None:
    """Refuse what is no scheduler; a client would wait for the dashboard's answer for ever."""
    arguments = security.get_connection_args("client")
    connecting = connect_comm(address, timeout=_CONNECT_TIMEOUT_S, **arguments)
    try:
        comm = await asyncio.wait_for(connecting, 1.5 * _CONNECT_TIMEOUT_S)
    except FatalCommClosedError as error:
        raise ConnectionError(
            f"The scheduler at {address} refuses the certificate in Dask's configuration. Give the "
            "certificate that it was started with; or its tcp:// address, if it has none."
        ) from error
    except OSError as error:
        if not isinstance(error, TimeoutError):  # Dask's own is none
            raise ConnectionError(_describe_silence(address, error)) from error
        raise ConnectionError(_NO_SCHEDULER.format(address)) from error
    except Exception as error:  # other bytes than Dask's are taken for any length and type
        raise ConnectionError(_NO_SCHEDULER.format(address)) from error
    await comm.close()


def _describe_silence(address: str, error: Exception) -> str:
    hint = ""
    if address.startswith("tcp://") and isinstance(error, CommClosedError):
        hint = " One that asks for a certificate has an address of tls://."
    return (
        f"No Dask scheduler answers at {address}: {error}. Start one with `dask scheduler`, or "
        f"set `cluster.address` to local.{hint}"
    )


@contextmanager
def _connect_to_scheduler(address: str) -> Iterator[Client]:
    security = load_certificate(address)
    with ThreadPoolExecutor(1) as thread:  # a notebook's own thread has a loop that runs
        thread.submit(asyncio.run, _check_answer(address, security)).result()
    try:
        client = Client(address, timeout=_CONNECT_TIMEOUT_S, security=security)
    except (OSError, TimeoutError) as error:
        raise ConnectionError(_describe_silence(address, error)) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_CONNECT_TIMEOUT_S)
        except TimeoutError:
            raise ConnectionError(
                f"The scheduler at {address} has no workers. Start some with "
                f"`dask worker {address}`."
            ) from None
        log.info("Dask dashboard: %s", client.dashboard_link)
        yield client
