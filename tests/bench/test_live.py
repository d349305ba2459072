"""What the live page and the timeline cost: `pytest tests/bench/test_live.py -n0 -o addopts=-s`.

Trainings on workers that are threads of this process, watched by a client that asks each second as
a browser does. Whole runs with and without the page differ by more than it costs, by chance; so
what is compared is the processor time of its own calls with that of all.
"""

from __future__ import annotations

import functools
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from helpers import rectified_store

from dtl import config
from dtl.cluster import connection, live
from dtl.cluster.live import feed, plugin
from dtl.cluster.timeline.record import Record
from dtl.config import TrainConfig
from dtl.pipeline.journal import Journal
from dtl.pipeline.results import Results
from dtl.training import trainer
from dtl.training.spec import TrainingSpec

N_IMAGES, N_TURNS, EPOCHS = 4000, 3, 10.0
MOST, MOST_OF_TIMELINE = 0.02, 0.01


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


def measure(
    calls: Sequence[tuple[Any, Sequence[str]]], folder: Path, patch: pytest.MonkeyPatch
) -> list[float]:
    """Return the share of all processor time that calls take, of each training."""
    store = rectified_store(str(folder / "features.zarr"), N_IMAGES)
    spent = [0.0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*args, **options)
            finally:
                spent[0] += time.thread_time() - began

        return call

    for owner, names in calls:
        for name in names:
            patch.setattr(owner, name, timed(getattr(owner, name)))
    settings = config.build({"cluster": {"processes": False}}).cluster
    shares = []
    for seed in range(N_TURNS):
        kept, results = Journal(), Results(str(folder / f"out-{seed}"))
        with (
            connection.connect(settings) as client,
            watching(client),
            kept.keep(client, results),
            kept.stage("train"),
        ):
            spec = TrainingSpec(store, TrainConfig(epochs=EPOCHS, n_shards=4), "fc2", seed)
            spent[0], began = 0.0, time.process_time()
            n_rounds = len(trainer.train(spec, client).history)
            shares.append(spent[0] / (whole := time.process_time() - began))
        print(f"\n{n_rounds} rounds: {spent[0]:.4f} of {whole:.2f} s of processors", end="")
    print(f"\nits own calls: {', '.join(f'{share:.2%}' for share in shares)}")
    return shares


def test_the_live_page_costs_less_than_two_percent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = (
        (plugin.LivePage, ("log_event", "transition", "add_worker", "remove_worker")),
        (plugin._Numbers, ("get",)),
        (feed._Feed, ("add", "take")),
        (Client, ("log_event",)),
    )
    assert max(measure(calls, tmp_path, monkeypatch)) <= MOST


def test_the_timeline_costs_less_than_one_percent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = (
        (plugin.LivePage, ("_name_tasks", "_look_at_memory", "begin_record", "read_record")),
        (Record, ("add_task",)),
        (Journal, ("_look", "life")),
        (Results, ("write_timeline",)),
        (Client, ("run_on_scheduler",)),
    )
    assert max(measure(calls, tmp_path, monkeypatch)) <= MOST_OF_TIMELINE
