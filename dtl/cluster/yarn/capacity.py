"""Checks that an application fits in what YARN has, before anything is started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import skein

from dtl.cluster import environment
from dtl.cluster.yarn.containers import in_container
from dtl.cluster.yarn.specification import MASTER_MIB, limit_worker_memory
from dtl.config import ClusterConfig, YarnConfig, parse_memory
from dtl.config.errors import UserError
from dtl.storage import hadoop


def check_worker_memory(
    cluster: ClusterConfig, yarn: YarnConfig, needed_bytes: Callable[[], int]
) -> None:
    """Refuse a worker's container, or a Dask limit inside it, that has no room for the network.

    Parameters
    ----------
    needed_bytes : callable
        Returns the bytes that a worker needs; not called in a container, where it is too late.

    Raises
    ------
    UserError
        Naming the option to change.
    """
    if in_container():
        return
    limit, n_bytes = limit_worker_memory(cluster, yarn), needed_bytes()
    if limit < n_bytes:
        name = "yarn.worker_memory" if cluster.memory_limit == "auto" else "cluster.memory_limit"
        raise UserError(
            f"A worker with the network needs {n_bytes / 2**30:.1f} GiB, but {name} gives it "
            f"{limit / 2**30:.1f} GiB. Raise `{name}`."
        )


def check_capacity(manager: skein.Client, yarn: YarnConfig, *, driver: bool = False) -> None:
    """Refuse what this YARN cannot give, before anything is started.

    Parameters
    ----------
    driver : bool
        Whether the driver runs in a container, too.

    Raises
    ------
    UserError
        Naming the option and what YARN offers.
    FileNotFoundError
        If the environment is not there.
    """
    _check_queue(manager, yarn)
    nodes = manager.get_nodes(states=["RUNNING"])
    if not nodes:
        raise UserError("YARN has no running node. See its page, or `yarn node -list -all`.")
    labels = set().union(*(node.labels for node in nodes))
    if yarn.node_label and yarn.node_label not in labels:
        known = f"They have: {', '.join(sorted(labels))}." if labels else "None has a label."
        raise UserError(
            f"No node of YARN has the label {yarn.node_label!r}. {known} Change `yarn.node_label`."
        )
    usable = [n for n in nodes if yarn.node_label in n.labels or not yarn.node_label]
    _check_containers(usable, yarn, driver=driver)
    if yarn.environment.endswith(environment.ENDINGS):
        environment.check(yarn.environment)
    elif "://" in yarn.environment:
        raise UserError(
            f"yarn.environment must be an archive ({', '.join(environment.ENDINGS)}) or a folder "
            f"that every node has. Received: {yarn.environment}."
        )


def _check_queue(manager: skein.Client, yarn: YarnConfig) -> None:
    queues = {found.name: found for found in manager.get_all_queues()}
    queue = yarn.queue.rsplit(".", 1)[-1]
    if queue not in queues:
        raise UserError(
            f"YARN has no queue {yarn.queue!r}. It has: {', '.join(sorted(queues))}. "
            "Choose one with `yarn.queue`."
        )
    if str(queues[queue].state) != "RUNNING":
        raise UserError(f"YARN's queue {yarn.queue} is stopped. Choose another: `yarn.queue`.")


def _check_containers(nodes: Sequence[Any], yarn: YarnConfig, *, driver: bool) -> None:
    wanted = {
        f"yarn.{role}_{resource}": resource
        for role in ("worker", "scheduler", "driver")[: 3 if driver else 2]
        for resource in ("memory", "vcores", "gpus")
    }
    amounts = {}
    for option, resource in wanted.items():
        value: Any = getattr(yarn, option.removeprefix("yarn."), 0)
        amounts[option] = parse_memory(value) >> 20 if resource == "memory" else value
        largest = max(getattr(node.total_resources, resource) for node in nodes)
        _check_maximum(option, resource, amounts[option])
        if amounts[option] > largest:
            unit = " MiB" if resource == "memory" else ""
            raise UserError(
                f"{option} asks for {amounts[option]}{unit}, but YARN's largest node has "
                f"{largest}{unit}. YARN offers: {describe_nodes(nodes)}. Lower `{option}`."
            )
    needed = MASTER_MIB + sum(amounts[k] for k, resource in wanted.items() if resource == "memory")
    if needed > (total := sum(node.total_resources.memory for node in nodes)):
        raise UserError(
            f"One worker, the scheduler{', the driver' if driver else ''} and skein's master "
            f"together need {needed} MiB, but all nodes of YARN have {total} MiB. Lower "
            f"`yarn.worker_memory`{' or `yarn.driver_memory`' if driver else ''}."
        )


_MAXIMA = {
    "memory": "yarn.scheduler.maximum-allocation-mb",
    "vcores": "yarn.scheduler.maximum-allocation-vcores",
}


def _check_maximum(option: str, resource: str, amount: int) -> None:
    """Refuse more than a container may have, as far as this machine's configuration says it."""
    name = _MAXIMA.get(resource, "")
    most = hadoop.read_property(name) if name else ""
    if most.isdecimal() and amount > int(most):
        unit = " MiB" if resource == "memory" else ""
        raise UserError(
            f"{option} asks for {amount}{unit}, but a container of this YARN has at most "
            f"{most}{unit} ({name}). Lower `{option}`."
        )


def describe_room(manager: skein.Client, yarn: YarnConfig) -> str:
    """Say how much of the queue is in use, and how many workers fit in what nodes have free."""
    queue = manager.get_queue(yarn.queue.rsplit(".", 1)[-1])
    nodes = manager.get_nodes(states=["RUNNING"])
    worker_mib = parse_memory(yarn.worker_memory) >> 20
    n_fit = sum(
        min(
            (node.total_resources.memory - node.used_resources.memory) // worker_mib,
            (node.total_resources.vcores - node.used_resources.vcores) // yarn.worker_vcores,
        )
        for node in nodes
    )
    return (
        f"queue {yarn.queue} uses {queue.percent_used:.0f} % of its share; "
        f"{describe_nodes(nodes)}; {max(n_fit, 0)} workers fit now"
    )


def describe_nodes(nodes: Sequence[Any]) -> str:
    """Return what nodes have, and how much of it is in use, in words."""

    def add_up(kind: str) -> str:
        total = {
            name: sum(getattr(getattr(node, kind), name) for node in nodes)
            for name in ("memory", "vcores", "gpus")
        }
        return "{memory} MiB, {vcores} vcores and {gpus} GPUs".format(**total)

    return (
        f"{add_up('total_resources')} on {len(nodes)} nodes, of which "
        f"{add_up('used_resources')} are in use"
    )
