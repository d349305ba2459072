"""Seconds from the command to the first task in a container, on a real YARN: `make bench`."""

from __future__ import annotations

import time
from pathlib import Path

from helpers import COLOURS, CUT, command, draw
from minicluster import MiniCluster

from dtl import storage
from dtl.cluster import environment

NOTE_FIRST_TASK = """
import time
from pathlib import Path
from distributed import WorkerPlugin

class Note(WorkerPlugin):
    def transition(self, key, start, finish, **kwargs):
        if finish == "executing" and not Path({file!r}).exists():
            Path({file!r}).write_text(repr(time.time()))

async def dask_setup(worker):
    await worker.plugin_add(plugin=Note(), name="note")
"""


def test_first_task_within_a_minute(yarn: MiniCluster, tmp_path: Path) -> None:
    url = f"{yarn.url}/tmp/dtl-env.tar"
    began = time.perf_counter()
    environment.pack(url)
    packed_s = time.perf_counter() - began
    print(f"whole environment: {storage.size(url) / 2**30:.2f} GiB, packed in {packed_s:.0f} s")
    began = time.perf_counter()
    assert not environment.pack(url)
    print(f"found unchanged in {time.perf_counter() - began:.1f} s")
    draw(tmp_path / "pictures", COLOURS, 4)
    seconds = {}
    for state in ("not yet on the node", "on the node"):
        first = tmp_path / f"{state}.txt"
        preload = tmp_path / f"{state}.py"
        preload.write_text(NOTE_FIRST_TASK.format(file=str(first)))
        started = time.time()
        done = command(
            "run", "--cluster", "yarn", "--yarn.environment", url, "--yarn.worker-vcores", "1",
            "--yarn.worker-memory", "2GiB", "--cluster.n-workers", "1",
            "--yarn.env", f"DASK_DISTRIBUTED__WORKER__PRELOAD={preload}",
            "--images", tmp_path / "pictures", "--out", tmp_path / state, *CUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        seconds[state] = float(first.read_text()) - started
        print(f"environment {state}: first task after {seconds[state]:.1f} s")
    assert max(seconds.values()) < 60
