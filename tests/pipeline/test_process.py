"""The end of a command's process: its exit status and what it says, whatever ends it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client
from helpers import COLOURS, CUT, draw, in_session, wait_until

PREPARE = """
import asyncio, ctypes, logging, os, signal, sys, threading, time
from dtl.config.errors import UserError
from dtl.pipeline import commands, process
from dtl.pipeline.messages import print_line

class Closing:
    def __init__(self, error=None): self.error = error
    def __enter__(self): return self
    def __exit__(self, *_):
        print_line("closed")
        if self.error is not None: raise self.error

class Leaving:
    def __del__(self): raise ValueError("left")

def wait():
    print_line("ready")
    time.sleep(60)
"""


def program(body: str, argument: str = "") -> list[str]:
    """A process in which a command does what `body` says."""
    function = "def work(_):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    rest = (
        "commands.load = lambda _: work\n"
        f"sys.argv = ['dtl', 'status', 'application_1', *{argument.split()!r}]\n"
        "process.enter()\n"
    )
    return [sys.executable, "-c", PREPARE + function + "\n" + rest]


def run(body: str, argument: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        program(body, argument), capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("return 3", 3, ""),
        ("sys.exit(4)", 4, ""),
        ("raise UserError('Set `out`.')", 1, "error: Set --out.\n"),
        ("raise KeyboardInterrupt", 130, "error: Interrupted.\n"),
        ("raise OSError()", 1, "error: OSError\n"),
        ("raise TimeoutError", 1, "error: TimeoutError\n"),
        (
            "open('/proc/none')",
            1,
            "error: [Errno 2] No such file or directory: '/proc/none'. Check the name.\n",
        ),
        (
            "raise OSError(28, 'No space left on device', '/data/x')",
            1,
            "error: /data/x cannot be written: no space is left there. Free some, or choose "
            "another place.\n",
        ),
        (
            "raise MemoryError",
            1,
            "error: This machine has too little memory (MemoryError). Free some.\n",
        ),
        (
            "def deeper(): deeper()\ndeeper()",
            1,
            "error: RecursionError: maximum recursion depth exceeded: this is a fault of dtl. Run "
            "again with --debug to see where.\n",
        ),
        (
            "raise asyncio.CancelledError",
            1,
            "error: CancelledError: CancelledError: this is a fault of dtl. Run again with --debug "
            "to see where.\n",
        ),
        (
            "class Panic(BaseException): pass\nraise Panic('in Rust')",
            1,
            "error: Panic: in Rust: this is a fault of dtl. Run again with --debug to see where.\n",
        ),
        ("raise UserError('a\\x1b[2Jb\\udcff\\nc')", 1, "error: a\\x1b[2Jb\\xff\nc\n"),
    ],
)
def test_every_error_is_a_line_and_an_exit_status(body: str, status: int, said: str) -> None:
    done = run(body)
    assert (done.returncode, done.stderr) == (status, said)


def test_debug_shows_where_an_error_came_from() -> None:
    done = run("raise ValueError('here')", "--debug")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last)")
    assert done.stderr.endswith("ValueError: here\n")


def test_an_error_of_a_thread_is_a_line_and_ends_nothing() -> None:
    done = run(
        """
        thread = threading.Thread(target=int, args=("x",), name="reader")
        thread.start()
        thread.join()
        """
    )
    assert done.returncode == 0
    assert done.stderr == (
        "warning: in reader: ValueError: invalid literal for int() with base 10: 'x'. Run again "
        "with --debug to see where.\n"
    )


def test_an_error_of_a_finalizer_is_a_line() -> None:
    done = run("Leaving()")
    assert done.returncode == 0
    assert "ValueError: left. Run again with --debug to see where.\n" in done.stderr
    assert done.stderr.count("\n") == 1


def test_threads_hold_no_process_back() -> None:
    started = time.monotonic()
    done = run("threading.Thread(target=time.sleep, args=(100,)).start(); return 5")
    assert done.returncode == 5
    assert time.monotonic() - started < 60


def test_what_is_registered_for_the_end_runs() -> None:
    done = run("import atexit; atexit.register(print, 'last'); print_line('first')")
    assert (done.returncode, done.stdout) == (0, "first\nlast\n")


def test_nobody_reads_the_output() -> None:
    for stream in ("1", "2"):
        body = f"""
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            read, write = os.pipe()
            os.dup2(write, {stream})
            os.close(read)
            print_line("to nobody")
            print_line("to nobody again")
            logging.getLogger("dtl").info("nor this")
            return 7
        """
        done = run(body)
        assert done.returncode == 7, done.stderr
        assert "Traceback" not in done.stderr


def test_an_error_that_nobody_reads_keeps_its_status() -> None:
    body = """
        read, write = os.pipe()
        os.dup2(write, 2)
        os.close(read)
        raise UserError("unheard")
    """
    assert run(body).returncode == 1


def test_output_that_cannot_be_written_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            program("print_line('lost')"), stdout=full, stderr=subprocess.PIPE, text=True,
            check=False, timeout=120,
        )  # fmt: skip
    assert done.returncode == 1
    assert "Cannot write to the standard output: [Errno 28] No space left" in done.stderr


def test_a_terminal_that_lacks_letters() -> None:
    done = subprocess.run(
        program("print_line('Käfer'); raise UserError('甲虫')"), capture_output=True, text=True,
        check=False, timeout=120, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 1
    assert (done.stdout, done.stderr) == ("K\\xe4fer\n", "error: \\u7532\\u866b\n")


def stop(body: str, *signals: int, pause_s: float = 0.0) -> tuple[int, str, str]:
    process = subprocess.Popen(
        program(body), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for number in signals:
        process.send_signal(number)
        time.sleep(pause_s)
    out, said = process.communicate(timeout=120)
    return process.returncode, out, said


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGINT, "error: Interrupted.\n"),
        (signal.SIGTERM, "error: Interrupted by SIGTERM.\n"),
        (signal.SIGHUP, "error: Interrupted by SIGHUP.\n"),
    ],
)
def test_a_signal_closes_what_is_open(number: int, said: str) -> None:
    body = f"""
        signal.signal({int(number)}, process._stop)  # a shell's background jobs ignore some
        with Closing(): wait()
    """
    assert stop(body, number) == (128 + number, "closed\n", said)


def test_a_second_ctrl_c_does_not_stop_the_closing() -> None:
    body = """
        signal.signal(signal.SIGINT, process._stop)
        class Slow:
            def __enter__(self): pass
            def __exit__(self, *_): time.sleep(2)
        with Closing(), Slow(): wait()
    """
    status, out, said = stop(body, signal.SIGINT, signal.SIGINT, signal.SIGTERM, pause_s=0.5)
    assert (status, out) == (130, "closed\n")
    assert said.endswith("error: Interrupted.\n")
    assert "Still closing; it ends within 60 s.\n" in said
    assert "Traceback" not in said


def test_a_signal_ends_a_process_whose_native_code_does_not_return() -> None:
    body = """
        process._CLOSING_S = 1.0
        libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
        libc.pthread_mutex_lock(mutex)
        threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        libc.pthread_mutex_lock(mutex)
    """
    done = run(body)
    said = "error: Interrupted. Some resources were not closed in time.\n"
    assert (done.returncode, done.stderr) == (143, said)


def test_a_signal_that_meets_a_finalizer_is_not_lost() -> None:
    body = """
        class Last:
            def __del__(self):
                print_line("ready")
                time.sleep(3)
        Last()
        time.sleep(60)
    """
    assert stop(body, signal.SIGTERM)[0] == 143


def test_signals_that_are_ignored_stay_so() -> None:
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    command = program("os.kill(os.getpid(), signal.SIGHUP); print_line('on')")
    command[2] = code + command[2]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "on\n")


# --- whole commands ------------------------------------------------------------------------------

GOES_ON = "What is done stays done; the same command goes on."


class Command:
    """A command of dtl in a session of its own."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dtl.pipeline", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=os.environ | environment,
        )  # fmt: skip

    def wait_for(self, file: Path) -> None:
        wait_until(lambda: file.exists() or self.process.poll() is not None, file.name)
        assert self.process.poll() is None, self.process.communicate()[1]

    def end(self) -> tuple[int, str, str]:
        """Wait for its end; return its status, what it said, and what it said last.

        The processes that it started must end with it.
        """
        said = self.process.communicate(timeout=300)[1]
        wait_until(lambda: not in_session(self.process.pid), "its processes to end", timeout_s=10)
        assert "Traceback" not in said
        return self.process.returncode, said, said.splitlines()[-1] if said else ""


def check_nothing_left(out: Path) -> None:
    assert not [*out.glob(".dtl-*")]
    assert not [*out.rglob("*.partial")]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals") / "pictures"
    draw(folder, COLOURS, 24)
    return folder


LONG = ("--train.epochs", "3000")


@pytest.mark.slow
@pytest.mark.parametrize("reached", ["features.zarr/status/c/0", "checkpoint.npz"])
def test_a_run_that_is_told_to_end_leaves_nothing_behind(
    pictures: Path, tmp_path: Path, reached: str
) -> None:
    """That it goes on to the same bytes, tests/chaos shows."""
    out = tmp_path / "out"
    command = Command("run", "--images", pictures, "--out", out, *CUT, *LONG)
    command.wait_for(out / reached)
    if reached == "checkpoint.npz":
        os.killpg(command.process.pid, signal.SIGTERM)  # its workers, too
    else:
        command.process.terminate()
    status, _, last = command.end()
    assert (status, last) == (143, f"error: Interrupted by SIGTERM. {GOES_ON}")
    check_nothing_left(out)


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler of a signal, as /proc has it."""
    found = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.0, 0.5])
def test_ctrl_c_in_the_first_second(pictures: Path, tmp_path: Path, after_s: float) -> None:
    command = Command("run", "--images", pictures, "--out", tmp_path / "out", *CUT)
    # Before that, Python itself starts, and tells of Ctrl-C in its own way.
    wait_until(lambda: catches(command.process.pid, signal.SIGTERM), "Python to start", 60)
    time.sleep(after_s)
    os.killpg(command.process.pid, signal.SIGINT)
    status, _, last = command.end()
    assert status == 130
    assert last in ("error: Interrupted.", f"error: Interrupted. {GOES_ON}")
    check_nothing_left(tmp_path)


Cluster = tuple[str, list[subprocess.Popen[bytes]]]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Address and processes of a scheduler, and a worker of it, that somebody else started."""
    file, common = tmp_path / "scheduler.json", ["--host", "127.0.0.1", "--no-dashboard"]

    def start(program: str, *arguments: object) -> subprocess.Popen[bytes]:
        module = f"distributed.cli.{program}"
        return subprocess.Popen(
            [sys.executable, "-m", module, *common, "--scheduler-file", file, *arguments],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    started = [start("dask_scheduler", "--port", "0")]
    wait_until(lambda: file.exists() and file.read_text().endswith("}"), "the scheduler", 60)
    folder = ["--local-directory", tmp_path / "worker"]
    started.append(start("dask_worker", "--nthreads", "2", "--death-timeout", "5", *folder))
    address = json.loads(file.read_text())["address"]
    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=120)
    yield address, started
    for process in reversed(started):
        process.terminate()
        process.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize("reached", ["features.zarr/status/c/0", "checkpoint.npz"])
def test_a_scheduler_that_is_lost(
    pictures: Path, tmp_path: Path, reached: str, cluster: Cluster
) -> None:
    out, (address, started) = tmp_path / "out", cluster
    command = Command("run", "--images", pictures, "--out", out, *CUT, *LONG, "--cluster", address)
    command.wait_for(out / reached)
    started[0].kill()
    status, said, last = command.end()
    assert status == 1
    assert last.startswith("error: The Dask scheduler, or the connection to it, was lost."), said
    assert last.endswith(GOES_ON)
    check_nothing_left(out)


@pytest.mark.slow
def test_workers_that_cannot_be_started(pictures: Path, tmp_path: Path) -> None:
    """Dask's own folder, to which workers spill, cannot be made."""
    out = tmp_path / "out"
    environment = {"DASK_TEMPORARY_DIRECTORY": "/dev/full/folder"}
    status, _, last = Command(
        "run", "--images", pictures, "--out", out, *CUT, **environment
    ).end()  # fmt: skip
    assert status == 1
    assert last.startswith("error: The workers on this machine did not start: ")
    assert "/dev/full" in last
    check_nothing_left(out)
