"""The live page: its state, its numbers in a browser during a training, and foreign schedulers."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import COLOURS, draw, gaussian_store, wait_until

from dtl import config
from dtl.cluster import connection, live
from dtl.cluster.live.state import SERIES, State
from dtl.config import ClusterConfig, TrainConfig
from dtl.features import featurization
from dtl.features.store import FeatureStore
from dtl.features.values import ExtractionSpec
from dtl.images import listing
from dtl.training import trainer
from dtl.training.spec import Fitted, TrainingSpec

HOSTILE = '<img src=x onerror="document.title=1">\n"ж" ' + 4000 * "x"


def told(kind: str, **values: Any) -> dict[str, Any]:
    return {"kind": kind, "at": 1.0, **values}


def test_many_rounds_take_bounded_memory_and_the_last_is_there() -> None:
    state = State()
    for number in range(1, 10_004):
        state.add(told("round", round=number, loss=1 / number, shard_loss=(0.5, float("nan"))))
    found = state.to_dict()
    rounds = found["rounds"]["round"]
    assert found["n_rounds"] == 10_003
    assert len(rounds) <= 2001
    assert rounds[0] == 1
    assert rounds[-1] == 10_003
    assert {*map(int.__sub__, map(int, rounds[1:-1]), map(int, rounds[:-2]))} == {found["every"]}
    assert found["shard_loss"] == [0.5, None]
    json.dumps(found, allow_nan=False)
    state.add(told("training"))
    assert state.to_dict()["rounds"] == {name: [] for name in SERIES}


@pytest.mark.parametrize("n", [1, 7, 1000, 100_003])
def test_cells_stand_for_all_chunks(n: int) -> None:
    state, half = State(), n // 2
    state.add(told("chunks", n=n, pending=[[half, n]]))
    cells = state.to_dict()["cells"]
    assert len(cells) == min(n, 1000)
    assert sum(cells) / len(cells) == pytest.approx(half / n, abs=1e-3)
    for chunk in (*range(half, n), n - 1):  # one more than once, as of a task that was run again
        state.add(told("chunk", chunk=chunk, n_skipped=0))
    assert {*state.to_dict()["cells"]} == {1}


def test_a_run_forgets_the_one_before_and_passes_over_what_it_does_not_know() -> None:
    state = State()
    for event in (
        told("stage", name="features", unit="images", done=3, total=9),
        told("skipped", path=HOSTILE, reason="damaged"),
        told("of another dtl", x=1),
        told("chunk", of_another_dtl=1),
    ):
        state.add(event)
    assert state.to_dict()["stages"][0]["done"] == 3
    assert state.to_dict()["skipped"] == [(HOSTILE, "damaged")]
    state.add(told("begin"))
    assert state.to_dict()["stages"] == state.to_dict()["skipped"] == []


def read(link: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{link}.json", timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def look(link: str, folder: Path) -> str:
    """Return the page as a browser has made it after some seconds."""
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         f"--user-data-dir={folder / 'profile'}", "--window-size=390,1200",
         "--virtual-time-budget=2500", "--dump-dom", link],
        capture_output=True, check=True, timeout=300,
    )  # fmt: skip
    return done.stdout.decode()


def drawn(dom: str, name: str) -> float:
    found = re.search(rf'data-name="{name}" data-value="([^"]+)"', dom)
    assert found, f"{name} is not drawn"
    return float(found[1])


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
def test_a_browser_sees_a_training_from_its_beginning(tmp_path: Path) -> None:
    store = gaussian_store(str(tmp_path / "features.zarr"))
    settings = TrainConfig(n_shards=3, epochs=120.0, batch_size=16, averaging_frequency=3)
    cluster = config.build({"cluster": {"processes": False}}).cluster
    with connection.connect(cluster) as client:
        link, fitted = live.find_page(client), list[Fitted]()
        live.tell("skipped", path=HOSTILE, reason="damaged")
        work = threading.Thread(
            target=lambda: fitted.append(
                trainer.train(TrainingSpec(store, settings, "fc2", 0), client)
            )
        )
        work.start()
        wait_until(lambda: read(link)["n_rounds"] > 5, "the first rounds")
        before, during = read(link), look(link, tmp_path)
        work.join()
        history = fitted[0].history
        wait_until(lambda: read(link)["n_rounds"] == len(history), "the last round")
        after, at_the_end = read(link), look(link, tmp_path)
    assert before["rounds"]["loss"][:5] == [r.loss for r in history[:5]]  # from the beginning
    assert before["n_rounds"] < len(history)
    assert drawn(during, "each") != drawn(at_the_end, "each")
    last = history[-1]
    assert last.update_ratio > 0
    for name, value in (
        ("update / weight", math.log10(last.update_ratio)),
        ("each", last.loss),
        ("train", last.train_accuracy),
        ("validation", last.validation_accuracy),
        ("spread", last.spread),
        ("steps", last.step_s),
        ("averaging", last.average_s),
        ("waiting", last.wait_s),
    ):
        assert drawn(at_the_end, name) == pytest.approx(value, rel=1e-12)
    for name in ("loss", "validation_accuracy", "update_ratio"):
        kept = {r.round: getattr(r, name) for r in history}
        rows = zip(after["rounds"]["round"], after["rounds"][name], strict=True)
        assert all(v is None or v == kept[int(k)] for k, v in rows)
    assert after["shard_loss"] == list(last.shard_loss)
    assert at_the_end.count("<span>shard ") == len(last.shard_loss)
    assert at_the_end.count("<span>task ") == len(after["steps"])
    assert [step["group"] for step in after["steps"]] == [*range(len(after["steps"]))]
    # Tasks of the first rounds may end before the scheduler hears that a training begins.
    assert 0.8 * len(history) < after["steps"][0]["n"] <= len(history)
    assert after["workers"][0]["memory"] > 1 << 20
    [stage] = [s for s in after["stages"] if s["name"] == "training"]
    assert stage["done"] == stage["total"] == len(history)
    assert "<title>dtl: live</title>" in at_the_end  # nothing of a path was run
    assert "&lt;img src=x" in at_the_end


@pytest.fixture
def start_scheduler(tmp_path: Path) -> Iterator[Any]:
    """Start a scheduler of its own with a worker, as `dask scheduler` does."""
    jobs: list[subprocess.Popen[bytes]] = []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def start(before: str = "pass") -> str:
        place = tmp_path / "scheduler.json"
        local = ["--host", "127.0.0.1", "--no-dashboard"]
        words = ["scheduler", "--port", "0", "--scheduler-file", str(place), *local]
        code = f"import sys; {before}; from dask.__main__ import main; main()"
        with (tmp_path / "log").open("ab") as log:

            def run(*command: str) -> None:
                jobs.append(subprocess.Popen(
                    command, cwd=tmp_path, env=environment, stdout=log, stderr=log
                ))  # fmt: skip

            run(sys.executable, "-c", code, *words)
            wait_until(place.exists, "the scheduler")
            address: str = json.loads(place.read_text())["address"]
            run(sys.executable, "-m", "dask", "worker", address, "--no-nanny", *local)
        return address

    yield start
    for job in jobs:
        job.terminate()
        job.wait(30)


@pytest.mark.slow
def test_a_foreign_scheduler_has_the_page_of_the_last_run(start_scheduler: Any) -> None:
    address = start_scheduler()
    for stage in ("first", "second"):
        with connection.connect(ClusterConfig(address)) as client:
            link = live.find_page(client)
            live.tell("stage", name=stage, unit="things", done=1, total=2)
    found = read(link)
    assert [s["name"] for s in found["stages"]] == ["second"]
    assert found["ended"] >= found["began"]
    with urllib.request.urlopen(link, timeout=30) as page:
        assert b"dtl, live" in page.read()
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]


@pytest.mark.slow
def test_a_scheduler_without_dtl_is_told(
    start_scheduler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dtl")
    address = start_scheduler("sys.modules['dtl'] = None")
    with connection.connect(ClusterConfig(address)) as client:
        live.tell("stage", name="work", unit="things", done=1, total=2)
        assert client.submit(sum, [1, 2]).result() == 3
    assert "There is no live page, for the scheduler cannot have it (" in caplog.text
    assert "live page: http" not in caplog.text


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
def test_a_browser_sees_photographs_become_features(tmp_path: Path) -> None:
    draw(tmp_path / "pictures", COLOURS, 24)
    broken = [f"red/<b>{n}.jpg" for n in (1, 2, 3)]
    for name in broken:
        (tmp_path / "pictures" / name).write_bytes(b"\xff\xd8\xff\xe0 broken")
    c = config.build({
        "images": {"url": str(tmp_path / "pictures"), "max_skipped": 0.5},
        "features": {"layers": ["block1_pool"], "weights": "random", "precision": "float32",
                     "chunk_images": 4, "batch_images": 4},
        "cluster": {"processes": False, "n_workers": 1, "threads_per_worker": 1},
    })  # fmt: skip
    listed, spec = listing.list_images(c.images, 0), ExtractionSpec(c.features, c.images)
    made: list[FeatureStore] = []
    with connection.connect(c.cluster) as client:
        link = live.find_page(client)
        work = threading.Thread(
            target=lambda: made.append(
                featurization.featurize(str(tmp_path / "f.zarr"), listed, spec, client)
            )
        )
        work.start()
        wait_until(lambda: sum(read(link)["cells"]) >= 1, "the first chunk", 240)
        during = read(link)
        work.join()
        [store] = made
        wait_until(lambda: sum(read(link)["cells"]) == store.n_chunks, "the last chunk")
        after, dom = read(link), look(link, tmp_path)
    assert sum(during["cells"]) < len(during["cells"]) == store.n_chunks == 19
    assert dom.count('<i class="done">') == 19
    assert "19 chunks, 100 % done" in dom
    skipped = store.list_skipped()
    assert sorted(path for path, _ in skipped) == broken
    assert sorted(map(tuple, after["skipped"])) == sorted(skipped)
    assert after["n_skipped"] == 3
    for path, reason in skipped:
        assert path.replace("<", "&lt;").replace(">", "&gt;") in dom
        assert reason.split("(")[0] in dom
    [stage] = [s for s in after["stages"] if s["name"] == "features"]
    assert stage["done"] == stage["total"] == len(listed)


def test_a_task_waits_for_the_slowest_and_then_for_the_average() -> None:
    state = State()
    for round_, group, began, ended in (
        ("1", 0, 0.0, 1.0), ("1", 1, 0.0, 3.0),
        ("2", 1, 3.5, 5.5), ("2", 0, 3.6, 4.6),
        ("3", 0, 6.5, 7.5),
    ):  # fmt: skip
        state.add_step(round_, group, f"worker {group}", began, ended)
    fast, slow = state.to_dict()["steps"]
    assert (fast["worker"], fast["n"], slow["n"]) == ("worker 0", 3, 2)
    assert fast["step"] == pytest.approx(1.0)
    assert fast["wait"] == pytest.approx((2.0 + 0.9) / 2)  # from 1.0 to 3.0, from 4.6 to 5.5
    assert fast["average"] == pytest.approx((0.6 + 1.0) / 2)
    assert slow["step"] == pytest.approx(2.5)
    assert slow["wait"] == 0
    assert slow["average"] == pytest.approx(0.5)


def test_of_steps_only_the_last_rounds_are_kept() -> None:
    state = State()
    for round_ in range(1000):
        state.add_step(str(round_), 0, "worker", float(round_), round_ + 0.5)
    assert len(state._ends) < 10
    [step] = state.to_dict()["steps"]
    assert step["n"] == 1000
    assert (step["step"], step["wait"], step["average"]) == pytest.approx((0.5, 0.0, 0.5))
