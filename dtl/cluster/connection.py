"""A Dask `Client` from what the configuration says: this machine, YARN, a running scheduler."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import dask
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster
from distributed.system import MEMORY_LIMIT

from dtl.cluster.workers import warn_of_pauses
from dtl.config import ClusterConfig, YarnConfig

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 20
"""For a scheduler to answer, and then for its first worker."""


@contextmanager
def connect(
    config: ClusterConfig, yarn: YarnConfig | None = None, *, file_systems: Iterable[str] = ()
) -> Iterator[Client]:
    """Start or reach a cluster; what was started is stopped afterwards.

    Parameters
    ----------
    yarn : YarnConfig, optional
        What is asked of YARN, if that is where to start it.
    file_systems : iterable of str
        URLs that YARN's containers need Kerberos tokens for.

    Raises
    ------
    ConnectionError
        If no scheduler answers, or it has no workers and none comes in 20 s.
    """
    with _reach(config, yarn, file_systems) as client, warn_of_pauses(client):
        yield client


@contextmanager
def _reach(
    config: ClusterConfig, yarn: YarnConfig | None, file_systems: Iterable[str]
) -> Iterator[Client]:
    if config.address == "local":
        threads = config.threads_per_worker or max(CPU_COUNT // config.n_workers, 1)
        # TensorFlow would otherwise take all processors in each of several workers. Not by Dask's
        # `pre-spawn-environ`, which stays in this process and would win in its next cluster.
        variable = "TF_NUM_INTRAOP_THREADS"
        environment = {variable: os.environ.get(variable, str(threads))}
        memory_limit: str | int = config.memory_limit
        if memory_limit == "auto" and not config.processes:
            memory_limit = MEMORY_LIMIT  # each takes all that the process has for its own
        with (
            # A worker that reads ahead is not stuck: no warning about its event loop.
            dask.config.set({"distributed.admin.tick.limit": "60s"}),
            LocalCluster(
                n_workers=config.n_workers,
                # One more thread than one: a chunk is written while the next is computed.
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
        return
    if config.address == "yarn":
        from dtl.cluster.yarn import application as on_yarn  # with skein, which is an extra

        with on_yarn.start(config, yarn or YarnConfig(), file_systems=file_systems) as client:
            yield client
        return
    try:
        client = Client(config.address, timeout=_CONNECT_TIMEOUT_S)
    except (OSError, TimeoutError) as error:
        raise ConnectionError(
            f"No Dask scheduler answers at {config.address}: {error}. Start one with "
            "`dask scheduler`, or use --cluster local."
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_CONNECT_TIMEOUT_S)
        except TimeoutError:
            raise ConnectionError(
                f"The scheduler at {config.address} has no workers. Start some with "
                f"`dask worker {config.address}`."
            ) from None
        log.info("Dask dashboard: %s", client.dashboard_link)
        yield client
