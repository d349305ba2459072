"""The cluster that other tests stand on: it is real, breaks on demand and leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import fsspec
import minicluster
import pytest
from helpers import processes_of, wait_until
from localhadoop import machine
from minicluster import MiniCluster, UnavailableError

SCRIPT = Path(minicluster.__file__)


def call(
    cluster: MiniCluster, *command: str, user: str | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **cluster.environment}
    if user is not None:
        env["HADOOP_USER_NAME"] = user
    return subprocess.run(command, env=env, capture_output=True, text=True, check=check)


def rest(cluster: MiniCluster, path: str, body: object = None) -> Any:
    url = f"{cluster.resourcemanager_url}/ws/v1/cluster/{path}?user.name=tester"
    request = urllib.request.Request(url, headers={"Content-Type": "application/json"})
    if body is not None:
        request.data, request.method = json.dumps(body).encode(), "POST"
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or "null")


def filesystem(url: str) -> Any:
    return fsspec.core.url_to_fs(url, skip_instance_cache=True)[0]


@pytest.fixture
def path_without_maven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH with all that is needed but mvn."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for place in reversed(os.environ["PATH"].split(os.pathsep)):
        for program in Path(place).glob("*"):
            if program.name != "mvn":
                (folder / program.name).unlink(missing_ok=True)
                (folder / program.name).symlink_to(program.resolve())
    monkeypatch.setenv("PATH", str(folder))
    assert shutil.which("mvn") is None


# HDFS.


@pytest.mark.parametrize("kind", ["url", "webhdfs_url"])
def test_a_file_written_through_fsspec_is_read_back(hadoop: MiniCluster, kind: str) -> None:
    url = f"{getattr(hadoop, kind)}/tmp/fsspec-{kind}"
    fs = filesystem(url)
    data = os.urandom(300_000)
    fs.pipe(url, data)
    assert fs.cat(url) == data
    assert fs.info(url)["size"] == len(data)
    fs.rm(url)
    assert not fs.exists(url)


def test_the_launcher_puts_and_gets_files(hadoop: MiniCluster, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"from the command line")
    call(hadoop, "hdfs", "dfs", "-put", str(tmp_path / "in"), "/tmp/launcher")
    assert filesystem(hadoop.url).cat(f"{hadoop.url}/tmp/launcher") == b"from the command line"
    call(hadoop, "hadoop", "fs", "-get", "/tmp/launcher", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == b"from the command line"


def test_the_launcher_names_its_commands(hadoop: MiniCluster) -> None:
    done = call(hadoop, "yarn", "dance", check=False)
    assert done.returncode == 2
    assert "Usage: yarn COMMAND" in done.stderr
    assert "classpath" in done.stderr


def test_permissions_and_quotas_are_enforced(hadoop: MiniCluster) -> None:
    denied = call(hadoop, "hdfs", "dfs", "-mkdir", "/user/alice", user="alice", check=False)
    assert "Permission denied: user=alice" in denied.stderr
    fs = filesystem(hadoop.url)
    fs.mkdir(f"{hadoop.url}/tmp/tight")
    call(hadoop, "hdfs", "dfsadmin", "-setQuota", "2", "/tmp/tight")
    fs.pipe(f"{hadoop.url}/tmp/tight/one", b"1")
    with pytest.raises(PermissionError, match="The quota of names is used up"):
        fs.pipe(f"{hadoop.url}/tmp/tight/two", b"2")


def test_a_file_is_readable_without_either_datanode(breakable_hadoop: MiniCluster) -> None:
    cluster = breakable_hadoop
    url = f"{cluster.url}/tmp/twice"
    data = os.urandom(2_000_000)
    filesystem(url).pipe(url, data)
    for name in ("datanode-0", "datanode-1"):
        cluster.kill(name)
        assert name not in cluster.pids
        assert filesystem(url).cat(url) == data
        cluster.start_daemon(name)


def test_the_namenode_comes_back_with_its_files(breakable_hadoop: MiniCluster) -> None:
    cluster = breakable_hadoop
    url = f"{cluster.url}/tmp/remembered"
    filesystem(url).pipe(url, b"remembered")
    before = cluster.pids["namenode"]
    cluster.restart("namenode")
    assert cluster.pids["namenode"] != before
    assert filesystem(url).cat(url) == b"remembered"


def test_unknown_and_dead_daemons_are_refused(breakable_hadoop: MiniCluster) -> None:
    with pytest.raises(ValueError, match="Daemons are namenode, datanode-0"):
        breakable_hadoop.kill("secondarynamenode")
    breakable_hadoop.kill("datanode-1")
    with pytest.raises(ValueError, match="datanode-1 does not run"):
        breakable_hadoop.kill("datanode-1")


# YARN.


def test_the_class_path_names_jars_that_exist(hadoop: MiniCluster) -> None:
    entries = call(hadoop, "yarn", "classpath", "--glob").stdout.strip().split(":")
    assert len(entries) > 100
    assert all(Path(entry).exists() for entry in entries)
    names = " ".join(Path(entry).name for entry in entries)
    for jar in ("hadoop-yarn-client", "hadoop-hdfs-client", "websocket-client", "reload4j"):
        assert jar in names


def test_the_resourcemanager_has_one_node(yarn: MiniCluster) -> None:
    metrics = rest(yarn, "metrics")["clusterMetrics"]
    assert metrics["activeNodes"] == 1
    assert metrics["totalMB"] == 8192
    assert metrics["totalVirtualCores"] == 4
    info = rest(yarn, "scheduler")["scheduler"]["schedulerInfo"]
    assert [queue["queueName"] for queue in info["queues"]["queue"]] == ["default", "small"]


def test_an_application_runs_java_in_its_containers(yarn: MiniCluster) -> None:
    entries = call(yarn, "yarn", "classpath", "--glob").stdout.strip().split(":")
    jar = next(entry for entry in entries if "distributedshell" in entry)
    client = "org.apache.hadoop.yarn.applications.distributedshell.Client"
    # A JVM is the master, and a JVM that reads HDFS is the command.
    shell = ["-shell_command", "$HADOOP_HOME/bin/hdfs dfs -ls / && echo two-lines-$((40 + 2))"]
    sizes = ["-num_containers", "1", "-master_memory", "384", "-container_memory", "512"]
    call(yarn, "yarn", "jar", jar, client, "-jar", jar, *shell, *sizes)
    app = max(rest(yarn, "apps")["apps"]["app"], key=lambda app: app["startedTime"])
    assert (app["state"], app["finalStatus"]) == ("FINISHED", "SUCCEEDED")
    logs = ("yarn", "logs", "-applicationId", app["id"])
    wait_until(
        # It fails until the NodeManager has put the logs together.
        lambda: "two-lines-42" in call(yarn, *logs, check=False).stdout,
        "the container's log",
        timeout_s=600,
    )


def test_the_nodemanager_registers_again(yarn: MiniCluster, breakable_hadoop: MiniCluster) -> None:
    yarn.kill("nodemanager")
    yarn.start_daemon("nodemanager")
    assert rest(yarn, "metrics")["clusterMetrics"]["activeNodes"] == 1


# Starting and stopping.


@pytest.mark.slow
def test_a_second_start_needs_no_maven_and_stop_leaves_nothing(
    hadoop_installed: None, tmp_path: Path, path_without_maven: None
) -> None:
    home = tmp_path / "cluster"
    with MiniCluster(home, yarn=False, n_datanodes=1, replication=1) as cluster:
        assert len(processes_of(home)) >= 3
        fs = filesystem(cluster.url)
        fs.pipe(f"{cluster.url}/tmp/x", b"x")
    assert processes_of(home) == []
    assert not home.exists()
    assert not cluster.running


@pytest.mark.slow
def test_the_command_line_starts_keeps_and_stops(hadoop_installed: None, tmp_path: Path) -> None:
    def minicluster(*args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), args[0], "--dir", str(home), *args[1:]]
        return subprocess.run(command, capture_output=True, text=True, check=check)

    home = tmp_path / "cluster"
    started = minicluster("start", "--no-yarn")
    assert "resourcemanager  does not run" in started.stdout
    cluster = MiniCluster.attach(home)
    filesystem(cluster.url).pipe(f"{cluster.url}/tmp/kept", b"kept")
    again = minicluster("start", check=False)
    assert again.returncode == 1
    assert "already. Stop it first" in again.stderr
    minicluster("kill", "datanode-1")
    assert "datanode-1       does not run" in minicluster("status").stdout
    minicluster("stop", "--keep")
    assert processes_of(home) == []

    code = (
        "import fsspec, os; print(fsspec.open(os.environ['HDFS_URL'] + '/tmp/kept').open().read())"
    )
    run = minicluster("run", "--no-yarn", "--", sys.executable, "-c", code)
    assert run.stdout == "b'kept'\n"
    assert processes_of(home) == []
    assert "No cluster is in" in minicluster("stop", check=False).stderr


@pytest.mark.slow
def test_nothing_outlives_an_owner_that_is_killed(hadoop_installed: None, tmp_path: Path) -> None:
    home = tmp_path / "cluster"
    code = (
        f"import sys, time; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "from minicluster import MiniCluster\n"
        f"MiniCluster({str(home)!r}, n_datanodes=1, replication=1).start()\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with owner:
        assert owner.stdout.readline() == b"ready\n"
        cluster = MiniCluster.attach(home)
        app = rest(cluster, "apps/new-application", {})["application-id"]
        master = {
            "application-id": app,
            "application-name": "sleeper",
            "am-container-spec": {"commands": {"command": "sleep 12345"}},
            "resource": {"memory": 128, "vCores": 1},
        }
        rest(cluster, "apps", master)
        sleeping = lambda: [pid for pid in processes_of(home) if is_sleep(pid)]  # noqa: E731
        wait_until(sleeping, "the container")
        # A container whose NodeManager is gone is nobody's; it must go nevertheless.
        cluster.kill("nodemanager")
        assert sleeping()
        owner.send_signal(signal.SIGKILL)
        wait_until(lambda: not processes_of(home) and not home.exists(), "the end of everything")


def is_sleep(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x0012345\x00"
    except OSError:
        return False


# What may be missing or in the way.


@pytest.mark.slow
def test_a_daemon_that_cannot_start_shows_its_log(hadoop_installed: None, tmp_path: Path) -> None:
    cluster = MiniCluster(
        tmp_path / "cluster", yarn=False, site={"hdfs-site": {"dfs.namenode.name.dir": "/proc/no"}}
    )
    with pytest.raises(RuntimeError, match=r"(?s)namenode ended with status 1\..*/proc/no"):
        cluster.start()
    assert processes_of(tmp_path / "cluster") == []
    assert not (tmp_path / "cluster").exists()


def test_a_busy_port_is_named(hadoop_installed: None, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"Port {port}, wanted for namenode, is busy"):
            MiniCluster(tmp_path, ports={"namenode": port}).start()
    with pytest.raises(ValueError, match="Received: nameserver"):
        MiniCluster(tmp_path, ports={"nameserver": port}).start()


def test_a_folder_with_other_files_is_refused(hadoop_installed: None, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds files that no cluster wrote"):
        MiniCluster(tmp_path).start()
    assert (tmp_path / "thesis.tex").exists()


def test_a_folder_that_hadoop_cannot_name_is_refused(
    hadoop_installed: None, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"Hadoop cannot work in .*my cluster"):
        MiniCluster(tmp_path / "my cluster").start()


def test_an_unknown_file_of_properties_is_refused(hadoop_installed: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Received: mapred-site"):
        MiniCluster(tmp_path / "cluster", site={"mapred-site": {"a": 1}}).start()
    assert not (tmp_path / "cluster").exists()


def fake_java(folder: Path, version: str) -> Path:
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2026-01-01' >&2\n")
    java.chmod(0o755)
    return folder


@pytest.mark.parametrize(("text", "version"), [("1.8.0_402", 8), ("17.0.15", 17), ("25", 25)])
def test_java_versions_are_read(tmp_path: Path, text: str, version: int) -> None:
    assert machine.java_version(fake_java(tmp_path / "java", text)) == version


def test_java_is_looked_for_in_java_home_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "java", "11.0.2")))
    assert machine.find_java() == (tmp_path / "java", 11)


def test_a_wrong_java_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "JAVA_VERSIONS", ())
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "java", "25.0.1")))
    with pytest.raises(UnavailableError, match=r"Java 8, 11 or 17\. Found: Java 25 in .*java"):
        machine.find_java()


def test_no_java_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "java_version", lambda home: None)
    with pytest.raises(UnavailableError, match="Found: no java"):
        MiniCluster(tmp_path).start()


def test_no_maven_and_no_jars_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path_without_maven: None
) -> None:
    monkeypatch.setenv("DTL_HADOOP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UnavailableError, match="there is no mvn on PATH"):
        machine.fetch_hadoop(tmp_path)


def test_a_download_that_fails_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maven = tmp_path / "programs" / "mvn"
    maven.parent.mkdir()
    maven.write_text('#!/bin/sh\nmkdir -p "${6#-Dtarget=}"/jars\necho no route to host\nexit 1\n')
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", f"{maven.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DTL_HADOOP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RuntimeError, match=r"(?s)status 1\).*no route to host"):
        machine.fetch_hadoop(tmp_path)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["hadoop.lock"]


def test_ports_are_free_distinct_and_below_the_kernels() -> None:
    names = [f"port-{index}" for index in range(200)]
    ports = machine.choose_ports(names, {})
    assert list(ports) == names
    assert len(set(ports.values())) == 200
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(ports.values()) < lowest
