"""The work in YARN's containers, on a real ResourceManager and NodeManager."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skein
from helpers import (
    COLOURS,
    CUT,
    command,
    contents,
    draw,
    processes_of,
    small_environment,
    wait_until,
)
from localhadoop.configuration import user_name
from minicluster import MiniCluster

import dtl
from dtl import config, storage
from dtl.cluster import connection
from dtl.cluster.workers import known_workers
from dtl.cluster.yarn import application, capacity, resource_manager, submission
from dtl.features.store import FeatureStore
from dtl.pipeline import command_line

SMALL = [
    "--cluster", "yarn", "--cluster.threads-per-worker", "1", "--yarn.worker-vcores", "1",
    "--yarn.worker-memory", "1536MiB", "--yarn.scheduler-memory", "512MiB",
    "--yarn.driver-memory", "768MiB",
]  # fmt: skip


def small_config(**options: Any) -> config.Config:
    small = {"worker_memory": "512MiB", "worker_vcores": 1, "scheduler_memory": "512MiB"}
    return config.build({"cluster": {"address": "yarn"}, "yarn": small | options})


def rest(hadoop: MiniCluster, path: str) -> Any:
    with urllib.request.urlopen(f"{hadoop.resourcemanager_url}/ws/v1/cluster/{path}") as answer:
        return json.load(answer)


def applications(hadoop: MiniCluster) -> list[dict[str, Any]]:
    """Those that have not ended."""
    found = rest(hadoop, "apps?states=NEW,NEW_SAVING,SUBMITTED,ACCEPTED,RUNNING")["apps"]
    return found.get("app", []) if found else []


def in_containers(hadoop: MiniCluster) -> list[int]:
    return processes_of(hadoop.home / "yarn" / "local" / "usercache")


def processes_in(hadoop: MiniCluster, name: str) -> dict[int, bytes]:
    """The processes of a container, by skein's name for it, with their command lines."""
    found = {}
    for pid in in_containers(hadoop):
        with suppress(OSError):  # it has ended
            known = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if f"SKEIN_CONTAINER_ID={name}".encode() in known:
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes()
    return found


def container_of(hadoop: MiniCluster, name: str) -> int:
    """The Python process of a worker's container."""
    found = processes_in(hadoop, name).items()
    return next(pid for pid, called in found if b"dask_worker" in called)


@pytest.fixture(scope="module")
def manager(yarn: MiniCluster) -> Iterator[skein.Client]:
    with resource_manager.connect_to_yarn() as client:
        yield client


@pytest.fixture(autouse=True)
def _nothing_is_left(yarn: MiniCluster, manager: skein.Client) -> Iterator[None]:
    drivers = processes_of("com.anaconda.skein.Driver")  # the fixture's
    yield
    wait_until(lambda: not applications(yarn), "applications to end")
    wait_until(lambda: not in_containers(yarn), "processes in containers to end")
    wait_until(lambda: not rest(yarn, "metrics")["clusterMetrics"]["containersAllocated"],
               "containers to be given back")  # fmt: skip
    wait_until(lambda: processes_of("com.anaconda.skein.Driver") == drivers, "skein to end")
    uploaded = f"{yarn.url}/user/{user_name()}/.skein"
    assert not storage.exists(uploaded) or list(storage.walk(uploaded)) == []


@pytest.fixture(scope="module")
def photographs(
    data: Path, hadoop: MiniCluster, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Forty-eight real photographs of four classes, on a disk and on HDFS."""
    folder, url = tmp_path_factory.mktemp("photographs"), f"{hadoop.url}/on_yarn/photographs"
    for name in ("001.ak47", "011.billiards", "061.dumb-bell", "178.school-bus"):
        (folder / name).mkdir()
        for photograph in sorted((data / "caltech256" / name).iterdir())[:12]:
            content = photograph.read_bytes()
            (folder / name / photograph.name).write_bytes(content)
            storage.write_bytes(f"{url}/{name}/{photograph.name}", content)
    return folder, url


@pytest.fixture(scope="module")
def pictures(hadoop: MiniCluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Drawn pictures on HDFS."""
    folder = tmp_path_factory.mktemp("pictures")
    draw(folder / "drawn", COLOURS, 8)
    for path, content in contents(folder).items():
        storage.write_bytes(f"{hadoop.url}/on_yarn/{path}", content)
    return f"{hadoop.url}/on_yarn/drawn"


def same_results(local: Path, out: str, layer: str) -> None:
    """The same features, head and scores, bit for bit."""
    here, there = (
        FeatureStore.open(str(local / "features.zarr")),
        FeatureStore.open(f"{out}/features.zarr"),
    )
    assert not there.pending_chunks()
    for name in (layer, "path", "label", "split", "status", "error", "content_hash"):
        assert np.array_equal(here.read(name), there.read(name)), name
    for name in ("head.npz", "evaluation.json"):
        assert storage.read_bytes(f"{out}/{name}") == (local / name).read_bytes()


def test_real_photographs_and_a_worker_container_killed(
    yarn: MiniCluster, photographs: tuple[Path, str], data: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder, images = photographs
    options = [
        "--features.layers", "block5_pool", "--features.weights",
        data / "vgg16_imagenet_conv.npz", "--features.chunk-images", "8",
        "--split.train", "0.6", "--split.validation", "0.15", "--split.test", "0.25",
    ]  # fmt: skip
    out = f"{yarn.url}/on_yarn/results"
    status = f"{out}/features.zarr/status/c"
    killed: list[int] = []
    before: dict[str, Any] = {}

    def kill_one() -> None:
        wait_until(lambda: storage.exists(status) and len(done()) >= 1, "a chunk", 240)
        before.update(done())
        killed.append(container_of(yarn, "dask.worker_0"))
        os.kill(killed[0], signal.SIGKILL)
        other = processes_in(yarn, "dask.worker_1")
        for pid in other:  # which could have ended the work by itself meanwhile
            os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: processes_in(yarn, "dask.worker_2"), "another worker", 120)
        finally:
            for pid in other:
                os.kill(pid, signal.SIGCONT)

    def done() -> dict[str, Any]:
        fs, path = storage.filesystem(status)
        return {entry["name"]: entry for entry in fs.ls(path) if "partial" not in entry["name"]}

    thread = threading.Thread(target=kill_one)
    thread.start()
    there = command(
        "run", "--images", images, "--out", out, *options, *SMALL,
        "--cluster.n-workers", "2", "--yarn.worker-memory", "2GiB",
    )  # fmt: skip
    thread.join()
    assert there.returncode == 0, there.stderr
    assert killed
    assert before.items() <= done().items()  # not written again, so not computed again
    local = command("run", "--images", folder, "--out", tmp_path, *options,
                    "--cluster.threads-per-worker", "1")  # fmt: skip
    assert local.returncode == 0, local.stderr
    same_results(tmp_path, out, "block5_pool")
    assert "by YARN's proxy" in there.stderr
    application = re.search(r"YARN application (\w+)", there.stderr)
    assert application is not None
    found = rest(yarn, f"apps/{application[1]}")["app"]
    assert (found["finalStatus"], found["diagnostics"]) == ("SUCCEEDED", "Finished.")
    capfd.readouterr()
    assert submission.print_logs(application[1]) == 0
    printed = capfd.readouterr().out
    # One took the place of the killed one.
    assert "name: dask.worker_2" in printed
    assert "tcp://" not in printed  # TLS throughout


def test_driver_killed_with_a_packed_environment(yarn: MiniCluster, tmp_path: Path) -> None:
    url = "hdfs:///tmp/env.tar"
    pack = [small_environment(tmp_path / "env"), "-m", "dtl.pipeline", "pack-environment"]
    packed = subprocess.run(
        [*pack, "--out", url], capture_output=True, text=True, check=False,
        cwd=Path(dtl.__file__).parents[1],
    )  # fmt: skip
    assert packed.returncode == 0, packed.stderr
    script = tmp_path / "driver.py"
    script.write_text(
        "import sys, time\n"
        "from dtl import config\n"
        "from dtl.cluster import connection\n"
        "c = config.build(eval(sys.argv[1]))\n"
        "with connection.connect(c.cluster, c.yarn) as client:\n"
        "    print(client.submit(sys.__getattribute__, 'executable').result(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    wanted = config.to_dict(small_config(environment=url))
    process = subprocess.Popen(
        [sys.executable, script, repr(wanted)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    python = process.stdout.readline()
    assert str(yarn.home) in python  # unpacked there
    process.kill()
    process.wait()
    process.stdout.close()
    killed = time.monotonic()
    wait_until(lambda: not applications(yarn), "the application to end", 60)
    print(f"the application ended {time.monotonic() - killed:.0f} s after its driver")
    (ended,) = [
        app for app in rest(yarn, "apps")["apps"]["app"] if "driver is gone" in app["diagnostics"]
    ]
    assert ended["finalStatus"] == "FAILED"


def test_submit_status_logs(
    yarn: MiniCluster, pictures: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out = f"{yarn.url}/submitted"
    done = command("submit", "--wait", "--images", pictures, "--out", out, *CUT, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    app_id = done.stdout.split()[0]
    assert re.search(r"ended +SUCCEEDED", done.stdout)
    assert not FeatureStore.open(f"{out}/features.zarr").pending_chunks()
    assert storage.exists(f"{out}/report.html")
    assert command_line.main(["logs", app_id]) == 0
    assert f"Report: {out}/report.html" in capfd.readouterr().out
    assert command_line.main(["kill", app_id]) == 0
    assert "had ended before" in capfd.readouterr().out


def test_submitted_and_killed_or_for_nothing(
    yarn: MiniCluster, pictures: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--out", f"{yarn.url}/killed", *CUT, *SMALL]
    assert command_line.main(["submit", "--images", pictures, *options]) == 0
    app_id = capsys.readouterr().out.strip()
    assert command_line.main(["status", app_id]) == 4
    assert command_line.main(["kill", app_id]) == 0
    assert command_line.main(["status", app_id]) == 3
    shown = capsys.readouterr().out
    assert re.search(r"ended +not yet", shown)
    assert f"{app_id} is killed." in shown
    assert re.search(r"ended +KILLED", shown)
    missing = f"{yarn.url}/nowhere"
    assert command_line.main(["submit", "--wait", "--images", missing, *options]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"ended +FAILED", shown)
    assert f"message      error: No such folder: {missing}" in shown
    assert command_line.main(["status", "application_1_0001"]) == 1
    assert "YARN knows no application 'application_1_0001'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "driver", "message"),
    [
        ({"queue": "nope"}, False,
         r"YARN has no queue 'nope'\. It has: default, small\. Choose one with `yarn\.queue`"),
        ({"node_label": "gpu"}, False,
         r"No node of YARN has the label 'gpu'\. None has a label\. Change `yarn\.node_label`"),
        ({"worker_memory": "64GiB"}, False,
         r"yarn\.worker_memory asks for 65536 MiB, but a container of this YARN has at most 8192 "
         r"MiB \(yarn\.scheduler\.maximum-allocation-mb\)\. Lower `yarn\.worker_memory`"),
        ({"worker_vcores": 5}, False, r"asks for 5, but a container of .* at most 4 .*_vcores`"),
        ({"worker_gpus": 1}, False,
         r"asks for 1, but YARN's largest node has 0\. YARN offers: 8192 MiB, 4 vcores and 0 GPUs "
         r"on 1 nodes, of which .* Lower `yarn\.worker_gpus`"),
        ({"scheduler_memory": "9GiB"}, False, r"yarn\.scheduler_memory asks for 9216 MiB"),
        ({"driver_memory": "9GiB"}, True, r"yarn\.driver_memory asks for 9216 MiB"),
        ({"worker_memory": "8GiB"}, False,
         r"One worker, the scheduler and skein's master together need 9216 MiB, but all nodes of "
         r"YARN have 8192 MiB\. Lower `yarn\.worker_memory`\."),
        ({"worker_memory": "4GiB", "driver_memory": "4GiB"}, True,
         r"One worker, the scheduler, the driver and skein's master together need 9216 MiB, but "
         r"all nodes of YARN have 8192 MiB\. Lower `yarn\.worker_memory` or `yarn\.driver_memory`"),
        ({"environment": "hdfs:///nowhere.tar.gz"}, False,
         r"no such file: hdfs:///nowhere\.tar\.gz\. Make it again with `conda pack`"),
        ({"environment": "hdfs:///nowhere.tar"}, False,
         r"no such file: hdfs:///nowhere\.tar\. Make it with `dtl pack-environment`"),
        ({"environment": "hdfs:///env"}, False, r"must be an archive .* or a folder that every"),
    ],
)  # fmt: skip
def test_what_yarn_cannot_give_is_refused_before(
    manager: skein.Client, options: dict[str, Any], driver: bool, message: str
) -> None:
    wanted = small_config(**options)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        capacity.check_capacity(manager, wanted.yarn, driver=driver)


def test_what_yarn_gives_is_not_refused(manager: skein.Client) -> None:
    for queue in ("default", "small", "root.default"):
        wanted = small_config(queue=queue)
        capacity.check_capacity(manager, wanted.yarn)


def test_the_doctor_finds_what_yarn_lacks_and_nothing_where_it_lacks_nothing(
    yarn: MiniCluster, pictures: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"{yarn.url}/examined"
    options = ["doctor", "--images", pictures, "--out", out, *CUT, *SMALL]
    storage.write_bytes(f"{yarn.url}/a_file", b"")
    here_wrong = {
        "images": f"No such folder: {yarn.url}/none. Check --images.",
        "weights": f"No such file: {yarn.url}/none.npz",
        "output": f"Cannot write to {yarn.url}/a_file/out: ",
        "yarn": "YARN has no queue 'nope'. It has: default, small. Choose one with --yarn.queue",
    }
    assert command_line.main([
        *options, "--images", f"{yarn.url}/none", "--features.weights", f"{yarn.url}/none.npz",
        "--out", f"{yarn.url}/a_file/out", "--yarn.queue", "nope",
    ]) == 1  # fmt: skip
    shown = capsys.readouterr().out
    for name, said in here_wrong.items():
        assert re.search(rf"{name} +driver +WRONG +.*{re.escape(said)}", shown), shown
    assert "NOT CHECKED  mend yarn first" in shown
    of_yarn = {
        ("--yarn.worker-memory", "9GiB"): "asks for 9216 MiB, but a container of this YARN has at "
        "most 8192 MiB (yarn.scheduler.maximum-allocation-mb). Lower --yarn.worker-memory.",
        ("--yarn.environment", "hdfs:///nowhere.tar"): "no such file: hdfs:///nowhere.tar. Make it "
        "with `dtl pack-environment`.",
    }
    for fault, said in of_yarn.items():
        assert command_line.main([*options, *fault]) == 1
        shown = capsys.readouterr().out
        assert re.search(rf"yarn +driver +WRONG +.*{re.escape(said)}", shown), shown
    assert command_line.main(options) == 0, capsys.readouterr().out
    shown = capsys.readouterr().out
    assert "checks: all ok." in shown
    assert re.search(r"yarn +driver +ok +queue default uses 0 % of its share; .*workers fit", shown)
    assert re.search(rf"hdfs +driver +ok +{yarn.url}/ answers", shown)
    assert not storage.exists(out)


def test_no_resource_manager(
    yarn: MiniCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        elsewhere = str(closed.getsockname()[1])
    shutil.copytree(yarn.conf_dir, tmp_path / "conf")
    file = tmp_path / "conf" / "yarn-site.xml"
    file.write_text(file.read_text().replace(str(yarn.ports["resourcemanager"]), elsewhere))
    monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path / "conf"))
    monkeypatch.setattr(resource_manager, "_ANSWER_S", 5.0)
    message = (
        r"YARN's ResourceManager does not answer within 5 s\. Is it running, and is its address "
        rf"in {tmp_path}/conf/yarn-site\.xml right\?"
    )
    wanted = small_config()
    with (
        pytest.raises(ConnectionError, match=message),
        connection.connect(wanted.cluster, wanted.yarn),
    ):
        pass


def test_an_environment_that_breaks_when_unpacked(yarn: MiniCluster) -> None:
    url = f"{yarn.url}/tmp/broken.tar.gz"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        member = tarfile.TarInfo("bin/python")
        member.size = 1 << 20
        tar.addfile(member, io.BytesIO(os.urandom(1 << 20)))
    storage.write_bytes(url, archive.getvalue()[: 1 << 19])
    message = (
        r"YARN ended application_\w+: .*\nIts container could not be set up: .*broken\.tar\.gz"
    )
    wanted = small_config(environment=url)
    with (
        pytest.raises(ConnectionError, match=message),
        connection.connect(wanted.cluster, wanted.yarn),
    ):
        pass


def test_no_such_environment_on_the_node(yarn: MiniCluster, tmp_path: Path) -> None:
    wanted = small_config(environment=str(tmp_path))
    message = rf"The last lines of dask\.scheduler\.log:\n.*{tmp_path}/bin/python: No such file"
    with (
        pytest.raises(ConnectionError, match=message),
        connection.connect(wanted.cluster, wanted.yarn),
    ):
        pass


def test_waits_for_capacity_then_follows_the_work(
    yarn: MiniCluster,
    manager: skein.Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(application, "_REPEAT_EVERY_S", 1.0)
    resources = skein.Resources(memory=3584, vcores=1)
    hog = manager.submit(
        skein.ApplicationSpec(services={"hog": skein.Service(resources, "sleep 600", instances=2)})
    )
    wait_until(
        lambda: rest(yarn, "metrics")["clusterMetrics"]["allocatedMB"] >= 7168, "it to have all"
    )
    wanted = small_config(adaptive_max=2)

    def make_room() -> None:
        try:
            wait_until(lambda: "has no container" in caplog.text, "news", 60)
        finally:
            manager.kill_application(hog)

    helper = threading.Thread(target=make_room)
    helper.start()
    caplog.set_level(logging.INFO)
    with connection.connect(wanted.cluster, wanted.yarn) as client:
        helper.join()
        assert re.search(
            r"has no container for its scheduler yet, since \d+ s: queue default uses \d+ % of its "
            r"share; YARN has 8192 MiB, 4 vcores and 0 GPUs on 1 nodes, of which \d{4} MiB",
            caplog.text,
        )
        assert len(known_workers(client)) == 1
        work = client.map(time.sleep, [3 + i / 1000 for i in range(200)])
        wait_until(lambda: len(known_workers(client)) == 2, "a second worker", 90)
        client.cancel(work)
        del work
        wait_until(lambda: len(known_workers(client)) == 1, "one worker to go", 90)
        wait_until(
            lambda: rest(yarn, "metrics")["clusterMetrics"]["containersAllocated"] == 3,
            "its container to be given back",
        )
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3
        links = re.findall(r"live page(?: by YARN's proxy)?: (http\S+)", caplog.text)
        assert len({*links}) == 2  # of the scheduler, and by the proxy
        for link in links:
            with urllib.request.urlopen(f"{link}.json", timeout=30) as answer:
                assert [worker["status"] for worker in json.load(answer)["workers"]] == ["running"]
            with urllib.request.urlopen(link, timeout=30) as page:
                assert b"dtl, live" in page.read()
