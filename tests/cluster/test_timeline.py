"""Who did what when: what is merged, that it stays small, and what is counted of it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtl.cluster.timeline import figures
from dtl.cluster.timeline.merging import add_peak, add_span, merge_peaks, merge_spans
from dtl.cluster.timeline.record import KINDS, MOST_PEAKS, MOST_SPANS, MOST_WORKERS, Record
from dtl.cluster.timeline.values import Life, Stage, Timeline, Worker
from dtl.config.plain import from_plain

TICKS = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 30)), min_size=1, max_size=60)
"""Begin and length of tasks."""


def read(record: Record, at: float) -> Life:
    """Return a record as a life that has gone through JSON's types."""
    found = record.to_dict(at)
    life: Life = from_plain(
        Life, {"began": 0.0, "seconds": at, "end": "", "stages": [], **found}, "life"
    )
    return life


# --- merging -------------------------------------------------------------------------------------


@given(TICKS, st.booleans())
def test_spans_are_the_union_of_tasks(tasks: list[tuple[int, int]], in_order: bool) -> None:
    """Whatever the order in which tasks come; counted tick by tick."""
    if in_order:
        tasks = sorted(tasks, key=sum)
    spans: list[tuple[float, float, float, int]] = []
    for begin, length in tasks:
        add_span(spans, begin, begin + length)
    ticks = {tick for begin, length in tasks for tick in range(begin, begin + length)}
    assert {tick for b, e, _, _ in spans for tick in range(int(b), int(e))} == ticks
    assert sum(busy for *_, busy, _ in spans) == pytest.approx(len(ticks))
    assert all(busy == pytest.approx(e - b) for b, e, busy, _ in spans)
    assert sum(n for *_, n in spans) == len(tasks)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(spans))


@given(TICKS, st.integers(0, 40), st.integers(0, 40))
def test_spans_with_gaps_cover_the_tasks(
    tasks: list[tuple[int, int]], gap: int, later_gap: int
) -> None:
    spans: list[tuple[float, float, float, int]] = []
    for begin, length in tasks:
        add_span(spans, begin, begin + length, gap)
    merged = merge_spans(spans, gap + later_gap)
    for found, between in ((spans, gap), (merged, gap + later_gap)):
        assert all(other[0] - one[1] > between for one, other in itertools.pairwise(found))
        for begin, length in tasks:
            assert any(b <= begin and begin + length <= e for b, e, _, _ in found)
        assert all(0 <= busy <= e - b + 1e-9 for b, e, busy, _ in found)
        assert sum(n for *_, n in found) == len(tasks)
    assert sum(s[2] for s in merged) == pytest.approx(sum(s[2] for s in spans))


@given(st.lists(st.integers(0, 1 << 40), min_size=1), st.sampled_from([2.0, 4.0, 64.0]))
def test_peaks_are_the_highest_of_their_intervals(samples: list[int], width: float) -> None:
    peaks: list[tuple[float, int]] = []
    for at, n_bytes in enumerate(samples):
        add_peak(peaks, at, n_bytes, 1.0)
    assert peaks == [(float(at), n) for at, n in enumerate(samples)]
    merged = merge_peaks(peaks, width)
    for at, n_bytes in merged:
        assert n_bytes == max(samples[int(at) : int(at + width)])
    assert len(merged) == -(-len(samples) // int(width))


# --- the record ----------------------------------------------------------------------------------


def test_days_of_a_thousand_workers_stay_small() -> None:
    """Three days; every worker changes its kind of task each hour, and has gaps of any length."""
    record, rng, now = Record(0.0), random.Random(0), 0.0
    addresses = [f"tls://10.0.{k // 250}.{k % 250}:40001" for k in range(1000)]
    for address in addresses:
        record.add_worker(address, address, limit=8 << 30, at=0.0)
    busy = dict.fromkeys(addresses, 0.0)
    n_tasks, n_looks, highest = 90_000, 400, dict.fromkeys(addresses, 0)
    for number in range(n_tasks):
        now = 3 * 86_400 * number / n_tasks
        address = rng.choice(addresses)
        length = rng.expovariate(1 / 20)
        task = rng.choice(("fill_chunk", "local-steps", "average", "score"))
        record.add_task(address, task, now, now + length)
        busy[address] += length
        if number % (n_tasks // n_looks) == 0:
            sizes = {a: rng.randrange(1 << 33) for a in addresses}
            record.add_memory(sizes, now)
            highest = {a: max(highest[a], n) for a, n in sizes.items()}
    life = read(record, now)
    spans = [s for w in life.workers for of_kind in w.busy.values() for s in of_kind]
    assert len(spans) <= MOST_SPANS
    assert sum(s[3] for s in spans) == n_tasks
    assert sum(s[2] for s in spans) == pytest.approx(sum(busy.values()), rel=0.02)
    assert sum(len(w.memory) for w in life.workers) <= MOST_PEAKS
    assert {w.address: max(n for _, n in w.memory) for w in life.workers} == highest
    whole = Timeline((life,))
    assert len(whole.to_json()) < 1_300_000
    # Commands follow each other on the same folder.
    for _ in range(3):
        whole = whole.thin()
        assert len(whole.to_json()) < 1_300_000
        whole = replace(whole, lives=(*whole.lives, life))
        assert len(whole.to_json()) < 2_600_000
    assert whole.n_forgotten + len(whole.lives) == 4


def test_no_end_of_workers_and_kinds_stays_small() -> None:
    record = Record(0.0)
    names = ("fill_chunk", "load-shards", "gradient", "average", "score", "compare", "load_network")
    for number in range(MOST_WORKERS + 500):
        address, now = f"tcp://host-{number}:1", float(number)
        record.add_worker(address, address, limit=0, at=now)
        for task in (*names, "nobody-knows"):
            for k in range(3):
                record.add_task(address, task, now + 2 * k, now + 2 * k + 1)
        record.add_memory({address: number}, now)
        record.remove_worker(address, "lost", ["fill_chunk"], now + 6)
    life = read(record, 10_000.0)
    assert len(life.workers) == MOST_WORKERS
    assert life.n_workers == life.n_lost == MOST_WORKERS + 500
    assert sum(len(s) for w in life.workers for s in w.busy.values()) <= MOST_SPANS
    assert {*life.workers[7].busy} == {*KINDS}
    whole = Timeline((life,) * 3).thin()
    assert (len(whole.lives), whole.n_forgotten) == (1, 2)
    short = Timeline((Life(0.0, 1.0, "", ()),) * 70, n_forgotten=5).thin()
    assert (len(short.lives), short.n_forgotten) == (50, 25)


def test_a_place_that_another_worker_takes() -> None:
    record = Record(10.0)
    record.add_worker("tcp://a:1", "a", limit=9, at=10.0)
    record.add_task("tcp://a:1", "fill_chunk", 11.0, 12.0)
    record.remove_worker("tcp://a:1", "left", [], 13.0)
    record.add_task("tcp://a:1", "fill_chunk", 11.0, 14.0)  # it is gone
    record.add_worker("tcp://a:1", "a", limit=9, at=15.0)
    record.add_task("tcp://a:1", "score", 15.0, 16.0)
    record.add_task("tcp://b:1", "score", 15.0, 16.0)  # nobody knows it
    first, second = read(record, 20.0).workers
    assert (first.begin, first.end, first.fate) == (0.0, 3.0, "left")
    assert (second.begin, second.end, second.fate) == (5.0, 10.0, "stayed")
    assert first.busy == {"features": ((1.0, 2.0, 1.0, 1),)}
    assert second.busy == {"scoring": ((5.0, 6.0, 1.0, 1),)}
    assert [what for _, what, _ in record.list_changes(9)] == ["joined", "gone", "joined"]
    assert record.list_changes(1) == [(15.0, "joined", "tcp://a:1")]


# --- figures -------------------------------------------------------------------------------------


@st.composite
def lives(draw: st.DrawFn) -> Life:
    seconds = draw(st.integers(1, 100))

    def workers() -> Iterator[Worker]:
        for k in range(draw(st.integers(0, 5))):
            begin = draw(st.integers(0, seconds))
            end = draw(st.integers(begin, seconds))
            busy = {}
            for kind in draw(st.sets(st.sampled_from(KINDS))):
                a, b = sorted(draw(st.tuples(*[st.integers(begin, end)] * 2)))
                busy[kind] = ((float(a), float(b), float(b - a), 1),)
            fate = draw(st.sampled_from(["stayed", "left", "lost"]))
            again = {"features": draw(st.integers(1, 3))} if fate == "lost" else {}
            address = f"tcp://host-{k}:80"
            yield Worker(
                address, address, float(begin), float(end), fate, 9, again, busy,
                ((float(begin), draw(st.integers(0, 1 << 30))),),
            )  # fmt: skip

    made = tuple(workers())
    n_lost = sum(w.fate == "lost" for w in made)
    end = draw(st.sampled_from(["", "finished", "failed: OSError"]))
    stages = (Stage("featurize", 0.0, float(seconds)),)
    return Life(0.0, float(seconds), end, stages, (), made, len(made), n_lost)


@settings(deadline=None)
@given(st.lists(lives(), min_size=1, max_size=3))
def test_figures_are_what_is_counted_second_by_second(found: list[Life]) -> None:
    timeline, at, n_most, present = Timeline(tuple(found)), 0, 0, 0
    busy = dict.fromkeys(KINDS, 0)
    for life in found:
        for tick in range(int(life.seconds)):
            here = [w for w in life.workers if w.begin <= tick < w.end]
            present += len(here)
            n_most = max(n_most, len(here))
            for worker in here:
                for kind, spans in worker.busy.items():
                    busy[kind] += any(b <= tick < e for b, e, _, _ in spans)
        at += int(life.seconds)
    counted = figures.count(timeline)
    assert counted.seconds == at
    assert counted.n_workers == n_most
    for kind in KINDS:
        share = busy[kind] / present if present else 0.0
        assert counted.shares.get(kind, 0.0) == pytest.approx(share)
    assert len(counted.losses) == sum(w.fate == "lost" for life in found for w in life.workers)
    assert len(counted.restarts) == len(found) - 1
    assert Timeline.from_json(timeline.to_json()) == timeline


def test_a_gap_between_commands_is_no_work() -> None:
    first = Life(1000.0, 50.0, "", (Stage("featurize", 0.0, 50.0),))
    second = Life(1110.0, 30.0, "finished", (Stage("featurize", 0.0, 30.0),))
    counted = figures.count(Timeline((first, second)))
    assert counted.seconds == 80.0
    assert counted.restarts == (figures.Restart("", 50.0, 60.0),)


def test_workers_are_named_alike_after_they_were_started_again() -> None:
    def worker(address: str, name: str) -> Worker:
        return Worker(address, name, 0.0, 1.0, "stayed", 0, {}, {}, ())

    nanny = [worker(f"tls://127.0.0.1:{port}", "0") for port in (40001, 40002)]
    assert {figures.label(w, with_host=False) for w in nanny} == {"worker 0"}
    assert {figures.label(w, with_host=True) for w in nanny} == {"127.0.0.1, 0"}
    own = worker("tcp://node-7:41", "tcp://node-7:41")
    assert figures.label(own, with_host=True) == "node-7:41"
    assert figures.label(own, with_host=False) == "worker :41"
    ipv6 = worker("tcp://[::1]:41", "tcp://[::1]:41")
    assert figures.label(ipv6, with_host=True) == "[::1]:41"
    timeline = Timeline((Life(0.0, 1.0, "", (), (), (*nanny, own, ipv6)),))
    assert figures.find_hosts(timeline) == {"127.0.0.1", "node-7", "[::1]"}
