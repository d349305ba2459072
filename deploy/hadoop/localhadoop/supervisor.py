"""The daemons' parent process: starts them, collects them, and ends all that came of them.

Run as a script of its own. It holds ``run/lock`` while it lives, starts the daemons named in the
pipe ``run/control``, and writes ``run/NAME.pid`` and, when one has ended, ``run/NAME.exit``.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# All that a cluster's folder may hold: these are removed and nothing else.
ENTRIES = ["bin", "etc", "run", "logs", "tmp", "name", "data", "yarn", "env.sh", "cluster.json"]
GRACE_S = 10.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class Supervisor:
    """Look after the daemons until a signal to stop, or until the process that owns it is gone.

    Parameters
    ----------
    home : Path
        The cluster's folder, with ``cluster.json`` in it.
    owner : int
        Process id of the parent to end with, or 0 to stay until a signal.
    """

    def __init__(self, home: Path, owner: int) -> None:
        self.home = home
        self.owner = owner
        self.plan = json.loads((home / "cluster.json").read_text())
        self.names: dict[int, str] = {}
        self.stopping = False

    def run(self) -> None:
        """Serve until the end, then end everything."""
        run = self.home / "run"
        lock = open(run / "lock", "w")  # noqa: SIM115  held until this process ends
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Containers that lose their NodeManager become this process's children.
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        os.mkfifo(run / "control", 0o600)
        control = os.open(run / "control", os.O_RDWR | os.O_NONBLOCK)
        _write(run / "supervisor", str(os.getpid()))
        waiting = b""
        # The parent's id changes when it ends, however it ends: no pipe to it is needed, which
        # its forked children would hold open.
        while not self.stopping and self.owner in (0, os.getppid()):
            if select.select([control], [], [], 0.1)[0]:
                waiting += os.read(control, 4096)
            *lines, waiting = waiting.split(b"\n")
            self._reap()
            for line in lines:
                self._start(line.decode())
        orphaned = not self.stopping
        self._end()
        if orphaned and self.plan["remove"]:
            remove_files(self.home, self.plan["remove_directory"])

    def _on_signal(self, number: int, frame: object) -> None:
        self.stopping = True

    def _start(self, name: str) -> None:
        if name in self.names.values():
            return
        # HADOOP_USER_NAME and the like are the caller's, not the daemons'.
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("HADOOP_", "YARN_", "HDFS_", "JAVA_TOOL_OPTIONS"))
        }
        parent = os.getpid()

        def die_with_supervisor() -> None:
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        with open(self.home / "logs" / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                self.plan["commands"][name],
                env={**kept, **self.plan["environment"]},
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_supervisor,
                # Ending means ending the group: a shell does not pass signals on.
                start_new_session=True,
            )
        self.names[process.pid] = name
        process.returncode = 0  # `_reap` collects it, not Popen
        (self.home / "run" / f"{name}.exit").unlink(missing_ok=True)
        _write(self.home / "run" / f"{name}.pid", str(process.pid))

    def _reap(self) -> bool:
        """Collect the children that have ended; whether any is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if name := self.names.pop(pid, None):
                _write(self.home / "run" / f"{name}.exit", str(os.waitstatus_to_exitcode(status)))
                (self.home / "run" / f"{name}.pid").unlink(missing_ok=True)

    def _end(self) -> None:
        for pid in self.names:
            for number in (signal.SIGTERM, signal.SIGCONT):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, number)
        deadline = time.monotonic() + GRACE_S
        while self._reap() and self.names and time.monotonic() < deadline:
            time.sleep(0.02)
        while self._reap():
            for pid in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def descendants(root: int) -> list[int]:
    """Process ids of `root`'s children, their children, and so on."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    pending = [root]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


def remove_files(home: Path, directory_too: bool) -> None:
    """Remove what a cluster wrote in `home`, and nothing else that lies there.

    Parameters
    ----------
    home : Path
    directory_too : bool
        Remove `home` itself if it is empty then.
    """
    for name in ENTRIES:
        path = home / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if directory_too:
        with contextlib.suppress(OSError):
            home.rmdir()


def _parents() -> Iterator[tuple[int, int]]:
    if sys.platform != "linux":
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, check=True)
        for line in listing.stdout.splitlines():
            pid, parent = line.split()
            yield int(pid), int(parent)
        return
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                # The name, in brackets, may hold anything; the parent is second behind it.
                stat = Path(f"/proc/{entry}/stat").read_text(errors="replace")
                yield int(entry), int(stat.rpartition(")")[2].split()[1])


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(f"prctl({option}, {value}) failed")


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_text(text)
    partial.rename(path)


if __name__ == "__main__":
    Supervisor(Path(sys.argv[1]), int(sys.argv[2])).run()
