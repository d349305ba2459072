"""The application as skein takes it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import dask
import skein
from dask.utils import parse_bytes

from dtl.cluster import environment
from dtl.cluster.yarn.containers import ADDRESS, DRIVER, SCHEDULER, WORKER
from dtl.config import ClusterConfig, YarnConfig

MASTER_MIB = 512
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
            "--dashboard-address :0 --preload dtl.cluster.yarn.containers"
            + adapt
            * bool(yarn.adaptive_max),
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
            f"exec {python} -m dtl.cluster.yarn.containers {shlex.join(driver)}",
            depends=[SCHEDULER],
            more=driver_files,
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
