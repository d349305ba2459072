"""The cluster as one object: start, addresses, faults, stop."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from . import supervisor
from .configuration import (
    Options,
    daemon_commands,
    java_flags,
    user_name,
    write_sites,
)
from .machine import HOST, choose_ports, fetch_hadoop, find_java, tail

HERE = Path(__file__).resolve().parent
YARN_DAEMONS = ("resourcemanager", "nodemanager")


class MiniCluster:
    """HDFS, and YARN where wanted, on this machine's loopback.

    Parameters
    ----------
    directory : path, optional
        Folder for everything the cluster writes; made if missing. A folder that a stopped
        cluster left (``stop(keep=True)``) is taken up again with the files in it. By default a
        temporary folder.
    yarn : bool
        Start the ResourceManager and the NodeManager too; `start_yarn` does it later.
    n_datanodes : int
        DataNodes, named ``datanode-0`` and so on.
    replication : int
        Copies of each block, unless a client asks otherwise.
    heap_mb : int
        Largest heap of each daemon, MiB.
    yarn_memory_mb, yarn_vcores : int
        What the NodeManager offers.
    check_memory : bool
        Whether the NodeManager kills a container that uses more memory than it requested.
    site : mapping of str to mapping, optional
        Further properties by file, such as ``{"hdfs-site": {"dfs.blocksize": 1048576}}``; files
        are ``core-site``, ``hdfs-site``, ``yarn-site`` and ``capacity-scheduler``.
    ports : mapping of str to int, optional
        Ports to use, such as ``{"namenode": 8020, "namenode-http": 9870}``; free ones are chosen
        for the rest.
    timeout_s : float
        How long to wait for the daemons to answer, seconds.

    Attributes
    ----------
    ports : dict of str to int
        Port of each service, once started.

    Raises
    ------
    UnavailableError
        From `start`: no Java 8, 11 or 17; or no Hadoop in the cache and no Maven.
    ValueError
        From `start`: a wanted port is busy, or `directory` holds other things.
    RuntimeError
        From `start`: a daemon ended, or did not answer in time, with the end of its log.

    Examples
    --------
    >>> with MiniCluster(yarn=False) as cluster:  # doctest: +SKIP
    ...     with fsspec.open(f"{cluster.url}/tmp/hello", "wb") as file:
    ...         file.write(b"world")
    ...     cluster.kill("datanode-0")
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        yarn: bool = True,
        n_datanodes: int = 2,
        replication: int = 2,
        heap_mb: int = 256,
        yarn_memory_mb: int = 8192,
        yarn_vcores: int = 4,
        check_memory: bool = True,
        site: Mapping[str, Mapping[str, object]] | None = None,
        ports: Mapping[str, int] | None = None,
        timeout_s: float = 120,
    ) -> None:
        self.ports: dict[str, int] = {}
        self.timeout_s = timeout_s
        self._directory = None if directory is None else Path(directory).resolve()
        self._wanted_ports = dict(ports or {})
        self._options = Options(
            yarn=yarn,
            n_datanodes=n_datanodes,
            replication=replication,
            heap_mb=heap_mb,
            yarn_memory_mb=yarn_memory_mb,
            yarn_vcores=yarn_vcores,
            check_memory=check_memory,
            site=site or {},
        )
        self._java_home = Path()
        self._made_directory = False
        self._supervisor: subprocess.Popen[bytes] | None = None

    @classmethod
    def attach(cls, directory: str | os.PathLike[str]) -> MiniCluster:
        """Find the cluster that runs in `directory`, whoever started it.

        Raises
        ------
        ValueError
            If none was.
        """
        cluster = cls(directory)
        try:
            plan = json.loads((cluster.home / "cluster.json").read_text())
        except FileNotFoundError:
            raise ValueError(f"No cluster is in {cluster.home}. Start one there first.") from None
        cluster.ports = plan["ports"]
        cluster._options = Options(**plan["options"])
        cluster._java_home = Path(plan["environment"]["JAVA_HOME"])
        cluster._made_directory = plan["remove_directory"]
        return cluster

    # Where things are.

    @property
    def home(self) -> Path:
        """The cluster's folder, laid out as a Hadoop installation is (``HADOOP_HOME``)."""
        if self._directory is None:
            raise ValueError("The cluster has no folder yet. Call start() first.")
        return self._directory

    @property
    def conf_dir(self) -> Path:
        """``HADOOP_CONF_DIR``."""
        return self.home / "etc" / "hadoop"

    @property
    def url(self) -> str:
        """HDFS, without a slash at the end: ``hdfs://127.0.0.1:PORT``."""
        return f"hdfs://{HOST}:{self.ports['namenode']}"

    @property
    def webhdfs_url(self) -> str:
        """The same through HTTP: ``webhdfs://127.0.0.1:PORT``."""
        return f"webhdfs://{HOST}:{self.ports['namenode-http']}"

    @property
    def namenode_url(self) -> str:
        """HDFS's web page: ``http://127.0.0.1:PORT``."""
        return f"http://{HOST}:{self.ports['namenode-http']}"

    @property
    def resourcemanager_url(self) -> str:
        """YARN's web page and REST interface: ``http://127.0.0.1:PORT``."""
        return f"http://{HOST}:{self.ports['resourcemanager-http']}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make this cluster the default of what is started with them."""
        return {
            "HADOOP_HOME": str(self.home),
            "HADOOP_CONF_DIR": str(self.conf_dir),
            "YARN_CONF_DIR": str(self.conf_dir),
            "JAVA_HOME": str(self._java_home),
            "HDFS_URL": self.url,
            "WEBHDFS_URL": self.webhdfs_url,
            "PATH": f"{self.home}/bin{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }

    # Its life.

    @property
    def running(self) -> bool:
        """Whether a cluster runs in this folder."""
        if self._directory is None:
            return False
        try:
            with open(self._directory / "run" / "lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def start(self, *, detach: bool = False) -> MiniCluster:
        """Start the daemons and wait until they answer.

        Parameters
        ----------
        detach : bool
            Leave them running when this process ends. Otherwise they, and their files, go with
            it, whatever ends it.
        """
        java_home, java = find_java()
        hadoop = fetch_hadoop(java_home)
        if self.running:
            raise ValueError(f"A cluster runs in {self.home} already. Stop it first.")
        self.ports = choose_ports(self._options.port_names, self._wanted_ports)
        self._java_home = java_home
        self._make_directory()
        try:
            self._write_files(hadoop, java, detach)
            self._start_supervisor(detach)
            yarn = YARN_DAEMONS if self._options.yarn else ()
            self._start_daemons(["namenode", *self._options.datanodes, *yarn])
            self.wait_ready()
            self._make_hdfs_folders()
        except BaseException:
            # A cluster that was to stay leaves its logs to be read.
            self.stop(keep=detach and (self.home / "cluster.json").exists())
            raise
        return self

    def start_yarn(self) -> None:
        """Start the ResourceManager and the NodeManager, if they do not run, and wait."""
        self._start_daemons(YARN_DAEMONS)
        self.wait_ready()

    def stop(self, *, keep: bool = False) -> None:
        """Stop the daemons, and containers with them, and remove their files.

        Parameters
        ----------
        keep : bool
            Leave the files, for a later `start` in the same folder.
        """
        if self._directory is None:
            return
        if self._supervisor is not None:
            self._supervisor.terminate()
            self._supervisor.wait()
            self._supervisor = None
        elif self.running:
            os.kill(int((self.home / "run" / "supervisor").read_text()), signal.SIGTERM)
        self._wait(lambda: not self.running, "the supervisor to end", 60)
        if not keep:
            supervisor.remove_files(self.home, self._made_directory)

    def __enter__(self) -> MiniCluster:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # Single daemons, for fault tests.

    @property
    def daemons(self) -> list[str]:
        """Names of the daemons, running or not."""
        return ["namenode", *self._options.datanodes, *YARN_DAEMONS]

    @property
    def pids(self) -> dict[str, int]:
        """Process id of each daemon that runs."""
        found: dict[str, int] = {}
        if self.running:
            for name in self.daemons:
                with contextlib.suppress(FileNotFoundError):
                    found[name] = int(self._run_file(f"{name}.pid").read_text())
        return found

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a daemon a signal, by default ``kill -9``, and wait until it is gone.

        Parameters
        ----------
        name : str
            One of `daemons`.
        number : int
            A signal. One that ends no process, such as ``SIGSTOP``, is not waited for.
        """
        self._check_name(name)
        pid = self.pids.get(name)
        if pid is None:
            raise ValueError(f"{name} does not run. Running: {', '.join(self.pids) or 'none'}.")
        os.kill(pid, number)
        if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            self._wait(lambda: self.pids.get(name) != pid, f"{name} to end", 30)

    def start_daemon(self, name: str, *, wait: bool = True) -> None:
        """Start a daemon, on its ports and with its files; nothing happens if it runs.

        Parameters
        ----------
        name : str
            One of `daemons`.
        wait : bool
            Wait until the cluster answers again, this daemon included.
        """
        self._start_daemons([name])
        if wait:
            self.wait_ready()

    def restart(self, name: str, *, wait: bool = True) -> None:
        """``kill -9`` a daemon, if it runs, and start it."""
        if name in self.pids:
            self.kill(name)
        self.start_daemon(name, wait=wait)

    def log(self, name: str, n_lines: int = 20) -> str:
        """Return the last lines of a daemon's log."""
        return tail((self.home / "logs" / f"{name}.log").read_text(errors="replace"), n_lines)

    def wait_ready(self, names: Sequence[str] | None = None) -> None:
        """Wait until daemons answer and have found each other.

        The NameNode must be out of safe mode and know as many DataNodes as run; a DataNode must
        be in its service; the NodeManager must have registered since it was started.

        Parameters
        ----------
        names : sequence of str, optional
            By default all that were started and not killed.

        Raises
        ------
        RuntimeError
            If one ends, or does not answer in time, with the end of its log.
        """
        pending = list(self.pids if names is None else names)
        deadline = time.monotonic() + self.timeout_s
        while pending := [name for name in pending if not self._answers(name)]:
            if not self.running:
                raise RuntimeError(f"The supervisor ended. Its log:\n{self.log('supervisor')}")
            for name in pending:
                ended = self._run_file(f"{name}.exit")
                if ended.exists():
                    status = ended.read_text()
                    raise RuntimeError(f"{name} ended with status {status}. {self._excuse(name)}")
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{pending[0]} did not answer within {self.timeout_s:.0f} s. "
                    f"{self._excuse(pending[0])}"
                )
            time.sleep(0.1)

    # Inside.

    def _run_file(self, name: str) -> Path:
        return self.home / "run" / name

    def _excuse(self, name: str) -> str:
        return f"The end of its log, {self.home}/logs/{name}.log:\n{self.log(name)}"

    def _check_name(self, name: str) -> None:
        if name not in self.daemons:
            raise ValueError(f"Daemons are {', '.join(self.daemons)}. Received: {name}.")

    def _wait(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"Waited {timeout_s:.0f} s for {what} in {self.home}.")
            time.sleep(0.02)

    def _start_daemons(self, names: Sequence[str]) -> None:
        for name in names:
            self._check_name(name)
        if not self.running:  # opening the pipe would wait for it for ever
            raise ValueError(f"No cluster runs in {self.home}. Start one there first.")
        missing = [name for name in names if name not in self.pids]
        for name in missing:
            self._run_file(f"{name}.exit").unlink(missing_ok=True)
        with open(self._run_file("control"), "w") as control:
            control.writelines(f"{name}\n" for name in missing)
        marks = [(self._run_file(f"{n}.pid"), self._run_file(f"{n}.exit")) for n in missing]
        self._wait(
            lambda: all(pid.exists() or ended.exists() for pid, ended in marks),
            "the supervisor to start the daemons",
            self.timeout_s,
        )

    def _answers(self, name: str) -> bool:
        try:
            if name == "namenode":
                state = self._bean("namenode", "NameNode,name=FSNamesystemState")
                n_started = sum(daemon.startswith("datanode") for daemon in self.pids)
                known = int(state["NumLiveDataNodes"])
                return state["FSState"] == "Operational" and known >= n_started
            if name.startswith("datanode"):
                info = self._bean(name, "DataNode,name=DataNodeInfo")
                actors = json.loads(info["BPServiceActorInfo"])
                return [actor["ActorState"] for actor in actors] == ["RUNNING"]
            if name == "resourcemanager":
                info = _get(f"{self.resourcemanager_url}/ws/v1/cluster/info")["clusterInfo"]
                return bool(info["state"] == "STARTED")
            answer = _get(f"{self.resourcemanager_url}/ws/v1/cluster/nodes?states=RUNNING")
            # The ResourceManager remembers a node that was killed: count what it said since.
            started_ms = self._run_file("nodemanager.pid").stat().st_mtime * 1000
            nodes = (answer["nodes"] or {}).get("node", [])
            # Its scheduler learns of a node a moment later, and refuses all work until then.
            metrics = _get(f"{self.resourcemanager_url}/ws/v1/cluster/metrics")["clusterMetrics"]
            return metrics["totalMB"] > 0 and any(
                node["lastHealthUpdate"] >= started_ms for node in nodes
            )
        except (OSError, ValueError, LookupError):
            return False

    def _bean(self, name: str, bean: str) -> Any:
        port = self.ports[f"{name}-http"]
        return _get(f"http://{HOST}:{port}/jmx?qry=Hadoop:service={bean}")["beans"][0]

    def _make_hdfs_folders(self) -> None:
        user = user_name()
        for path, mode in (("/tmp", 1777), ("/tmp/logs", 1777), (f"/user/{user}", 755)):
            query = f"op=MKDIRS&permission={mode}&user.name={user}"
            url = f"{self.namenode_url}/webhdfs/v1{path}?{query}"
            _get(url, method="PUT", timeout_s=self.timeout_s)

    def _make_directory(self) -> None:
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="hadoop-"))
            self._made_directory = True
        elif not re.fullmatch(r"[\w./@+=~-]+", str(self._directory)):
            # DataNodes take a folder as a list of URLs, others as a path: no escape suits both.
            raise ValueError(
                f"Hadoop cannot work in {str(self._directory)!r}. Give a folder whose path has "
                "only letters, digits and ./_@+=~-."
            )
        elif not self._directory.exists():
            self._directory.mkdir(parents=True)
            self._made_directory = True
        elif any(self._directory.iterdir()) and not (self._directory / "cluster.json").exists():
            raise ValueError(
                f"{self._directory} holds files that no cluster wrote. Give an empty or new folder."
            )

    def _write_files(self, hadoop: Path, java_version: int, detach: bool) -> None:
        home, jars, flags = self.home, hadoop / "jars", java_flags(java_version)
        shutil.rmtree(home / "run", ignore_errors=True)
        for folder in ("bin", "etc/hadoop", "run", "logs", "tmp", "yarn/local", "yarn/logs"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        write_sites(self.conf_dir, home, self.ports, self._options, jars)
        shutil.copyfile(HERE / "log4j.properties", self.conf_dir / "log4j.properties")
        (self.conf_dir / "hadoop-env.sh").write_text(
            f"JAVA_HOME={shlex.quote(str(self._java_home))}\n"
            f"HADOOP_JARS={shlex.quote(str(jars))}\n"
            f"HADOOP_JAVA_FLAGS={shlex.quote(' '.join(flags))}\n"
        )
        for name in ("hadoop", "hdfs", "yarn"):
            shutil.copyfile(HERE / "launcher.sh", home / "bin" / name)
            (home / "bin" / name).chmod(0o755)
        exports = {**self.environment, "PATH": f"{home}/bin:$PATH"}
        (home / "env.sh").write_text("".join(f'export {k}="{v}"\n' for k, v in exports.items()))

        java = [str(self._java_home / "bin" / "java"), f"-Xmx{self._options.heap_mb}m", *flags]
        java += ["-XX:+ExitOnOutOfMemoryError", "-Dhadoop.root.logger=INFO,console"]
        java += [f"-Djava.io.tmpdir={home}/tmp"]
        java += ["-cp", f"{self.conf_dir}:{hadoop}/web:{jars}/*"]
        plan = {
            "options": dataclasses.asdict(self._options),
            "ports": self.ports,
            "environment": {k: v for k, v in self.environment.items() if "HDFS" not in k},
            "commands": daemon_commands(home, self.ports, self._options, java),
            # Nobody is left to remove the files of an owner that was killed.
            "remove": not detach,
            "remove_directory": self._made_directory,
        }
        (home / "cluster.json").write_text(json.dumps(plan, indent=1, default=str))

    def _start_supervisor(self, detach: bool) -> None:
        script = [sys.executable, "-I", str(HERE / "supervisor.py")]
        with open(self.home / "logs" / "supervisor.log", "ab") as log:
            process = subprocess.Popen(
                [*script, str(self.home), "0" if detach else str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the command in front; the owner stops the cluster in its time.
                start_new_session=True,
            )
        self._supervisor = process
        ready = self._run_file("supervisor")
        self._wait(
            lambda: ready.exists() or process.poll() is not None, "the supervisor", self.timeout_s
        )
        if process.poll() is not None:
            raise RuntimeError(f"The supervisor ended. Its log:\n{self.log('supervisor')}")
        if detach:
            process.returncode = 0  # it outlives this process: nothing for Popen to warn about
            self._supervisor = None


def _get(url: str, method: str = "GET", timeout_s: float = 20) -> Any:
    # Loopback is never behind the proxy that the environment may name.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, method=method), timeout=timeout_s) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        error.close()
        raise
