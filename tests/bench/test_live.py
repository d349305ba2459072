"""What the live page costs a run: `pytest tests/bench/test_live.py -n0 -o addopts=-s`.

Trainings with the page, which a client asks for each second as a browser does, and without take
turns. Workers are threads of this process, so that its processor time is that of all of a run.
"""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from helpers import rectified_store

from dtl import config
from dtl.cluster import connection, live
from dtl.config import TrainConfig
from dtl.features.store import FeatureStore
from dtl.training import trainer
from dtl.training.spec import TrainingSpec

N_IMAGES, N_TURNS, EPOCHS = 4000, 6, 10.0
MOST = 1.02


@contextmanager
def watching(client: Client) -> Iterator[None]:
    """Ask for the numbers each second."""
    ended, link = threading.Event(), f"{live.find_page(client)}.json"

    def ask() -> None:
        while not ended.wait(1):
            with urllib.request.urlopen(link, timeout=30) as answer:
                answer.read()

    watcher = threading.Thread(target=ask)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def measure(store: FeatureStore, *, page: bool, seed: int) -> tuple[float, float]:
    """Return wall and processor seconds of the rounds of a training."""
    settings = config.build({"cluster": {"processes": False}}).cluster
    with pytest.MonkeyPatch.context() as patch:
        if not page:
            patch.setattr(live, "follow", lambda _: nullcontext())
        with connection.connect(settings) as client, watching(client) if page else nullcontext():
            spec = TrainingSpec(store, TrainConfig(epochs=EPOCHS, n_shards=4), "fc2", seed)
            began, processor = time.perf_counter(), time.process_time()
            trainer.train(spec, client)
            return time.perf_counter() - began, time.process_time() - processor


def test_the_live_page_costs_less_than_two_percent(tmp_path: Path) -> None:
    store = rectified_store(str(tmp_path / "features.zarr"), N_IMAGES)
    took: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    measure(store, page=True, seed=0)  # imports, and the first touch of memory
    for turn in range(N_TURNS):
        for page in (True, False) if turn % 2 else (False, True):
            took[page].append(measure(store, page=page, seed=turn))
    ratios = np.array(took[True]) / np.array(took[False])
    wall, processor = np.median(ratios, axis=0)
    print(
        f"\n{N_TURNS} turns of {np.median([w for w, _ in took[False]]):.1f} s: with the page "
        f"{wall:.3f} of the time ({ratios[:, 0].min():.3f} to {ratios[:, 0].max():.3f}), "
        f"{processor:.3f} of the processors' time "
        f"({ratios[:, 1].min():.3f} to {ratios[:, 1].max():.3f})"
    )
    assert processor <= MOST
