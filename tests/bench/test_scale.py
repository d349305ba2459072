"""A million rows through every command, with a network that does nothing: `make bench`.

`DTL_BENCH_ROWS=1000000` is the whole bar: 100,000 chunks, some GB of disk, and the better part of
an hour. Images are real JPEGs of 8 x 8 pixels in tars, one picture per class, so that a head that
does not classify nearly all of them has rows and labels mixed up.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cloudpickle
import numpy as np
import psutil
import pytest
from PIL import Image

from dtl.features import featurization
from dtl.features.store import FeatureStore
from dtl.images import tars

N_ROWS = int(os.environ.get("DTL_BENCH_ROWS", "10000"))
N_WORKERS = int(os.environ.get("DTL_BENCH_WORKERS", "2"))
CHUNK_IMAGES = int(os.environ.get("DTL_BENCH_CHUNK_IMAGES", "10"))
N_CLASSES = 257
TAR_IMAGES = 10_000
N_LEFT_OUT = 1_500
"""Files in the tars that are no images."""

MOST_DRIVER_BYTES = 2 << 30
MOST_TASK_BYTES = 8 << 10
MOST_GROWTH_BYTES = 64 << 20
"""The driver's memory, from a fifth of the chunks to the last."""

N_SCHEDULED = int(os.environ.get("DTL_BENCH_CHUNKS", "5000"))
"""Chunks that do nothing; 100,000 are the bar."""

pytestmark = pytest.mark.timeout(0)  # minutes, and with more rows hours

MOST_BYTES_PER_CHUNK = 1000
"""By which the driver, which has the scheduler in it, may grow."""

SCHEDULE = """
import json, sys, time
from dtl import config
from dtl.cluster import connection
from dtl.cluster.chunks import map_chunks

def memory(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

if __name__ == "__main__":
    n, samples = int(sys.argv[1]), []
    options = {"n_workers": 2, "threads_per_worker": 2, "dashboard_address": "127.0.0.1:0"}
    with connection.connect(config.build({"cluster": options}).cluster) as client:
        started, used = time.monotonic(), time.process_time()
        for k, _ in enumerate(map_chunks(client, pow, range(n), exp=1)):
            if k % (n // 20) == 0:
                samples.append((k, memory("VmRSS")))
        took, used = time.monotonic() - started, time.process_time() - used
    print(json.dumps([took, used, samples, memory("VmHWM")]))
"""

NETWORK = '''
"""A network that does nothing: the mean of four squares of pixels, of each colour."""
from dtl.features.network.quiet_keras import keras


def Nothing(input_shape=None, **_):
    pixels = keras.Input(input_shape or (8, 8, 3))
    return keras.Model(pixels, keras.layers.AveragePooling2D(2, name="mean")(pixels))


Nothing.__module__ = "keras.applications.mobilenet"  # whose preprocessing it has
keras.applications.Nothing = Nothing
'''

OPTIONS = [
    "--features.network", "Nothing", "--features.layers", "mean", "--features.pooling", "flatten",
    "--features.weights", "random", "--features.precision", "float32",
    "--features.chunk-images", str(CHUNK_IMAGES), "--features.batch-images", str(CHUNK_IMAGES),
    "--train.epochs", str(min(40, max(2, 1_000_000 // N_ROWS))), "--train.l2", "1e-4",
    "--cluster.n-workers", str(N_WORKERS),
]  # fmt: skip


@dataclass
class Peak:
    """Memory of a command's processes while it runs, in bytes."""

    driver: int = 0
    worker: int = 0
    samples: list[tuple[int, int]] = field(default_factory=list)  # chunks done, driver's memory

    def watch(self, pid: int, count: Callable[[], int], ended: threading.Event) -> None:
        """Look at all processes of a command twice a second."""
        while not ended.wait(0.5):
            with contextlib.suppress(OSError, psutil.Error):
                now, peak = read_memory(pid)
                self.driver = max(self.driver, peak)
                self.samples.append((count(), now))
                for child in psutil.Process(pid).children(recursive=True):
                    self.worker = max(self.worker, read_memory(child.pid)[1])

    def growth(self) -> float:
        """Bytes by which the driver grew per chunk, after the first fifth of the chunks."""
        chunks, memory = np.array(self.samples, float).T
        moving = (chunks >= chunks.max() / 5) & (chunks < chunks.max())
        return float(np.polyfit(chunks[moving], memory[moving], 1)[0]) if moving.sum() > 9 else 0.0


def read_memory(pid: int) -> tuple[int, int]:
    """Resident bytes of a process, now and at most."""
    text = Path(f"/proc/{pid}/status").read_text()
    now, peak = (re.search(rf"{name}:\s+(\d+) kB", text) for name in ("VmRSS", "VmHWM"))
    return (int(now[1]) << 10, int(peak[1]) << 10) if now and peak else (0, 0)


@dataclass
class Stage:
    """What a command took."""

    name: str
    seconds: float
    processor_s: float
    peak: Peak

    def __str__(self) -> str:
        peak = self.peak
        return (
            f"{self.name:<28} {self.seconds:8.1f} s {self.processor_s:8.1f} processor s"
            f" {peak.driver / 2**20:7.0f} MiB {peak.worker / 2**20:7.0f} MiB"
        )


class Commands:
    """The command line, run in a folder, with the network that does nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        network = folder / "nothing.py"
        network.write_text(NETWORK)
        preload = {"DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps([str(network)])}
        self._environment = os.environ | preload
        self.stages: list[Stage] = []

    def run(self, command: str, name: str, *arguments: str) -> str:
        """Run a command, print what it took, and return what it wrote."""
        log = self.folder / f"{len(self.stages)}.log"
        before, started = processor_seconds(), time.monotonic()
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "dtl.pipeline", command, "--out", str(self.out), *arguments],
                env=self._environment, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
            peak, ended = Peak(), threading.Event()
            watcher = threading.Thread(target=peak.watch, args=(process.pid, self.n_done, ended))
            watcher.start()
            status = process.wait()
            ended.set()
            watcher.join()
        seconds = time.monotonic() - started
        text = log.read_text()
        assert status == 0, f"{command}: exit status {status}\n{text[-4000:]}"
        self.stages.append(Stage(name, seconds, processor_seconds() - before, peak))
        print(self.stages[-1], flush=True)
        return text

    def n_done(self) -> int:
        """Chunks whose last file is there."""
        with contextlib.suppress(FileNotFoundError):
            return sum(1 for _ in os.scandir(self.out / "features.zarr/status/c"))
        return 0


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def draw_classes() -> list[bytes]:
    """A JPEG for each class: 16 squares, each white or black, as many codes as there are."""
    codes = np.random.default_rng(0).permutation(1 << 16)[:N_CLASSES]
    drawn = []
    for code in codes:
        squares = np.array([255 * (int(code) >> k & 1) for k in range(16)], np.uint8)
        pixels = squares.reshape(4, 4).repeat(2, 0).repeat(2, 1)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=60, optimize=True)
        drawn.append(buffer.getvalue())
    return drawn


def write_tars(folder: Path, n_images: int) -> None:
    """Images in random order of their classes, each with bytes of its own after the JPEG's end."""
    folder.mkdir()
    drawn, label = draw_classes(), np.random.default_rng(1).integers(0, N_CLASSES, n_images)
    label[:N_CLASSES] = range(N_CLASSES)
    n_tars = -(-n_images // TAR_IMAGES)
    for t in range(n_tars):
        with (folder / tars.tar_name(t)).open("wb") as file:
            for name, data in members(t, n_tars, drawn, label):
                file.write(tars.make_header(name, len(data)) + data + tars.make_padding(len(data)))
            file.write(tars.END)


def members(
    t: int, n_tars: int, drawn: list[bytes], label: np.ndarray
) -> Iterator[tuple[str, bytes]]:
    for k in range(t * TAR_IMAGES, min((t + 1) * TAR_IMAGES, len(label))):
        yield f"class-{label[k]:03d}/{k:08d}.jpg", drawn[label[k]] + k.to_bytes(8, "little")
    for k in range(t, N_LEFT_OUT, n_tars):
        yield f"class-000/{k:05d}-notes-of-the-photographer.log", b"no image"


def count_files(folder: Path) -> tuple[int, int]:
    """Number of files below a folder, and their bytes."""
    sizes = [
        os.stat(f"{inside}/{name}").st_size
        for inside, _, names in os.walk(folder)
        for name in names
    ]
    return len(sizes), sum(sizes)


def task_bytes(store: FeatureStore) -> int:
    """Bytes of a chunk's task, which lists where to read and what to compute."""
    compute = functools.partial(featurization._extract_chunk, root="/images", extractor=None)
    task = functools.partial(featurization._fill_chunk, store=store, compute=compute)
    return len(cloudpickle.dumps(task))


def test_a_million_rows(tmp_path: Path) -> None:
    started = time.monotonic()
    images = tmp_path / "images"
    write_tars(images, N_ROWS)
    n_tars, n_bytes = count_files(images)
    print(
        f"\n{N_ROWS} images of {N_CLASSES} classes, {CHUNK_IMAGES} per chunk, {n_tars} tars of"
        f" {n_bytes / 2**20:.0f} MiB made in {time.monotonic() - started:.0f} s;"
        f" {N_WORKERS} workers, load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'':<28} {'':>8}   {'':>8}             {'driver':>7}     {'worker':>7}")
    commands = Commands(tmp_path)
    given = ["--images", str(images), *OPTIONS]
    commands.run("featurize", "list, featurize", *given)
    store = FeatureStore.open(str(commands.out / "features.zarr"))
    n_chunks, featurized = store.n_chunks, commands.stages[0]
    assert n_chunks == -(-N_ROWS // CHUNK_IMAGES)
    last = commands.out / f"features.zarr/status/c/{n_chunks - 1}"
    as_it_was = last.read_bytes()
    last.unlink()
    commands.run("featurize", "go on with the last chunk", *given)
    assert last.read_bytes() == as_it_was
    commands.run("train", "split, train", *OPTIONS)
    scores = commands.run("evaluate", "evaluate", *OPTIONS)
    commands.run("report", "report", *OPTIONS)
    assert "done before" in commands.run("run", "run, all done before", *given)
    timings = json.loads((commands.out / "timings.json").read_text())
    for stage, timing in timings.items():
        print(f"  {stage}: {timing['seconds']:.0f} s, {timing['n']} {timing['unit']}")
    evaluation = json.loads((commands.out / "evaluation.json").read_text())["scores"]
    page = (commands.out / "report.html").stat().st_size
    n_files, store_bytes = count_files(commands.out / "features.zarr")
    grown = featurized.peak.growth()
    print(
        f"{n_files} files of {store_bytes / 2**20:.0f} MiB in the store; a task"
        f" {task_bytes(store)} bytes; the driver grows by {grown:.0f} bytes per chunk;"
        f" report.html {page / 2**20:.1f} MiB; evaluation.json"
        f" {(commands.out / 'evaluation.json').stat().st_size / 2**20:.1f} MiB\n{scores[-600:]}"
    )
    print(f"all: {sum(s.seconds for s in commands.stages) / 60:.1f} minutes,"
          f" {sum(s.processor_s for s in commands.stages) / 60:.1f} of a processor")  # fmt: skip
    assert sum(scored["n_images"] for scored in evaluation.values()) == N_ROWS
    assert evaluation["test"]["accuracy"] > 0.95
    assert max(stage.peak.driver for stage in commands.stages) < MOST_DRIVER_BYTES
    assert grown * n_chunks < MOST_GROWTH_BYTES
    assert task_bytes(store) < MOST_TASK_BYTES
    assert page < 20 << 20


def test_the_driver_does_not_grow_with_the_chunks(tmp_path: Path) -> None:
    script = tmp_path / "schedule.py"
    script.write_text(SCHEDULE)
    done = subprocess.run(
        [sys.executable, script, str(N_SCHEDULED)], stdout=subprocess.PIPE, text=True, check=True
    )
    seconds, processor_s, samples, peak = json.loads(done.stdout.splitlines()[-1])
    later = np.array(samples[len(samples) // 4 :], float)
    grown = np.polyfit(*later.T, 1)[0]
    print(
        f"\n{N_SCHEDULED} chunks scheduled in {seconds:.0f} s, {processor_s:.0f} s of the driver's"
        f" processor, load {os.getloadavg()[0]:.1f}; at most {peak / 2**20:.0f} MiB; from a quarter"
        f" on {grown:.0f} bytes per chunk; MiB: {[m >> 20 for _, m in samples]}"
    )
    assert peak < MOST_DRIVER_BYTES
    assert grown < MOST_BYTES_PER_CHUNK
