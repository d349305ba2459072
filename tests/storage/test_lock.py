from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dtl import storage
from dtl.storage import lock

HOLDER = """
import sys, time
from dtl.storage import lock
with lock.hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats and patience of tenths of seconds."""
    monkeypatch.setattr(lock, "_BEAT_S", 0.1)
    monkeypatch.setattr(lock, "_DEAD_AFTER_S", 2.5)


def test_a_second_driver_is_refused_and_a_third_welcome(tmp_path: Path) -> None:
    with (
        lock.hold(str(tmp_path)),
        pytest.raises(BlockingIOError, match=rf"process {os.getpid()} on .* choose another `out`"),
        lock.hold(str(tmp_path)),
    ):
        pass
    with lock.hold(str(tmp_path)):
        assert (tmp_path / ".dtl-lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_drivers_place_is_taken_at_once(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(BlockingIOError, match=f"process {holder.pid}"),
            lock.hold(str(tmp_path)),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    started = time.monotonic()
    with lock.hold(str(tmp_path)):
        assert time.monotonic() - started < lock._DEAD_AFTER_S / 2


def elsewhere(folder: Path, beat: int) -> None:
    found = {"host": "elsewhere", "pid": 7, "started": "1", "token": "t", "beat": beat}
    (folder / ".dtl-lock").write_text(json.dumps(found))


@pytest.mark.usefixtures("quick")
def test_a_driver_elsewhere_that_lives_is_refused(tmp_path: Path) -> None:
    stop = threading.Event()

    def live() -> None:
        beat = 0
        while not stop.wait(0.1):
            beat += 1
            elsewhere(tmp_path, beat)

    elsewhere(tmp_path, 0)
    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(BlockingIOError, match="process 7 on elsewhere"), lock.hold(str(tmp_path)):
        pass
    stop.set()
    thread.join()


@pytest.mark.usefixtures("quick")
def test_a_driver_elsewhere_that_is_dead_is_replaced(tmp_path: Path) -> None:
    elsewhere(tmp_path, 3)
    with lock.hold(str(tmp_path)):
        held = json.loads((tmp_path / ".dtl-lock").read_text())
        assert held["pid"] == os.getpid()


def test_a_lock_that_is_away_for_a_moment_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a rename does not overwrite, it is away whenever it is written anew."""
    monkeypatch.setattr(storage, "replaces_atomically", lambda url: False)
    back = threading.Timer(0.1, elsewhere, [tmp_path, 1])
    alive = threading.Timer(1.5, elsewhere, [tmp_path, 2])
    for timer in (back, alive):
        timer.start()
    with pytest.raises(BlockingIOError, match="process 7 on elsewhere"), lock.hold(str(tmp_path)):
        pass
    alive.join()


@pytest.mark.usefixtures("quick")
def test_the_holder_shows_that_it_lives(tmp_path: Path) -> None:
    with lock.hold(str(tmp_path)):
        before = json.loads((tmp_path / ".dtl-lock").read_text())["beat"]
        time.sleep(0.5)
        assert json.loads((tmp_path / ".dtl-lock").read_text())["beat"] > before
