"""The specification that YARN is handed: services, their containers and what runs in them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dask
import skein

from dtl.cluster import environment, processors
from dtl.cluster.workers import SETTINGS
from dtl.cluster.yarn.containers import ADDRESS, DRIVER, SCHEDULER, WORKER
from dtl.config import ClusterConfig, YarnConfig, parse_memory
from dtl.config.errors import UserError
from dtl.config.secrets import HIDDEN

MASTER_MIB = 512
"""Memory of skein's ApplicationMaster; its heap is 128 MiB."""


def make_specification(
    cluster: ClusterConfig,
    yarn: YarnConfig,
    conf_dir: str,
    *,
    file_systems: Iterable[str] = (),
    driver: Sequence[str] = (),
    driver_files: Iterable[str] = (),
) -> skein.ApplicationSpec:
    """Return the application as skein takes it; ``deploy/yarn`` shows one.

    Parameters
    ----------
    conf_dir : str
        Folder of the Hadoop client's configuration, which goes into the containers.
    file_systems : iterable of str
        URLs of filesystems besides the default one that Kerberos tokens are needed for.
    driver : sequence of str
        Arguments of dtl's command line, if that runs in a container, too.
    driver_files : iterable of str
        Files that only that container needs.
    """
    threads = cluster.threads_per_worker or yarn.worker_vcores
    archive = yarn.environment.endswith(environment.ENDINGS)
    folder = "environment" if archive else (yarn.environment or sys.prefix).rstrip("/")
    python = shlex.quote(f"{folder}/bin/python")
    files: dict[str, skein.File] = {
        Path(file).name: skein.File(file)
        for file in (*_hadoop_configuration(conf_dir), *yarn.files)
    }
    if archive:
        # Private: it is unpacked once on a node, for all applications of this user.
        files["environment"] = skein.File(yarn.environment, type="ARCHIVE", visibility="PRIVATE")
    own = dict(item.split("=", 1) for item in yarn.env)
    if hidden := [name for name, value in own.items() if value == HIDDEN]:
        raise UserError(
            f"`yarn.env` lacks the values of {', '.join(hidden)}, which no file of a run keeps. "
            "Give all of it again, or give it empty."
        )

    def service(
        role: str, command: str, *, env: Mapping[str, str] | None = None,
        more_files: Iterable[str] = (), **others: Any,
    ) -> skein.Service:  # fmt: skip
        return skein.Service(
            resources=skein.Resources(
                memory=parse_memory(getattr(yarn, f"{role}_memory")) >> 20,
                vcores=yarn.worker_vcores if role == "worker" else 1,
                gpus=yarn.worker_gpus if role == "worker" else 0,
            ),
            files=files | {Path(file).name: skein.File(file) for file in more_files},
            env=_TLS | dict(env or {}) | own,
            script="\n".join(
                ["export HADOOP_CONF_DIR=$PWD TMPDIR=$PWD/tmp", *command.splitlines()]
            ),
            **others,
        )

    adapt = f" --min-workers {cluster.n_workers} --max-workers {yarn.adaptive_max}"
    services = {
        SCHEDULER: service(
            "scheduler",
            f"exec {python} -m distributed.cli.dask_scheduler --protocol tls --port 0 "
            "--dashboard-address :0 --preload dtl.cluster.yarn.containers"
            + (adapt if yarn.adaptive_max else ""),
        ),
        WORKER: service(
            "worker",
            f"scheduler=$({python} -m skein.cli kv get current --key {ADDRESS} --wait) || exit\n"
            f'exec {python} -m distributed.cli.dask_worker "$scheduler" '
            f'--name "$SKEIN_CONTAINER_ID" --nthreads {max(threads, 2)} '
            f"--memory-limit {limit_worker_memory(cluster, yarn)} "
            "--no-nanny --no-dashboard --death-timeout 60 --local-directory .",
            env=_worker_environment(threads),
            instances=cluster.n_workers,
            max_restarts=-1,
            depends=[SCHEDULER],
        ),
    }
    if driver:
        services[DRIVER] = service(
            "driver",
            f"exec {python} -m dtl.cluster.yarn.containers {shlex.join(driver)}",
            more_files=driver_files,
            depends=[SCHEDULER],
        )
    return skein.ApplicationSpec(
        name=yarn.name,
        queue=yarn.queue,
        node_label=yarn.node_label,
        tags={"dtl"},
        file_systems=sorted(set(file_systems)),
        master=skein.Master(resources=skein.Resources(memory=MASTER_MIB, vcores=1)),
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


_ARITHMETIC = (
    *processors.LIMITS, "TF_ENABLE_ONEDNN_OPTS", "OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES",
)  # fmt: skip
"""Variables that choose the instructions, and so the last bits: containers get the driver's."""


def _worker_environment(threads: int) -> dict[str, str]:
    # As dtl.cluster and Dask's nanny do on this machine, so that the same bits come out.
    nanny = dask.config.get("distributed.nanny.pre-spawn-environ")
    given = {name: os.environ[name] for name in _ARITHMETIC if name in os.environ}
    return (
        {name: str(value) for name, value in nanny.items()}
        | given
        | {"TF_NUM_INTRAOP_THREADS": str(threads)}
        | {f"DASK_{key.replace('.', '__').upper()}": value for key, value in SETTINGS.items()}
    )


def _hadoop_configuration(conf_dir: str) -> list[str]:
    names = ("core-site.xml", "hdfs-site.xml")
    return [f"{conf_dir}/{name}" for name in names if Path(conf_dir, name).exists()]


def limit_worker_memory(cluster: ClusterConfig, yarn: YarnConfig) -> int:
    """Return the bytes that Dask lets a worker use: its container's, or fewer if so configured.

    Raises
    ------
    UserError
        If ``cluster.memory_limit`` is more than the container has.
    """
    container = parse_memory(yarn.worker_memory) >> 20 << 20  # YARN counts whole MiB
    if cluster.memory_limit == "auto":
        return container
    limit = parse_memory(cluster.memory_limit)
    if limit > container:
        raise UserError(
            f"cluster.memory_limit = {cluster.memory_limit} is more than the container has, "
            f"yarn.worker_memory = {yarn.worker_memory}: YARN would kill it. Raise "
            "`yarn.worker_memory`, or leave `cluster.memory_limit` at auto."
        )
    return limit
