"""An application as it is asked of YARN, and what can be known of it before it is."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import dask
import skein
from dask.utils import parse_bytes

from dtl import environment
from dtl.config import ClusterConfig, YarnConfig
from dtl.containers import ADDRESS, DRIVER, SCHEDULER, WORKER, inside

_MASTER_MIB = 512
"""Of skein's ApplicationMaster; its heap is 128 MiB."""


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


def check(client: skein.Client, yarn: YarnConfig, *, driver: bool = False) -> None:
    """Refuse what this YARN cannot give, before anything is started.

    Parameters
    ----------
    driver : bool
        Whether it runs in a container, too.

    Raises
    ------
    ValueError
        Naming the option and what YARN offers.
    FileNotFoundError
        If the environment is not there.
    """
    queues = {found.name: found for found in client.get_all_queues()}
    queue = yarn.queue.rsplit(".", 1)[-1]
    if queue not in queues:
        raise ValueError(
            f"YARN has no queue {yarn.queue!r}. It has: {', '.join(sorted(queues))}. "
            "Choose one with --yarn.queue."
        )
    if str(queues[queue].state) != "RUNNING":
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
                    f"{most}{unit}. YARN offers: {offer(usable)}. Lower --yarn.{role}-{resource}."
                )
    needed = _MASTER_MIB + sum(memory for _, memory, _, _ in roles)
    if needed > (total := sum(node.total_resources.memory for node in usable)):
        with_driver = ", the driver" if driver else ""
        lower = "--yarn.worker-memory" + " or --yarn.driver-memory" * driver
        raise ValueError(
            f"One worker, the scheduler{with_driver} and skein's master together need {needed} "
            f"MiB, but all nodes of YARN have {total} MiB. Lower {lower}."
        )
    if yarn.environment.endswith(environment.ENDINGS):
        environment.check(yarn.environment)
    elif "://" in yarn.environment:
        raise ValueError(
            f"yarn.environment must be an archive ({', '.join(environment.ENDINGS)}) or a folder "
            f"that every node has. Received: {yarn.environment}."
        )


def offer(nodes: Sequence[Any]) -> str:
    """What nodes have, and how much of it is in use, in words."""
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
