"""One command, started again until it ends well; each process of it is a life."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from events import STAGES, Event
from helpers import in_session, wait_until

from dtl import storage

TIMEOUT_S = 300
"""Far longer than any of these runs takes: what needs more hangs."""

_LISTED = re.compile(r"\d+ images of \d+ classes")
_FEATURES = re.compile(r"features: (\d+) of \1 images|features: done before")
_RESULTS = {"evaluate": ("head.npz", "training"), "report": ("evaluation.json", "evaluation")}
"""Each stage's input, and the stage that makes it as a log calls that."""


class Life:
    """One process of a command, with the workers that it starts.

    Parameters
    ----------
    arguments : sequence of str
        The command.
    out : str
        URL of its results.
    log : Path
        File for what it says.

    Attributes
    ----------
    killed : bool
        Whether we killed it: then it need not say why it ends.
    told : bool
        Whether we told it to end: then that is what it says.
    to_name : str
        What its message has to name if it ends with another.
    """

    def __init__(self, arguments: Sequence[str], out: str, log: Path) -> None:
        self._out, self._log = out, log
        self._made_before = {name for name, _ in _RESULTS.values() if self._is_there(name)}
        self.killed, self.told, self.to_name = False, False, ""
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dtl.pipeline", *arguments],
                stdout=subprocess.DEVNULL, stderr=file, start_new_session=True,
                env=os.environ | {"PYTHONFAULTHANDLER": "1"},
            )  # fmt: skip

    @property
    def is_to_end(self) -> bool:
        """Whether what was done to it ends it, sooner or later."""
        return self.killed or bool(self.to_name)

    def said(self) -> str:
        """Return what it wrote to stderr so far."""
        return self._log.read_text(errors="replace")

    def has_reached(self, stage: str) -> bool:
        """Return whether a stage has begun in this life."""
        if stage == "listing":
            return True
        if stage in _RESULTS:
            name, maker = _RESULTS[stage]
            if name in self._made_before:
                return f"{maker}: done before" in self.said()
            return self._is_there(name)
        return (_LISTED if stage == "featurize" else _FEATURES).search(self.said()) is not None

    def _is_there(self, name: str) -> bool:
        try:
            return storage.exists(storage.join(self._out, name))
        except OSError:  # a disturbed storage
            return False

    def wait_for(self, event: Event, durations: Mapping[str, float]) -> bool:
        """Wait for an event's moment, or the end of its stage; False if the process has ended."""
        index = STAGES.index(event.stage)
        self._poll(lambda: self.has_reached(event.stage), TIMEOUT_S)
        if not self.has_reached(event.stage) and self.process.poll() is None:
            self._fail_as_hanging(f"did not come to {event.stage}")
        self._poll(
            lambda: any(map(self.has_reached, STAGES[index + 1 :])),
            event.fraction * durations[event.stage],
        )
        return self.process.poll() is None

    def _poll(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait for a condition, or the end of the process, for some time."""
        until = time.monotonic() + timeout_s
        while self.process.poll() is None and time.monotonic() < until and not condition():
            time.sleep(0.01)

    def workers(self) -> list[int]:
        """Return the processes of the workers that it started."""
        return workers_of(self.process.pid)

    def wait_until_it_takes_signals(self) -> None:
        """Wait until Python has started: before, it ends by a signal, or with a traceback."""
        wait_until(
            lambda: self.process.poll() is not None or _handles(self.process.pid, signal.SIGTERM),
            "the command to handle signals", 60,
        )  # fmt: skip

    def end(self) -> int:
        """Wait for its end; return its exit status."""
        try:
            return self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._fail_as_hanging("did not end")
            raise

    def _fail_as_hanging(self, what: str) -> None:
        self.process.send_signal(signal.SIGABRT)  # it says where each thread is
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        raise AssertionError(f"The command {what} in {TIMEOUT_S} s. It said:\n{self.said()}")

    def check_end(self) -> None:
        """Assert that it ended by itself: with success, or with one message and a status."""
        status, said = self.process.returncode, self.said()
        if self.killed:
            return
        assert status >= 0, f"ended by signal {-status}:\n{said}"
        assert "Traceback" not in said, said
        assert "FATAL" not in said, said
        if status != 0:
            error = said[said.rfind("error: ") :]
            assert error.startswith("error: "), said
            assert "fault of dtl" not in error, said
            assert self.to_name in error or (self.told and "Interrupted" in error), said

    def wait_for_orphans(self) -> None:
        """Wait until its workers have ended, too."""
        wait_until(lambda: not in_session(self.process.pid), "the workers to end", TIMEOUT_S)

    def close(self) -> None:
        """Kill what is left of it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def workers_of(pid: int) -> list[int]:
    """Return the processes of Dask workers among the descendants of a process of ours."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "spawn_main" in " ".join(child.cmdline()):
                    found.append(child.pid)
    return sorted(found)


def _handles(pid: int, number: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = re.search(r"^SigCgt:\s*(\w+)$", status, re.M)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def time_stages(life: Life) -> dict[str, float]:
    """Watch an undisturbed life to its end; return the seconds of each stage."""
    reached: dict[str, float] = {}
    while life.process.poll() is None:
        for stage in STAGES:
            if stage not in reached and life.has_reached(stage):
                reached[stage] = time.monotonic()
        time.sleep(0.01)
    ends = [*reached.values(), time.monotonic()][1:]
    return {stage: end - start for (stage, start), end in zip(reached.items(), ends, strict=True)}
