"""Memory that threads share: never more than the total, large ones not for ever behind small."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from distributed import Client, LocalCluster

from dtl.cluster import memory
from dtl.cluster.memory import Budget, fit_to_worker, has_memory


def test_no_more_than_the_total_is_held() -> None:
    budget, held, most = Budget(100), [0], [0]
    lock = threading.Lock()

    def work(n_bytes: int) -> None:
        with budget.hold(n_bytes):
            with lock:
                held[0] += n_bytes
                most[0] = max(most[0], held[0])
            time.sleep(0.001)
            with lock:
                held[0] -= n_bytes

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [30, 60, 10, 100, 45] * 20))
    assert most[0] <= 100


def test_who_needs_more_than_the_total_is_alone() -> None:
    budget, others = Budget(100), []

    def small() -> None:
        with budget.hold(1):
            others.append("small")

    with budget.hold(10**12):
        thread = threading.Thread(target=small)
        thread.start()
        thread.join(0.2)
        assert not others
    thread.join(10)
    assert others == ["small"]


def test_small_ones_do_not_overtake_a_large_one() -> None:
    budget, order = Budget(100), []
    inside, release = threading.Event(), threading.Event()

    def hold(name: str, n_bytes: int) -> None:
        with budget.hold(n_bytes):
            order.append(name)
            inside.set()
            release.wait(10)

    threads = [threading.Thread(target=hold, args=("first", 60))]
    threads[0].start()
    inside.wait(10)
    for name, n_bytes in (("large", 90), ("small", 1)):
        threads.append(threading.Thread(target=hold, args=(name, n_bytes)))
        threads[-1].start()
        time.sleep(0.2)  # or nothing says which of the two came first
    assert order == ["first"]
    release.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "large", "small"]


def test_an_error_gives_the_memory_back() -> None:
    budget = Budget(100)
    for _ in range(3):
        with pytest.raises(RuntimeError), budget.hold(80):
            raise RuntimeError
    with budget.hold_all():
        pass


def test_a_budget_that_is_resized_while_it_is_held() -> None:
    budget = Budget(100)
    with budget.hold(80):
        budget.resize(50)
    with budget.hold(50):
        budget.resize(200)
        with budget.hold(150):
            pass
    with budget.hold_all():
        pass


def test_memory_that_there_is_not() -> None:
    assert has_memory(0)
    assert has_memory(1 << 20)
    assert not has_memory(1 << 60)


def test_a_worker_decodes_in_a_quarter_of_its_memory() -> None:
    def totals() -> tuple[int, int]:
        fit_to_worker()
        return memory.DECODING._total, memory.READING._total

    here = totals()  # there is no worker in this process
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit="2 GiB", dashboard_address=":0"
        ) as local,
        Client(local) as client,
    ):
        assert client.submit(totals).result() == (1 << 29, 1 << 28)
    assert totals() == here
