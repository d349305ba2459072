"""Configuration of the daemons: Hadoop's XML files, and the command lines that start them."""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

from .machine import HOST

YARN_PORTS = (
    "resourcemanager",
    "resourcemanager-scheduler",
    "resourcemanager-tracker",
    "resourcemanager-admin",
    "resourcemanager-http",
    "nodemanager",
    "nodemanager-localizer",
    "nodemanager-http",
)


@dataclass(frozen=True)
class Options:
    """Options of a cluster; :class:`~localhadoop.cluster.MiniCluster` describes each."""

    yarn: bool = True
    n_datanodes: int = 2
    replication: int = 2
    heap_mb: int = 256
    yarn_memory_mb: int = 8192
    yarn_vcores: int = 4
    check_memory: bool = True
    site: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    @property
    def datanodes(self) -> list[str]:
        """Names of the DataNodes."""
        return [f"datanode-{index}" for index in range(self.n_datanodes)]

    @property
    def port_names(self) -> list[str]:
        """Names of all ports, those of YARN included: it can be started later."""
        names = ["namenode", "namenode-http", *YARN_PORTS]
        return names + [name + kind for name in self.datanodes for kind in ("", "-ipc", "-http")]


def user_name() -> str:
    """Return the name that the daemons' JVMs give this user, who is HDFS's superuser."""
    return pwd.getpwuid(os.getuid()).pw_name


def core_site(home: Path, ports: Mapping[str, int]) -> dict[str, object]:
    """Return the properties of ``core-site.xml``."""
    return {
        "fs.defaultFS": f"hdfs://{HOST}:{ports['namenode']}",
        "hadoop.tmp.dir": home / "tmp",
        # Who runs the cluster may act for others, as an edge node's services do.
        f"hadoop.proxyuser.{user_name()}.hosts": "*",
        f"hadoop.proxyuser.{user_name()}.groups": "*",
    }


def hdfs_site(home: Path, ports: Mapping[str, int], options: Options) -> dict[str, object]:
    """Return the properties of ``hdfs-site.xml``, but those that differ between DataNodes."""
    return {
        "dfs.replication": options.replication,
        "dfs.namenode.name.dir": f"file://{home}/name",
        "dfs.namenode.rpc-address": f"{HOST}:{ports['namenode']}",
        "dfs.namenode.http-address": f"{HOST}:{ports['namenode-http']}",
        "dfs.datanode.hostname": HOST,
        "dfs.namenode.datanode.registration.ip-hostname-check": "false",
        "dfs.permissions.enabled": "true",
        # Not `dfs.namenode.file.close.num-committed-allowed`, tempting for small files: hdfs-native
        # then reads a file just closed as empty, without an error.
        # Tests make files of many blocks, and tight quotas, from few bytes.
        "dfs.namenode.fs-limits.min-block-size": 512,
        # A DataNode that is gone is passed over after 3 s and given up after 14 s.
        "dfs.heartbeat.interval": 1,
        "dfs.namenode.heartbeat.recheck-interval": 2000,
        "dfs.namenode.stale.datanode.interval": 3000,
        "dfs.namenode.avoid.read.stale.datanode": "true",
        "dfs.namenode.avoid.write.stale.datanode": "true",
        "dfs.namenode.redundancy.interval.seconds": 1,
        "dfs.namenode.safemode.extension": 0,
        # A laptop's disk may be nearly full.
        "dfs.namenode.resource.du.reserved": 0,
        "dfs.datanode.scan.period.hours": -1,
    }


def yarn_site(
    home: Path, ports: Mapping[str, int], options: Options, jars: Path
) -> dict[str, object]:
    """Return the properties of ``yarn-site.xml``."""
    manager, node = "yarn.resourcemanager", "yarn.nodemanager"
    disk = f"{node}.disk-health-checker"
    return {
        f"{manager}.hostname": HOST,
        f"{manager}.address": f"{HOST}:{ports['resourcemanager']}",
        f"{manager}.scheduler.address": f"{HOST}:{ports['resourcemanager-scheduler']}",
        f"{manager}.resource-tracker.address": f"{HOST}:{ports['resourcemanager-tracker']}",
        f"{manager}.admin.address": f"{HOST}:{ports['resourcemanager-admin']}",
        f"{manager}.webapp.address": f"{HOST}:{ports['resourcemanager-http']}",
        f"{manager}.scheduler.class": (
            "org.apache.hadoop.yarn.server.resourcemanager.scheduler.capacity.CapacityScheduler"
        ),
        f"{manager}.nodemanagers.heartbeat-interval-ms": 200,
        "yarn.nm.liveness-monitor.expiry-interval-ms": 20000,
        "yarn.scheduler.minimum-allocation-mb": 128,
        "yarn.scheduler.maximum-allocation-mb": options.yarn_memory_mb,
        "yarn.scheduler.maximum-allocation-vcores": options.yarn_vcores,
        f"{node}.hostname": HOST,
        f"{node}.address": f"{HOST}:{ports['nodemanager']}",
        f"{node}.localizer.address": f"{HOST}:{ports['nodemanager-localizer']}",
        f"{node}.webapp.address": f"{HOST}:{ports['nodemanager-http']}",
        f"{node}.local-dirs": home / "yarn" / "local",
        f"{node}.log-dirs": home / "yarn" / "logs",
        f"{node}.resource.memory-mb": options.yarn_memory_mb,
        f"{node}.resource.cpu-vcores": options.yarn_vcores,
        f"{node}.pmem-check-enabled": str(options.check_memory).lower(),
        # A JVM, and NumPy, reserve far more address space than they use.
        f"{node}.vmem-check-enabled": "false",
        f"{node}.container-monitor.interval-ms": 1000,
        # A nearly full disk is no reason to refuse containers here.
        f"{disk}.max-disk-utilization-per-disk-percentage": 100,
        f"{disk}.min-free-space-per-disk-mb": 0,
        f"{node}.remote-app-log-dir": "/tmp/logs",
        "yarn.log-aggregation-enable": "true",
        "yarn.node-attribute.fs-store.root-dir": f"file://{home}/yarn/node-attribute",
        "yarn.node-labels.fs-store.root-dir": f"file://{home}/yarn/node-labels",
        # What skein and others put on their application masters' class path.
        "yarn.application.classpath": f"{home}/etc/hadoop,{jars}/*",
    }


def capacity_scheduler() -> dict[str, object]:
    """Return ``capacity-scheduler.xml``: queue `default`, and `small` of at most a quarter."""
    base = "yarn.scheduler.capacity"
    return {
        f"{base}.root.queues": "default,small",
        f"{base}.root.default.capacity": 90,
        f"{base}.root.default.maximum-capacity": 100,
        f"{base}.root.default.user-limit-factor": 2,
        f"{base}.root.small.capacity": 10,
        f"{base}.root.small.maximum-capacity": 25,
        f"{base}.root.small.user-limit-factor": 10,
        # Masters are large beside their workers here; the usual tenth would let none start.
        f"{base}.maximum-am-resource-percent": 0.6,
        f"{base}.node-locality-delay": 0,
        # Count cores too, not only memory.
        f"{base}.resource-calculator": (
            "org.apache.hadoop.yarn.util.resource.DominantResourceCalculator"
        ),
    }


def write_sites(
    folder: Path, home: Path, ports: Mapping[str, int], options: Options, jars: Path
) -> None:
    """Write the XML files of a ``HADOOP_CONF_DIR``.

    Parameters
    ----------
    folder : Path
        The ``HADOOP_CONF_DIR``.
    home : Path
        The cluster's folder.
    ports : mapping of str to int
        One for each of ``options.port_names``.
    options : Options
    jars : Path
        The folder of Hadoop's jars.

    Raises
    ------
    ValueError
        If ``options.site`` names another file.
    """
    sites = {
        "core-site": core_site(home, ports),
        "hdfs-site": hdfs_site(home, ports, options),
        "yarn-site": yarn_site(home, ports, options, jars),
        "capacity-scheduler": capacity_scheduler(),
    }
    if unknown := sorted(set(options.site) - set(sites)):
        raise ValueError(f"`site` is by file: {', '.join(sites)}. Received: {', '.join(unknown)}.")
    for name, properties in sites.items():
        rows = "".join(
            f"  <property><name>{key}</name><value>{escape(str(value))}</value></property>\n"
            for key, value in {**properties, **options.site.get(name, {})}.items()
        )
        text = f'<?xml version="1.0"?>\n<configuration>\n{rows}</configuration>\n'
        (folder / f"{name}.xml").write_text(text)


def java_flags(version: int) -> list[str]:
    """Options that every JVM gets: the daemons', and those of the commands in ``bin``."""
    # Guice, in the YARN daemons, defines classes in java.lang's loader.
    opens = ["--add-opens=java.base/java.lang=ALL-UNNAMED"] if version > 8 else []
    # The quick compiler takes a third less processor until a JVM answers, and a third less to move
    # a gigabyte. Without perf data nothing is left in /tmp/hsperfdata_* by a JVM that was killed.
    quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData"]
    return [*opens, *quick, "-Djava.net.preferIPv4Stack=true"]


def daemon_commands(
    home: Path, ports: Mapping[str, int], options: Options, java: list[str]
) -> dict[str, list[str]]:
    """Command line of each daemon.

    Parameters
    ----------
    home : Path
        The cluster's folder.
    ports : mapping of str to int
    options : Options
    java : list of str
        ``java`` with everything before the class name.
    """
    namenode = "org.apache.hadoop.hdfs.server.namenode.NameNode"
    formatted = shlex.quote(f"{home}/name/current/VERSION")
    format_first = shlex.join([*java, namenode, "-format", "-nonInteractive"])
    serve = f"[ -e {formatted} ] || {format_first} || exit; exec {shlex.join([*java, namenode])}"
    yarn = "org.apache.hadoop.yarn.server"
    commands = {
        "namenode": ["/bin/sh", "-c", serve],
        "resourcemanager": [*java, f"{yarn}.resourcemanager.ResourceManager"],
        "nodemanager": [*java, f"{yarn}.nodemanager.NodeManager"],
    }
    for name in options.datanodes:
        own = {
            "dfs.datanode.data.dir": f"file://{home}/data/{name}",
            "dfs.datanode.address": f"{HOST}:{ports[name]}",
            "dfs.datanode.ipc.address": f"{HOST}:{ports[name + '-ipc']}",
            "dfs.datanode.http.address": f"{HOST}:{ports[name + '-http']}",
        }
        settings = [part for key, value in own.items() for part in ("-D", f"{key}={value}")]
        commands[name] = [*java, "org.apache.hadoop.hdfs.server.datanode.DataNode", *settings]
    return commands
