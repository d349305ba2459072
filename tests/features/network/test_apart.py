from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dtl.config.errors import UserError
from dtl.features.network.apart import run_apart
from dtl.storage import places


def test_results_and_errors_come_back() -> None:
    assert run_apart("os.path.join", "a", "b") == "a/b"
    assert run_apart("os.getpid") != os.getpid()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_apart("os.stat", "/nowhere")


def test_the_process_has_the_same_hdfs_client(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_apart("dtl.storage.name_hdfs_client") == "native"
    monkeypatch.setattr(places, "_hdfs_client", "pyarrow")
    assert run_apart("dtl.storage.name_hdfs_client") == "pyarrow"


def test_a_process_that_ends_without_a_result() -> None:
    with pytest.raises(UserError, match=r"A process for os\.abort ended with status -6"):
        run_apart("os.abort")


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = "from dtl.features.network.apart import run_apart; run_apart('time.sleep', 300)"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    deadline = time.monotonic() + 60
    while not (found := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found
    parent.kill()
    parent.wait()
    while Path(f"/proc/{found[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{found[0]}").exists()
