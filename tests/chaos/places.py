"""Places where a run works, and what can be done to it there."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from events import STAGES, Event, Kinds
from helpers import wait_until
from lives import Life, workers_of
from localhadoop.machine import choose_ports
from minicluster import MiniCluster
from proxy import Proxy

_WORKING = ("featurize", "train", "evaluate")
_MOUNTED = ("fill_disk", "make_read_only")
"""Kinds that need a filesystem of their own; the last ones, so that others are drawn alike."""


class Place:
    """A place of one test.

    Each method whose name is in `KINDS` disturbs a life; `mend` takes back what lasts until then.

    Parameters
    ----------
    folder : Path
        For logs.
    arguments : sequence of str
        Options of the run, but for its cluster and its results.
    out : str
        URL of its results.
    """

    KINDS: ClassVar[Kinds] = {}
    cluster: Sequence[str] = ()

    def __init__(self, folder: Path, arguments: Sequence[str], out: str) -> None:
        self.folder, self.out = folder, out
        self.kinds = self.KINDS
        self._arguments = arguments
        self._n_lives = 0

    def start(self) -> Life:
        """Start the command, once more."""
        self._n_lives += 1
        command = ["run", *self._arguments, "--out", self.out, *self.cluster]
        return Life(command, self.out, self.folder / f"life-{self._n_lives}.log")

    def mend(self) -> None:
        """Make all as it was, before the command is given again."""

    def close(self) -> None:
        """End what it started."""

    def kill_driver(self, life: Life, event: Event) -> None:
        life.killed = True
        life.process.kill()

    def suspend_driver(self, life: Life, event: Event) -> None:
        _suspend(life.process.pid, event.seconds)

    def kill_worker(self, life: Life, event: Event) -> None:
        _signal(self._pick_worker(life, event), signal.SIGKILL)

    def suspend_worker(self, life: Life, event: Event) -> None:
        _suspend(self._pick_worker(life, event), event.seconds)

    def _list_workers(self, life: Life) -> list[int]:
        return life.workers()

    def _pick_worker(self, life: Life, event: Event) -> int:
        wait_until(lambda: self._list_workers(life) or life.process.poll() is not None, "a worker")
        found = self._list_workers(life)
        return found[event.pick % len(found)] if found else 0


class Disk(Place):
    """The processes of a local cluster, and results on a small filesystem of their own."""

    KINDS: ClassVar[Kinds] = {
        "kill_driver": STAGES,
        "interrupt": STAGES,
        "terminate": STAGES,
        "suspend_driver": STAGES,
        "kill_worker": _WORKING,
        "suspend_worker": _WORKING,
        "fill_disk": STAGES[1:],
        "make_read_only": STAGES[1:],
    }
    cluster = ("--cluster.n-workers", "2")

    def __init__(self, folder: Path, arguments: Sequence[str], disk: Path) -> None:
        super().__init__(folder, arguments, str(disk / "out"))
        self._disk, self._filler = disk, disk / "filler"
        if not os.path.ismount(disk):
            self.kinds = {kind: v for kind, v in self.KINDS.items() if kind not in _MOUNTED}

    def interrupt(self, life: Life, event: Event) -> None:
        life.wait_until_it_takes_signals()
        life.told = True
        os.killpg(life.process.pid, signal.SIGINT)  # a terminal sends it to the workers, too

    def terminate(self, life: Life, event: Event) -> None:
        life.wait_until_it_takes_signals()
        life.told = True
        life.process.terminate()

    def fill_disk(self, life: Life, event: Event) -> None:
        life.to_name = str(self._disk)
        with self._filler.open("wb", buffering=0) as file:
            for n_bytes in (1 << 20, 1 << 12):
                with suppress(OSError):
                    while file.write(bytes(n_bytes)):
                        pass

    def make_read_only(self, life: Life, event: Event) -> None:
        life.to_name = str(self._disk)
        # The system refuses as long as a file is open for writing.
        wait_until(lambda: _remount(self._disk, "ro") or life.process.poll() is not None, "remount")

    def mend(self) -> None:
        if os.path.ismount(self._disk):
            assert _remount(self._disk, "rw")
        self._filler.unlink(missing_ok=True)


class Scheduler(Place):
    """A scheduler and two workers that run already, reached through a proxy."""

    KINDS: ClassVar[Kinds] = {
        "kill_driver": STAGES,
        "kill_worker": _WORKING,
        "kill_nanny": _WORKING,
        "kill_scheduler": _WORKING,
        "cut_connection": _WORKING,
        "hold_connection": _WORKING,
        "suspend_worker": _WORKING,
    }

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        super().__init__(folder, arguments, str(folder / "out"))
        self._port = choose_ports(["scheduler"], {})["scheduler"]
        self._proxy = Proxy(self._port)
        self.cluster = ("--cluster", f"tcp://127.0.0.1:{self._proxy.port}")
        self._nannies: list[subprocess.Popen[bytes]] = []
        self._start_all()

    def kill_nanny(self, life: Life, event: Event) -> None:
        nanny = self._nannies.pop(event.pick % len(self._nannies))
        nanny.kill()
        nanny.wait()
        self._nannies.append(self._start_worker())

    def kill_scheduler(self, life: Life, event: Event) -> None:
        self._scheduler.kill()
        time.sleep(event.seconds)
        self._stop_all()  # workers that find their scheduler gone end, sooner or later
        self._start_all()

    def cut_connection(self, life: Life, event: Event) -> None:
        self._proxy.cut()
        time.sleep(event.seconds)
        self._proxy.mend()

    def hold_connection(self, life: Life, event: Event) -> None:
        self._proxy.hold()
        time.sleep(event.seconds)
        self._proxy.mend()

    def close(self) -> None:
        self._stop_all()
        self._proxy.close()

    def _list_workers(self, life: Life) -> list[int]:
        return [pid for nanny in self._nannies for pid in workers_of(nanny.pid)]

    def _start_all(self) -> None:
        address = ("--host", "127.0.0.1", "--port", str(self._port))
        self._scheduler = self._start("scheduler", *address, "--dashboard-address", "127.0.0.1:0")
        self._nannies = [self._start_worker() for _ in range(2)]

    def _stop_all(self) -> None:
        for process in (self._scheduler, *self._nannies):
            process.kill()
            process.wait()

    def _start_worker(self) -> subprocess.Popen[bytes]:
        return self._start(
            "worker", f"tcp://127.0.0.1:{self._port}", "--host", "127.0.0.1", "--nthreads", "2",
            "--no-dashboard", "--local-directory", str(self.folder),
        )  # fmt: skip

    def _start(self, kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one of Dask's processes, and wait until it serves."""
        log = self.folder / f"{kind}-{time.monotonic_ns()}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", kind, *arguments],
                stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        serves = {"scheduler": "Scheduler at:", "worker": "Registered to:"}[kind]
        wait_until(lambda: serves in log.read_text(), f"the {kind}, see {log}")
        return process


class Hdfs(Place):
    """Workers that are threads of the driver; images and results on HDFS."""

    KINDS: ClassVar[Kinds] = {
        "kill_driver": STAGES,
        "kill_datanode": STAGES,
        "kill_other_datanode": _WORKING,
        "kill_namenode": STAGES,
        "suspend_driver": STAGES,
    }
    cluster = ("--cluster.processes", "false")

    def __init__(
        self, folder: Path, arguments: Sequence[str], out: str, hadoop: MiniCluster
    ) -> None:
        super().__init__(folder, arguments, out)
        self._hadoop = hadoop

    def kill_datanode(self, life: Life, event: Event) -> None:
        self._restart("datanode-0", event)

    def kill_other_datanode(self, life: Life, event: Event) -> None:
        self._restart("datanode-1", event)

    def kill_namenode(self, life: Life, event: Event) -> None:
        self._restart("namenode", event)

    def mend(self) -> None:
        self._hadoop.wait_ready()

    def _restart(self, daemon: str, event: Event) -> None:
        self._hadoop.kill(daemon)
        time.sleep(event.seconds)
        self._hadoop.start_daemon(daemon, wait=False)


def mount_small_disk(folder: Path) -> str:
    """Mount a filesystem of 48 MiB on a folder; return why that is not possible, or nothing."""
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=48m", "dtl-chaos", folder],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        return str(error)
    return done.stderr.strip()


def unmount(folder: Path) -> None:
    """Take it away, even while a file in it is open."""
    subprocess.run(["umount", "--lazy", folder], check=True)


def _remount(folder: Path, how: str) -> bool:
    done = subprocess.run(
        ["mount", "-o", f"remount,{how}", folder], capture_output=True, check=False
    )
    return done.returncode == 0


def _suspend(pid: int, seconds: float) -> None:
    if _signal(pid, signal.SIGSTOP):
        time.sleep(seconds)
        _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: int) -> bool:
    try:
        if pid:
            os.kill(pid, number)
    except OSError as error:
        if error.errno != errno.ESRCH:
            raise
        return False
    return bool(pid)
