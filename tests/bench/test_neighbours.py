"""Exact neighbours of many rows of 512 features: time, memory, and bits.

`DTL_BENCH_ROWS=1000000` is the whole bar: 2 GB of features and 512 TFLOP of products, hours of a
processor. A quarter of the rows is searched first: a worker's memory must be the same.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers import rectified_store

from dtl.cluster import connection
from dtl.config import build
from dtl.features.store import FeatureStore
from dtl.neighbours.search import find_neighbours

N_ROWS = int(os.environ.get("DTL_BENCH_ROWS", "20000"))
N_WORKERS = [int(n) for n in os.environ.get("DTL_BENCH_WORKERS", "1,4").split(",")]
N_FEATURES, K = 512, 10
SAMPLE = 200

MOST_WORKER_BYTES = 1200 << 20
MOST_DRIVER_BYTES_PER_NEIGHBOUR = 3 * 12

pytestmark = pytest.mark.timeout(0)


class Peak:
    """Resident memory of this process and of its workers, looked at while a block runs."""

    def __init__(self) -> None:
        self.workers = self.driver = 0
        self.processor_s: dict[int, float] = {}
        self._ended = threading.Event()
        self._before = psutil.Process().memory_info().rss

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            self.driver = max(self.driver, psutil.Process().memory_info().rss - self._before)
            for child in psutil.Process().children(recursive=True):
                try:
                    self.workers = max(self.workers, child.memory_info().rss)
                    used = child.cpu_times()
                    self.processor_s[child.pid] = used.user + used.system
                except psutil.Error:
                    continue

    def __enter__(self) -> Peak:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def search(store: FeatureStore, n_workers: int, n_rows: int) -> tuple[str, float, Peak, np.ndarray]:
    settings = build({"cluster": {"n_workers": n_workers, "threads_per_worker": 1}}).cluster
    with connection.connect(settings) as client, Peak() as peak:
        time.sleep(1)  # workers are there
        before = sum(peak.processor_s.values())
        started = time.monotonic()
        rows = np.arange(store.n_images) < n_rows
        found = find_neighbours(store, "fc2", client, K, rows=rows)
        seconds = time.monotonic() - started
        time.sleep(0.5)
        processor_s = sum(peak.processor_s.values()) - before
    digest = hashlib.sha256(found.index.tobytes() + found.cosine.tobytes()).hexdigest()
    speed = n_rows * (n_rows + 1) * N_FEATURES / processor_s / 1e9
    print(
        f"{n_rows:>9,} rows, {n_workers} workers: {seconds:8.1f} s, {processor_s:8.1f} s of the"
        f" workers' processors, {speed:.1f} GFLOP/s; worker {peak.workers >> 20} MiB,"
        f" driver +{peak.driver >> 20} MiB; load {os.getloadavg()[0]:.1f}; {digest[:12]}",
        flush=True,
    )
    return digest, seconds, peak, found


def test_a_million_rows(tmp_path: Path) -> None:
    started = time.monotonic()
    store = rectified_store(str(tmp_path / "features.zarr"), N_ROWS, N_FEATURES)
    print(f"\n{N_ROWS:,} rows of {N_FEATURES} made in {time.monotonic() - started:.0f} s")
    _, _, smaller, _ = search(store, N_WORKERS[0], N_ROWS // 4)
    results = [search(store, n_workers, N_ROWS) for n_workers in N_WORKERS]
    assert len({digest for digest, *_ in results}) == 1
    whole, found = results[0][2], results[0][3]
    assert whole.workers < MOST_WORKER_BYTES
    if N_ROWS >= 200_000:  # before, blocks grow with the rows
        assert whole.workers < 1.1 * smaller.workers
    assert whole.driver < MOST_DRIVER_BYTES_PER_NEIGHBOUR * N_ROWS * K + (200 << 20)
    check_some(store, found)


def check_some(store: FeatureStore, found: np.ndarray) -> None:
    """Some rows' neighbours by faiss, of features scaled by hand."""
    import faiss

    x = np.sqrt(store.read("fc2"))
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    x -= x.mean(axis=0, dtype=np.float64).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    by_faiss = faiss.IndexFlatIP(N_FEATURES)
    by_faiss.add(x)
    rows = np.random.default_rng(0).choice(N_ROWS, SAMPLE, replace=False)
    cosine, index = by_faiss.search(x[rows], K + 1)
    np.testing.assert_allclose(found.cosine[rows], cosine[:, 1:], atol=2e-6)
    same = (found.index[rows] == index[:, 1:]).mean()
    print(f"{SAMPLE} rows: {same:.2%} of the neighbours are those of faiss, the others tie")
    assert same > 0.99
