from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import contents

from dtl import storage
from dtl.config.errors import UserError
from dtl.storage import guards, lock

HOLDER = """
import sys, time
from dtl.storage import guards, lock
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


def test_what_a_killed_driver_left_half_written_goes(tmp_path: Path) -> None:
    (tmp_path / "features.zarr").mkdir()
    for name in (
        ".dtl-lock.0.partial",
        "head.npz.1.partial",
        "features.zarr/c.2.partial",
        "head.npz",
    ):
        (tmp_path / name).write_text("half")
    with lock.hold(str(tmp_path)):
        found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
        (tmp_path / "head.npz.3.partial").touch()  # of a try that failed and went on
    # A store's are removed where it is filled: it may have a million files.
    assert found == [".dtl-lock", "features.zarr", "features.zarr/c.2.partial", "head.npz"]
    assert sorted(contents(tmp_path)) == ["features.zarr/c.2.partial", "head.npz"]


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


def test_a_driver_that_lost_its_lock_writes_nothing_more(tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = rf"The lock of {out} was lost: it belongs to process 7 on elsewhere now\."
    with lock.hold(str(out)) as held:
        storage.write_bytes(f"{out}/head.npz", b"1")
        held.check()
        elsewhere(out, 0)
        for change in (
            held.check,
            held.beat,
            lambda: storage.write_bytes(f"{out}/head.npz", b"2"),
            lambda: storage.put(__file__, f"{out}/head.npz"),
            lambda: storage.remove(f"{out}/head.npz"),
            lambda: storage.remove(str(out)),
            lambda: storage.empty_folder(str(out), keep="x"),
            lambda: storage.remove_partials(str(out)),
        ):
            with pytest.raises(lock.LostLockError, match=said):
                change()
        storage.write_bytes(f"{tmp_path}/out2/file", b"elsewhere one may write")
    assert json.loads((out / ".dtl-lock").read_text())["host"] == "elsewhere"
    assert (out / "head.npz").read_bytes() == b"1"
    storage.write_bytes(f"{out}/head.npz", b"3")  # it is held no more


def test_a_lock_that_was_removed_is_lost(tmp_path: Path) -> None:
    with lock.hold(str(tmp_path)):
        (tmp_path / ".dtl-lock").unlink()
        with pytest.raises(lock.LostLockError, match="it belongs to nobody now"):
            storage.write_bytes(f"{tmp_path}/head.npz", b"2")
    assert list(tmp_path.iterdir()) == []


def hold_and_lose(folder: Path) -> None:
    with lock.hold(str(folder)):
        elsewhere(folder, 0)
        time.sleep(60)  # work that writes nothing


@pytest.mark.usefixtures("quick")
def test_the_work_of_a_driver_that_lost_its_lock_ends(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(lock.LostLockError, match="process 7 on elsewhere"):
        hold_and_lose(tmp_path)
    assert time.monotonic() - started < 50
    assert json.loads((tmp_path / ".dtl-lock").read_text())["host"] == "elsewhere"


def test_a_worker_writes_while_its_driver_holds_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "_guards", {})
    out = str(tmp_path / "out")
    (tmp_path / "out").mkdir()
    elsewhere(tmp_path / "out", 0)
    lock.guard_worker(out, "t")
    storage.write_bytes(f"{out}/1", b"1")
    (tmp_path / "out" / ".dtl-lock").unlink()  # as another driver that came and ended
    with pytest.raises(lock.LostLockError, match=f"The lock of {out} was lost: .* nobody now"):
        storage.write_bytes(f"{out}/2", b"")
    elsewhere(tmp_path / "out", 0)
    lock.guard_worker(out, "of the driver before")
    for write in (
        lambda: storage.write_bytes(f"{out}/2", b""),
        lambda: storage.check_guards(f"{out}/features.zarr"),
    ):
        with pytest.raises(lock.LostLockError, match=f"The lock of {out} was lost"):
            write()
    lock.guard_worker(out, "t")
    storage.write_bytes(f"{out}/2", b"the next driver has come to the same worker")
    (tmp_path / "out" / ".dtl-lock").unlink()
    lock.guard_worker(out, "")
    storage.write_bytes(f"{out}/2", b"the driver has let it go")


def test_a_worker_that_is_a_thread_of_its_driver_keeps_the_drivers_check(tmp_path: Path) -> None:
    with lock.hold(str(tmp_path)) as held:
        lock.guard_worker(str(tmp_path), held.token)
        (tmp_path / ".dtl-lock").unlink()
        with pytest.raises(lock.LostLockError, match="belongs to nobody"):
            storage.write_bytes(f"{tmp_path}/1", b"1")
    storage.write_bytes(f"{tmp_path}/1", b"1")


SUSPENDED = """
import sys, time
from dtl import storage
from dtl.config.errors import UserError
from dtl.storage import guards, lock
with lock.hold(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
    storage.write_bytes(sys.argv[1] + "/head.npz", b"late")
"""


def test_a_driver_that_was_suspended_notices_before_it_writes(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SUSPENDED, tmp_path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as driver:  # fmt: skip
        assert driver.stdout is not None
        assert driver.stdout.readline() == "held\n"
        driver.send_signal(signal.SIGSTOP)
        elsewhere(tmp_path, 0)  # as a driver on another machine that took it for dead
        (tmp_path / "head.npz").write_bytes(b"of the other")
        driver.send_signal(signal.SIGCONT)
        _, errors = driver.communicate("go on\n", timeout=120)
    assert driver.returncode == 1
    assert "was lost: it belongs to process 7 on elsewhere" in errors
    assert (tmp_path / "head.npz").read_bytes() == b"of the other"
    assert json.loads((tmp_path / ".dtl-lock").read_text())["host"] == "elsewhere"


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"[" * 100_000, b"\xff", b"null", b'{"host": 1, "pid": 2}',
     b'{"host": "a", "pid": "7", "started": "1", "token": "t", "beat": 1}',
     b'{"host": "a", "pid": 7, "started": null, "token": "t", "beat": 1}'],
)  # fmt: skip
def test_a_damaged_lock_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".dtl-lock").write_bytes(content)
    with (
        pytest.raises(UserError, match=rf"{tmp_path}/\.dtl-lock is damaged: .* Remove it if no dr"),
        lock.hold(str(tmp_path)),
    ):
        pass
    assert (tmp_path / ".dtl-lock").read_bytes() == content


def test_the_empty_lock_of_the_field(tmp_path: Path, cases: Path) -> None:
    shutil.copy(cases / "files/dtl-lock-empty", tmp_path / ".dtl-lock")
    with (
        pytest.raises(UserError, match=rf"{tmp_path}/\.dtl-lock is damaged"),
        lock.hold(str(tmp_path)),
    ):
        pass
