from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, Scheduler
from helpers import local_cluster, when_logged
from hypothesis import given, settings
from hypothesis import strategies as st

from dtl.cluster import spread
from dtl.cluster.spread import Session, choose_group_size, group_shards


@pytest.fixture(scope="module")
def one_thread() -> Iterator[Client]:
    with local_cluster() as local, Client(local) as client:
        yield client


def leaves(client: Client, values: list[Any]) -> list[Any]:
    return client.map(lambda v: v, values, pure=False)


def height(tree: Any) -> int:
    return 1 + max(map(height, tree)) if isinstance(tree, tuple) else 0


def widths(tree: Any) -> list[int]:
    return (
        [len(tree), *(w for part in tree for w in widths(part))] if isinstance(tree, tuple) else []
    )


def flat(tree: Any) -> list[int]:
    return [leaf for part in tree for leaf in flat(part)] if isinstance(tree, tuple) else [tree]


# --- Session.reduce ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 40), depth=st.integers(1, 5))
def test_a_tree_holds_every_part_once_in_order(threads: Client, n: int, depth: int) -> None:
    tree = Session(threads).reduce(leaves(threads, [*range(n)]), tuple, name="tree", depth=depth)
    found = tree.result()
    assert flat(found) == list(range(n))
    assert 1 <= height(found) <= depth


@pytest.mark.parametrize(("n", "depth", "widest"), [(9, 2, 4), (4, 2, 2), (64, 3, 4), (7, 1, 7)])
def test_no_task_combines_more_than_the_depth_asks(
    threads: Client, n: int, depth: int, widest: int
) -> None:
    tree = Session(threads).reduce(leaves(threads, [*range(n)]), tuple, name="wide", depth=depth)
    assert max(widths(tree.result())) == widest


@pytest.mark.parametrize("n", [1, 2, 17, 30])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_sums_have_the_same_bits_on_any_workers(
    threads: Client, one_thread: Client, n: int, depth: int
) -> None:
    rng = np.random.default_rng(n)
    values = [float(v) for v in rng.normal(size=n) * 10.0 ** rng.integers(-8, 8, n)]
    found = [
        Session(client).reduce(leaves(client, values), sum, name="sum", depth=depth).result()
        for client in (threads, one_thread)
    ]
    assert found[0].hex() == found[1].hex()
    assert found[0] == pytest.approx(sum(values), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("n", [1, 4, 5, 6, 40])
def test_many_values_share_tasks_in_the_same_tree(
    threads: Client, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    def double(i: int, plus: int) -> int:
        return 2 * i + plus

    values = [2 * i + 1 for i in range(n)]
    tree = Session(threads).reduce(leaves(threads, values), tuple, name="tree").result()
    for most_tasks in (1000, 4):
        monkeypatch.setattr(spread, "_MOST_TASKS", most_tasks)
        one = threads.submit(int, 1)
        found = Session(threads).map_reduce(double, n, one, merge=tuple, name="double")
        assert found.result() == tree


def test_a_hundred_thousand_values_are_some_hundred_tasks(threads: Client) -> None:
    n_before = threads.run_on_scheduler(count_tasks)
    found = Session(threads).map_reduce(int, 100_000, merge=sum, name="count")
    assert threads.run_on_scheduler(count_tasks) - n_before < 300
    assert found.result() == sum(range(100_000))


def count_tasks(dask_scheduler: Scheduler) -> int:
    return len(dask_scheduler.tasks)


# --- group_shards --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 20))
@pytest.mark.parametrize("n_threads", range(1, 10))
def test_groups_are_as_large_as_costs_no_time(n: int, n_threads: int) -> None:
    def rounds_of_the_busiest(size: int) -> int:
        sizes = [len(range(n)[i : i + size]) for i in range(0, n, size)]
        threads = [0] * n_threads
        for taken in sizes:  # as they become free
            threads[threads.index(min(threads))] += taken
        return max(threads)

    least = rounds_of_the_busiest(1)
    size = choose_group_size(n, n_threads)
    assert rounds_of_the_busiest(size) == least
    assert size == 4 or rounds_of_the_busiest(2 * size) > least


@pytest.mark.parametrize(("size", "ends"), [(0, [2, 4, 5]), (1, [1, 2, 3, 4, 5]), (8, [5])])
def test_groups_hold_every_part_once_in_order(threads: Client, size: int, ends: list[int]) -> None:
    groups = group_shards(threads, 5, size)
    assert [part for group in groups for part in group] == list(range(5))
    assert size == 0 or [group.stop for group in groups] == ends


@pytest.mark.parametrize("way", ["wait", "result"])
def test_where_no_task_moves_it_is_said_what_is_waited_for(
    threads: Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    way: str,
) -> None:
    monkeypatch.setattr("dtl.cluster.waits._STILL_S", 0.5)
    released, session = tmp_path / "released", Session(threads)

    def stand() -> bool:
        while not released.exists():
            time.sleep(0.01)
        return True

    stands = session.submit(stand, name="stands")
    told = r"No task was begun or finished for \d+ s\. Waiting for stands-\w+ on inproc://\S+\."
    with when_logged(told, released.touch):
        {"wait": lambda: session.wait([stands]), "result": lambda: session.result(stands)}[way]()
    assert stands.result() is True
    assert re.search(told, caplog.text)


def test_a_task_may_time_out_itself(threads: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dtl.cluster.waits._STILL_S", 0.2)

    def fail() -> None:
        time.sleep(1)
        raise TimeoutError("the task's own")

    session = Session(threads)
    with pytest.raises(TimeoutError, match="the task's own"):
        session.result(session.submit(fail, name="fails"))


def test_workers_that_are_all_gone_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dtl.cluster.waits._STILL_S", 0.5)
    with local_cluster(n_workers=0) as local, Client(local) as client:
        session = Session(client)
        with when_logged("Waiting for workers", lambda: local.scale(1)):
            assert session.result(session.submit(abs, -1, name="abs")) == 1
    assert "Waiting for workers: the scheduler has none. Start some." in caplog.text
