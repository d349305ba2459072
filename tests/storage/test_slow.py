"""A call that does not return is told, with its place, and again and again; a quick one never."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import wait_until

from dtl import storage
from dtl.storage import files, slow


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was told, in hundredths of the usual time."""
    found: list[str] = []
    monkeypatch.setattr(slow, "_AFTER_S", 0.3)
    monkeypatch.setattr(slow, "_LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(slow, "_watcher", None)  # one that looks as often
    monkeypatch.setattr(slow, "_tell", found.append)
    return found


def wait(told: list[str], n: int) -> None:
    until = time.monotonic() + 60
    while len(told) < n and time.monotonic() < until:
        time.sleep(0.01)


def test_a_slow_block_is_told_again_whenever_its_time_has_doubled(told: list[str]) -> None:
    with storage.tell_slow("/nas/1.jpg"):
        wait(told, 2)
    assert len(told) == 2
    assert all(text.startswith("Waiting for /nas/1.jpg, ") for text in told)
    with storage.tell_slow("/nas/2.jpg"):
        pass
    time.sleep(0.5)
    assert len(told) == 2


def test_a_read_that_hangs_is_told_with_its_name(
    told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mended = threading.Event()

    def hang(path: str, n_bytes: int) -> bytes:
        mended.wait(60)
        return b"at last"

    monkeypatch.setattr(files, "read_regular", hang)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(storage.read_file, f"{tmp_path}/1.jpg")
        wait(told, 1)
        mended.set()
        assert reading.result() == b"at last"
    assert told[0].startswith(f"Waiting for {tmp_path}/1.jpg, ")


def test_one_thread_watches_all_calls(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(text: str) -> None:
        told.append(text)
        raise ConnectionError  # which does not end the watch

    storage.on_slow(tell)
    threads = threading.active_count()
    with storage.tell_slow("one"), storage.tell_slow("two"):
        wait_until(lambda: {text.split()[2] for text in told} == {"one,", "two,"}, "both", 60)
        assert threading.active_count() <= threads + 1
