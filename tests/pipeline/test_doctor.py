"""`dtl doctor` finds what is planted, by name, says what to type, and finds nothing else."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dask
import numpy as np
import pytest
from distributed import LocalCluster
from helpers import COLOURS, CUT, ROOT, THREADS, Run, contents, draw, wait_until

from dtl import storage
from dtl.cluster import connection
from dtl.config.errors import Fault, FaultsError
from dtl.pipeline import doctor, findings
from dtl.pipeline.findings import OK, UNSEEN, WARNING, WRONG, Examination, Finding, UnseenError
from dtl.storage import kerberos, lock


def read_table(text: str) -> dict[tuple[str, str], str]:
    """The outcome, the message and what to type, by check and place."""
    table: dict[tuple[str, str], str] = {}
    key = ("", "")
    for line in text.splitlines():
        found = re.match(
            r"(\w+)  +(\S+(?: workers?)?)  +(ok|WRONG|WARNING|NOT CHECKED)  +(.*)", line
        )
        if found:
            key = (found[1], found[2])
            table[key] = f"{found[3]}: {found[4]}"
        elif line.strip() and key in table:
            table[key] += f"\n{line.strip()}"
    return table


def wrong(text: str) -> dict[str, str]:
    """What is wrong, by the name of the check."""
    return {name: said for (name, _), said in read_table(text).items() if said[:5] == "WRONG"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor") / "pictures"
    draw(folder, COLOURS, 20)
    return folder


def test_nothing_is_found_where_nothing_is_wrong(pictures: Path, tmp_path: Path, here: Run) -> None:
    out = tmp_path / "out"
    done = here("doctor", "--images", pictures, "--out", out, *CUT, *THREADS)
    assert done.returncode == 0, done.stdout + done.stderr
    table = read_table(done.stdout)
    assert {said.partition(":")[0] for said in table.values()} == {"ok"}, done.stdout
    assert [name for name, _ in table] == [
        "images", "split", "weights", "results", "output", "dashboard", "cluster", "versions",
        "clocks", "output", "sample", "memory", "weights", "network", "processors", "space",
    ]  # fmt: skip
    assert "60 of 3 classes" in table["images", "driver"]
    assert done.stdout.rstrip().endswith("14 checks: all ok.")
    assert not out.exists()


def test_a_finished_run_is_well_and_stays_as_it_is(
    pictures: Path, tmp_path: Path, here: Run
) -> None:
    options = ("--images", pictures, "--out", tmp_path, *CUT, *THREADS)
    assert here("run", *options).returncode == 0
    before = contents(tmp_path)
    done = here("doctor", *options)
    assert done.returncode == 0, done.stdout
    assert "60 of 60 images have their features" in done.stdout
    assert contents(tmp_path) == before
    other = here("doctor", *options, "--features.layers", "block1_conv1")
    assert other.returncode == 1
    assert "layers: asked for ['block1_conv1'], stored" in wrong(other.stdout)["results"]
    assert "--overwrite" in wrong(other.stdout)["results"]


@contextmanager
def started(*arguments: str, folder: Path, **environment: str) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", *arguments], cwd=folder,
        env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[None]:
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "none", folder],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("only root mounts a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_faults_of_a_worker_of_a_full_disk_and_of_images(tmp_path: Path, here: Run) -> None:
    pictures, healthy, sick = (tmp_path / name for name in ("pictures", "healthy", "sick"))
    draw(pictures, COLOURS, 20)
    for k in range(6):
        (pictures / "red" / f"{k}.jpg").write_bytes(b"\xff\xd8\xff damaged")
    rng = np.random.default_rng(0)
    for folder in (healthy, sick):
        folder.mkdir()
        shapes = [(3, 3, 3, 64), (64,), (3, 3, 64, 64), (64,)]
        weights = [rng.normal(size=shape).astype("f4") / 9 for shape in shapes]
        np.savez(folder / "w.npz", *weights)
    (sick / "pillow-1.0.dist-info").mkdir()
    (sick / "pillow-1.0.dist-info" / "METADATA").write_text("Name: pillow\nVersion: 1.0\n")
    (sick / "sitecustomize.py").write_text(
        "import time\nreal = time.time\ntime.time = lambda: real() + 3600\n"
    )
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with ExitStack() as stack:
        stack.enter_context(small_disk(tmp_path / "out", 24 << 10))
        cluster = stack.enter_context(
            LocalCluster(n_workers=0, protocol="tcp", processes=False, dashboard_address=":0")
        )
        address = cluster.scheduler_address
        options = (address, "--nthreads", "2", "--no-dashboard", "--memory-limit", "0")
        stack.enter_context(started(*options, folder=healthy, PYTHONPATH=path))
        there = os.pathsep.join([str(sick), path])
        stack.enter_context(started(*options, "--name", "sick", folder=sick, PYTHONPATH=there))
        wait_until(lambda: len(cluster.scheduler.workers) == 2, "the workers")
        (name,) = [w.address for w in cluster.scheduler.workers.values() if w.name == "sick"]
        # The file lies in the working folder of each process.
        before = os.getcwd()
        os.chdir(healthy)
        stack.callback(os.chdir, before)
        done = here(
            "doctor", "--images", pictures, "--out", tmp_path / "out", *CUT, "--cluster", address,
            "--features.weights", "/proc/self/cwd/w.npz",
        )  # fmt: skip
    assert done.returncode == 1
    found = read_table(done.stdout)
    assert "It has pillow 1.0 (the driver: " in found["versions", name]
    assert "> On it, type: pip install pillow==" in found["versions", name]
    assert re.search(r"Its clock is 3,\d\d\d s ahead of the driver's", found["clocks", name])
    assert (
        "> Set both by NTP. On the one that is wrong, type: sudo chronyc" in found["clocks", name]
    )
    assert "images of a sample cannot be used (red/" in wrong(done.stdout)["sample"]
    assert "set --images.max-skipped 0." in wrong(done.stdout)["sample"]
    # Of two, either may be the wrong one.
    [(_, said)] = [(key, s) for key, s in found.items() if key[0] == "weights" and "WRONG" in s]
    assert "Its weights have the SHA-256" in said
    assert "> Set --features.weights to one file that all workers read." in said
    assert found["space", "driver"].startswith("NOT CHECKED")
    assert set(wrong(done.stdout)) == {"versions", "clocks", "sample", "weights"}


def test_a_full_disk(pictures: Path, tmp_path: Path, here: Run) -> None:
    out = tmp_path / "out"
    with small_disk(out, 24 << 10):
        done = here("doctor", "--images", pictures, "--out", out, *CUT, *THREADS)
        warned = here("featurize", "--images", pictures, "--out", out, *CUT, *THREADS)
    assert set(wrong(done.stdout)) == {"space"}, done.stdout
    said = wrong(done.stdout)["space"]
    assert re.search(r"/out has \d+\.\d KiB of free space, and \d+\.\d KiB will be written", said)
    assert "> Free some, or choose another --out, or set --features.dtype float16" in said
    assert warned.returncode == 1
    assert "no space is left there" in warned.stderr


def test_faults_on_the_driver(
    pictures: Path, tmp_path: Path, here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    done = here(
        "doctor", "--images", tmp_path / "none", "--out", tmp_path / "file" / "out", *CUT,
        *THREADS, "--features.weights", tmp_path / "none.npz",
    )  # fmt: skip
    found = wrong(done.stdout)
    assert found["images"] == f"WRONG: No such folder: {tmp_path}/none. Check --images."
    assert f"No such file: {tmp_path}/none.npz" in found["weights"]
    assert f"Cannot write to {tmp_path}/file/out: " in found["output"]
    assert "Choose another --out" in found["output"]
    assert "NOT CHECKED  mend images first" in done.stdout

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(connection, "_CONNECT_TIMEOUT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"tcp://127.0.0.1:{gone.getsockname()[1]}"
    with lock.hold(str(tmp_path / "out")):
        done = here("doctor", "--images", pictures, "--out", tmp_path / "out", *CUT,
                    "--cluster", address)  # fmt: skip
    found = wrong(done.stdout)
    assert set(found) == {"output", "cluster"}
    assert f"Another driver writes to {tmp_path}/out: process {os.getpid()}" in found["output"]
    assert f"No Dask scheduler answers at {address}" in found["cluster"]
    assert "Start one with `dask scheduler`" in found["cluster"]


def test_a_port_that_is_taken_is_a_warning() -> None:
    found = Examination()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found.check("dashboard", lambda: doctor.try_port(f":{port}"), warns=True)
    (finding,) = found.findings
    assert finding.outcome == WARNING
    assert f"127.0.0.1:{port} cannot be listened on: Address already in use" in finding.message
    assert finding.advice.startswith("Set `cluster.dashboard_address` = :0, or end what has")
    assert found.status == 0
    assert doctor.try_port(f":{port}") == f"127.0.0.1:{port}"


def test_too_little_memory(pictures: Path, tmp_path: Path, here: Run) -> None:
    unchecked = {f"distributed.worker.memory.{w}": False for w in ("target", "spill", "pause")}
    with dask.config.set(unchecked):
        done = here("doctor", "--images", pictures, "--out", tmp_path, *CUT, *THREADS,
                    "--cluster.memory-limit", "900MiB")  # fmt: skip
    found = wrong(done.stdout)
    assert set(found) == {"memory"}
    assert "It may use 0.9 GiB; VGG16 up to block1_pool needs 1.0 GiB." in found["memory"]
    assert "> Give each worker more memory (--cluster.memory-limit on a local" in found["memory"]


# --- Hadoop's, as far as none is needed ----------------------------------------------------------


def as_cache(*tickets: tuple[str, float, float]) -> bytes:
    """A cache of tickets (server, ends, renewable until) of me@HERE, as MIT's `kinit` writes it."""

    def text(value: str) -> bytes:
        return struct.pack(">I", len(value)) + value.encode()

    def principal(*parts: str) -> bytes:
        return struct.pack(">II", 1, len(parts)) + text("HERE") + b"".join(map(text, parts))

    data = b"\x05\x04" + struct.pack(">HHHII", 12, 1, 8, 0, 0) + principal("me")
    for server, ends, until in tickets:
        times = struct.pack(">IIII", 0, 0, int(ends), int(until))
        data += principal("me") + principal(*server.split("/")) + struct.pack(">H", 18)
        data += text("key") + times + struct.pack(">BIII", 0, 0, 0, 0) + text("ticket") + text("")
    return data


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration of a Hadoop with Kerberos; returns the place of the tickets."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "core-site.xml").write_text(
        "<configuration><property><name>hadoop.security.authentication</name>"
        "<value>kerberos</value></property></configuration>"
    )
    monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path / "conf"))
    monkeypatch.setenv("KRB5CCNAME", f"FILE:{tmp_path}/tickets")
    monkeypatch.delenv("HADOOP_TOKEN_FILE_LOCATION", raising=False)
    return tmp_path / "tickets"


def test_kerberos_and_a_namenode_that_is_gone(
    secure: Path, pictures: Path, tmp_path: Path, here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        out = f"hdfs://127.0.0.1:{gone.getsockname()[1]}/out"
    options = ("--images", pictures, "--out", out, *CUT, "--cluster", "tcp://127.0.0.1:1")
    monkeypatch.setattr(connection, "_CONNECT_TIMEOUT_S", 0.1)
    done = here("doctor", *options)
    found = wrong(done.stdout)
    assert set(found) == {"kerberos"}
    assert f"asks for a Kerberos ticket, and {secure} has none." in found["kerberos"]
    assert "> Type: kinit" in found["kerberos"]
    assert here("run", *options).stderr.splitlines()[-1].endswith("has none. Type: kinit")

    now = time.time()
    secure.write_bytes(as_cache(("krbtgt/HERE", now - 600, now)))
    said = wrong(here("doctor", *options).stdout)["kerberos"]
    assert f"The ticket of me@HERE in {secure} ended 10 minutes ago." in said

    secure.write_bytes(as_cache(("krbtgt/HERE", now + 36000, now + 864000)))
    done = here("doctor", *options)
    assert "ok" in read_table(done.stdout)["kerberos", "driver"]
    assert "me@HERE lasts 10.0 h, renewable for 10.0 days" in done.stdout
    said = wrong(done.stdout)["hdfs"]
    assert f"No NameNode answers at {out[:-3]}." in said
    assert "> Check the address, and that HADOOP_CONF_DIR names the cluster's" in said
    assert f"Type: hdfs dfs -ls {out[:-3]}" in said


def test_tickets(secure: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    assert kerberos.is_needed()
    secure.write_bytes(
        as_cache(("nfs/there", now + 9e4, now), ("krbtgt/HERE", now + 600, now + 9e5))
    )
    with pytest.raises(FaultsError, match=r"me@HERE lasts 10 minutes more.*Type: kinit -R"):
        kerberos.check_ticket()
    found = kerberos.check_ticket(least_s=0)
    assert found is not None
    assert found.ends == int(now + 600)
    secure.write_bytes(as_cache(("krbtgt/HERE", now + 600, now))[:-60])
    with pytest.raises(ValueError, match=r"cut off\. Type: kinit"):
        kerberos.check_ticket()
    monkeypatch.setenv("KRB5CCNAME", "KCM:0")
    assert kerberos.check_ticket() is None
    monkeypatch.setenv("HADOOP_TOKEN_FILE_LOCATION", "/tokens")  # a container of YARN
    assert not kerberos.is_needed()


# --- the table -----------------------------------------------------------------------------------


def test_a_check_is_made_where_what_it_needs_is_in_order() -> None:
    def refuse() -> str:
        raise FaultsError([Fault("memory", "Too little.", "Give more.", f"w{k}") for k in (1, 2)])

    def cannot_see() -> str:
        raise UnseenError("look yourself")

    found = Examination()
    assert found.check("a", lambda: (7, "seven")) == 7
    found.check("b", refuse, needs=["a"], where="2 workers")
    found.check("c", lambda: "never made", needs=["memory"])
    found.check("d", cannot_see)
    found.check("e", lambda: 1 / 0, needs=["a"])
    assert [(f.check, f.where, f.outcome) for f in found.findings] == [
        ("a", "driver", OK), ("memory", "w1", WRONG), ("memory", "w2", WRONG),
        ("b", "2 workers", UNSEEN), ("c", "driver", UNSEEN), ("d", "driver", UNSEEN),
        ("e", "driver", WRONG),
    ]  # fmt: skip
    assert found.status == 1
    assert (
        "ZeroDivisionError: division by zero: this is a fault of dtl" in found.findings[-1].message
    )
    only_warned = Examination()
    only_warned.check("b", refuse, warns=True)
    assert {f.outcome for f in only_warned.findings} == {WARNING}
    assert only_warned.status == 0


def test_the_table_shows_any_name() -> None:
    text = findings.format_findings([
        Finding("images", "driver", OK, "60"),
        Finding("output", "w1", WRONG, "a\x1b[2J\nb", "Type: c\nd"),
        Finding("space", "driver", UNSEEN, "mend output first"),
    ])  # fmt: skip
    assert text == (
        "images  driver  ok           60\n"
        "output  w1      WRONG        a\\x1b[2J\n"
        "                             b\n"
        "                             > Type: c\\nd\n"
        "space   driver  NOT CHECKED  mend output first\n\n"
        "3 checks: 1 wrong, 1 not checked."
    )


def test_free_space(tmp_path: Path) -> None:
    assert storage.check_space(str(tmp_path / "not" / "there"), 1) is not None
    with pytest.raises(FaultsError, match=r"of free space, and 1024\.0 TiB will be written\. Free"):
        storage.check_space(str(tmp_path), 1 << 50)
    assert storage.find_free_bytes("memory://x") is None
