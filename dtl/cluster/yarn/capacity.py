"""What YARN has, and whether an application fits in it, before anything is started."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import skein

from dtl.cluster import environment
from dtl.cluster.yarn.containers import inside
from dtl.cluster.yarn.specification import MASTER_MIB, mib, worker_limit
from dtl.config import ClusterConfig, YarnConfig


def check_worker_memory(
    cluster: ClusterConfig, yarn: YarnConfig, needed: Callable[[], int]
) -> None:
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
    needed = MASTER_MIB + sum(memory for _, memory, _, _ in roles)
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
