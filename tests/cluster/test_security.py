"""Nobody else on the machine or the network uses a cluster: ports, certificates, folders."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import dask
import pytest
from distributed.security import Security
from helpers import wait_until

from dtl.cluster import connection, security
from dtl.config import ClusterConfig
from dtl.config.errors import UserError

Start = Callable[[object], list[tuple[str, int]]]

ROOT = Path(__file__).parents[2]
NOBODY = 65534

RUN = """
import json, sys, threading, psutil
from distributed import LocalCluster, Client
from dtl.cluster import connection
from dtl.config import ClusterConfig

def listening():
    me = psutil.Process()
    found = [
        c.laddr for p in (me, *me.children(recursive=True)) for c in p.net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    ]
    return sorted({(address.ip, address.port) for address in found})

if __name__ == "__main__":
    how = json.loads(sys.argv[1])
    if how == "as Dask has it":
        cluster = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None)
        opened = Client(cluster)
    else:
        opened = connection.connect(ClusterConfig(**how))
    with opened as client:
        assert client.submit(abs, -3).result() == 3
        print(json.dumps(listening()), flush=True)
        sys.stdin.read()
"""

ATTACK = """
import os, signal, sys
from distributed import Client
from distributed.security import Security

marker, user, *ports = sys.argv[1:]
own = Security.temporary()
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
for port in ports:
    if os.fork() == 0:
        signal.alarm(15)  # what is no scheduler may keep a client waiting
        for address, security in (
            (f"tcp://127.0.0.1:{port}", Security(require_encryption=False)),
            (f"tls://127.0.0.1:{port}", own),
        ):
            try:
                with Client(address, security=security, timeout=2) as client:
                    client.run_on_scheduler(lambda: open(marker, "w").write(str(os.getuid())))
                print(port, "ran", flush=True)
            except Exception as error:
                print(port, type(error).__name__, flush=True)
        os._exit(0)
for port in ports:
    os.wait()
"""


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Start]:
    """Starts a cluster in a process of its own, and gives the addresses that listen."""
    running: list[subprocess.Popen[str]] = []

    def start(how: object) -> list[tuple[str, int]]:
        script = tmp_path / "run.py"
        script.write_text(RUN)
        process = subprocess.Popen(
            [sys.executable, script, json.dumps(how)], stdin=subprocess.PIPE, text=True,
            stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        running.append(process)
        assert process.stdout is not None
        return [(ip, port) for ip, port in json.loads(process.stdout.readline())]

    yield start
    for process in running:
        process.communicate()


def attack(ports: Iterable[int], marker: Path) -> str:
    """What clients of another user, who have certificates of their own, come to."""
    done = subprocess.run(
        [sys.executable, "-c", ATTACK, marker, str(NOBODY), *map(str, ports)],
        capture_output=True, text=True, check=False, cwd="/", timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"n_workers": 2}, {"processes": False}], ids=["tls", "threads"])
def test_nothing_listens_but_on_the_loopback_and_others_are_refused(
    started: Start, tmp_path: Path, how: dict[str, object]
) -> None:
    addresses = started(how)
    assert {ip for ip, _ in addresses} <= {"127.0.0.1", "::1"}
    # Scheduler, two nannies and workers, and the pages of the scheduler and each worker. Threads
    # have the pages only.
    assert len(addresses) == (8 if "n_workers" in how else 2)
    said = attack((port for _, port in addresses), tmp_path / "marker")
    assert "ran" not in said
    # Those of TLS end a client at once, by a handshake that fails.
    assert said.count("FatalCommClosedError") >= (5 if "n_workers" in how else 0)
    assert not (tmp_path / "marker").exists()


@pytest.mark.slow
def test_the_attack_works_where_nothing_is_done_against_it(started: Start, tmp_path: Path) -> None:
    addresses = started("as Dask has it")
    assert " ran" in attack((port for _, port in addresses), tmp_path / "marker")
    assert (tmp_path / "marker").read_text() == str(os.getuid())


def test_a_certificate_is_asked_for_and_nothing_of_it_is_on_the_disk(tmp_path: Path) -> None:
    with connection.connect(ClusterConfig(n_workers=1)) as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        assert client.security.require_encryption
        assert "BEGIN" in client.security.tls_client_key  # in memory, and no path
        assert client.security.tls_client_key != Security.temporary().tls_client_key


def test_the_dashboard_is_opened_where_it_is_asked_for() -> None:
    assert security.keep_local(":0") == "127.0.0.1:0"
    assert security.keep_local("8787") == "127.0.0.1:8787"
    assert security.keep_local("0.0.0.0:8787") == "0.0.0.0:8787"
    for wrong in ("here", "host:", ":x", ":99999", ""):
        with pytest.raises(UserError, match=r"`cluster\.dashboard_address` must be host:port, or"):
            security.keep_local(wrong)


# --- folders -------------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"dtl-{os.getuid()}"


def test_what_workers_write_is_their_users_alone(temporary: Path) -> None:
    before = os.umask(0)
    try:
        assert security.make_private_folder() == str(temporary)
        assert security.make_private_folder() == str(temporary)
    finally:
        os.umask(before)
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700
    with connection.connect(ClusterConfig(processes=False)) as client:
        (folder,) = client.run(lambda dask_worker: dask_worker.local_directory).values()
    assert folder.startswith(f"{temporary}/")


@pytest.mark.parametrize("kind", ["others may enter", "link", "file", "another's"])
def test_a_folder_that_others_can_change_is_refused(temporary: Path, kind: str) -> None:
    temporary.mkdir(mode=0o700)
    if kind == "others may enter":
        temporary.chmod(0o755)
    elif kind == "another's":
        if os.getuid():
            pytest.skip("only root can give a folder away")
        os.chown(temporary, NOBODY, NOBODY)
    else:
        temporary.rename(temporary.with_name("real"))
        if kind == "link":
            temporary.symlink_to(temporary.with_name("real"))
        else:
            temporary.touch()
    message = rf"{temporary} must be a folder that only you can enter.*Remove it, or set the envi"
    with pytest.raises(UserError, match=message):
        security.make_private_folder()


def test_the_folder_that_dask_is_told_to_take(tmp_path: Path) -> None:
    with dask.config.set({"temporary-directory": str(tmp_path / "own")}):
        assert security.make_private_folder() == str(tmp_path / "own")


# --- a running scheduler -------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> dict[str, str]:
    """Files of a certificate, as Dask's configuration names them."""
    made = Security.temporary()
    (tmp_path / "dtl.crt").write_text(made.tls_ca_file)
    (tmp_path / "dtl.key").write_text(made.tls_client_key)
    certificate, key = str(tmp_path / "dtl.crt"), str(tmp_path / "dtl.key")
    prefix = "distributed.comm.tls"
    return {f"{prefix}.ca-file": certificate} | {
        f"{prefix}.{role}.{kind}": file
        for role in ("client", "scheduler", "worker")
        for kind, file in (("cert", certificate), ("key", key))
    }


@pytest.fixture
def scheduler(tmp_path: Path, certificate: dict[str, str]) -> Iterator[str]:
    """The address of a real `dask scheduler --tls…` with a worker."""
    files = {
        "--tls-ca-file": certificate["distributed.comm.tls.ca-file"],
        "--tls-cert": certificate["distributed.comm.tls.client.cert"],
        "--tls-key": certificate["distributed.comm.tls.client.key"],
    }
    tls = [word for pair in files.items() for word in pair]
    dask_command = [sys.executable, "-m", "dask"]
    place = tmp_path / "scheduler.json"
    local = ["--host", "127.0.0.1", "--no-dashboard"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def start(*words: object) -> subprocess.Popen[bytes]:
        with (tmp_path / "log").open("ab") as log:
            return subprocess.Popen(
                [*dask_command, *map(str, words)], cwd=tmp_path, env=environment,
                stdout=log, stderr=log,
            )  # fmt: skip

    jobs = [start("scheduler", *tls, "--protocol", "tls", "--port", "0", "--scheduler-file", place,
                  *local)]  # fmt: skip
    try:
        wait_until(place.exists, "the scheduler")
        address = json.loads(place.read_text())["address"]
        jobs.append(start("worker", address, *tls, "--no-nanny", "--nthreads", "1", *local))
        yield address
    finally:
        for job in jobs:
            job.terminate()
            job.wait(30)


@pytest.mark.slow
def test_a_scheduler_with_a_certificate(
    scheduler: str, certificate: dict[str, str], caplog: pytest.LogCaptureFixture, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert scheduler.startswith("tls://")
    with dask.config.set(certificate), connection.connect(ClusterConfig(scheduler)) as client:
        assert client.submit(abs, -3).result() == 3
    assert "not encrypted" not in caplog.text

    with pytest.raises(UserError, match=r"asks for a certificate\. Set the environment variables "):
        connection.connect(ClusterConfig(scheduler)).__enter__()

    monkeypatch.setattr(connection, "_CONNECT_TIMEOUT_S", 5)
    other = Security.temporary()
    for name, text in (("crt", other.tls_ca_file), ("key", other.tls_client_key)):
        (tmp_path / f"other.{name}").write_text(text)
    others = {
        name: file.replace("dtl.crt", "other.crt").replace("dtl.key", "other.key")
        for name, file in certificate.items()
    }
    message = r"The scheduler at .* refuses the certificate in Dask's configuration"
    with dask.config.set(others), pytest.raises(ConnectionError, match=message):
        connection.connect(ClusterConfig(scheduler)).__enter__()

    plain = scheduler.replace("tls://", "tcp://")
    message = r"No Dask scheduler answers at .* asks for a certificate has an address of tls://"
    with pytest.raises(ConnectionError, match=message):
        connection.connect(ClusterConfig(plain)).__enter__()
    required = {"distributed.comm.require-encryption": True}
    with (
        dask.config.set(certificate | required),
        pytest.raises(UserError, match=r"is not encrypted, which Dask's configuration asks for"),
    ):
        connection.connect(ClusterConfig(plain)).__enter__()


@pytest.mark.slow
def test_what_is_no_scheduler_is_told(
    certificate: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the dashboard, for whose answer Dask's client would wait for ever."""
    monkeypatch.setattr(connection, "_CONNECT_TIMEOUT_S", 2)
    with connection.make_local(processes=False, dashboard_address="127.0.0.1:0") as local:
        port = local.scheduler.http_server.port
        for scheme in ("tcp", "tls"):
            with (
                dask.config.set(certificate),
                pytest.raises(ConnectionError, match=r"Is this the port of its dashboard|No Dask"),
            ):
                connection.connect(ClusterConfig(f"{scheme}://127.0.0.1:{port}")).__enter__()


def test_files_of_a_certificate_that_are_gone_or_none(
    certificate: dict[str, str], tmp_path: Path
) -> None:
    address = "tls://127.0.0.1:9"
    (tmp_path / "none").write_text("no certificate")
    for file, message in ((tmp_path / "gone", "No such file"), (tmp_path / "none", "")):
        changed = certificate | {"distributed.comm.tls.client.cert": str(file)}
        with (
            dask.config.set(changed),
            pytest.raises(UserError, match=rf"The certificate cannot be read: .*{message}.*{file}"),
        ):
            security.load_certificate(address)


def test_an_open_scheduler_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "dtl"):
        security.load_certificate("tcp://10.0.0.1:8786")
    (record,) = caplog.records
    assert record.message.startswith(
        "tcp://10.0.0.1:8786 is not encrypted and asks for no certificate: whoever reaches"
    )
    assert "deploy/README.md" in record.message
    assert "\n## TLS\n" in (ROOT / "deploy" / "README.md").read_text()
