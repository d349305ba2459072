"""A Dask client, as the configuration says: of this machine, of YARN, of a running scheduler."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import dask
from dask.system import CPU_COUNT
from distributed import Client
from distributed.system import MEMORY_LIMIT

from dtl.cluster.losses import start_local
from dtl.cluster.workers import warn_of_pauses
from dtl.config import ClusterConfig, YarnConfig, parse_memory

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 20
"""Time for a scheduler to answer, and then for its first worker."""


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
    with cluster as client, warn_of_pauses(client):
        yield client


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
    with (
        # A worker that reads ahead is not stuck: no warning about its event loop.
        dask.config.set({"distributed.admin.tick.limit": "60s"}),
        start_local(
            n_workers=config.n_workers,
            # Two at least: a chunk is written while the next is computed.
            threads_per_worker=max(threads, 2),
            memory_limit=memory_limit,
            processes=config.processes,
            dashboard_address=config.dashboard_address,
            silence_logs=logging.CRITICAL,
            **({"env": environment} if config.processes else {}),
        ) as cluster,
        Client(cluster) as client,
    ):
        log.info("Dask dashboard: %s", client.dashboard_link)
        yield client


@contextmanager
def _connect_to_scheduler(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=_CONNECT_TIMEOUT_S)
    except (OSError, TimeoutError) as error:
        raise ConnectionError(
            f"No Dask scheduler answers at {address}: {error}. Start one with `dask scheduler`, or "
            "set `cluster.address` to local."
        ) from error
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
