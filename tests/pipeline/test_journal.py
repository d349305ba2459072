"""What a command keeps of who did what when, against what its tasks themselves have noted."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from distributed.comm import CommClosedError
from helpers import two_worker_processes, wait_until

from dtl.cluster import live
from dtl.cluster.chunks import map_chunks
from dtl.cluster.live.feed import TOPIC
from dtl.cluster.timeline import figures
from dtl.cluster.timeline.values import Life
from dtl.pipeline import journal
from dtl.pipeline.journal import Journal
from dtl.pipeline.results import Results


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(str(tmp_path / "out"))


def _fill_chunk(chunk: int, folder: str) -> int:
    """Do nothing for a while, as a task that has this name, and note when and where."""
    import os
    import time
    import uuid
    from pathlib import Path

    note = Path(folder, uuid.uuid4().hex)
    note.write_text(f"{chunk} {os.getpid()} {time.time()}")
    time.sleep(0.4 + 0.3 * (chunk % 2))  # two workers are not between tasks at the same time
    note.write_text(f"{note.read_text()} {time.time()}")
    return chunk


def read_notes(folder: Path) -> list[list[float]]:
    """Return chunk, process, begin and end of each task; those of a killed worker have no end."""
    notes = [[float(word) for word in note.read_text().split()] for note in folder.iterdir()]
    return [note for note in notes if note]  # one may be empty for a moment


@contextmanager
def killed_at_work(folder: Path) -> Iterator[tuple[Client, list[float]]]:
    """A client of two workers, of which one is killed within a chunk; its process, and when."""
    killed: list[float] = []

    def kill() -> None:
        def find_begun() -> list[list[float]]:
            return [note for note in read_notes(folder) if len(note) == 3]

        wait_until(lambda: len(read_notes(folder)) > 6 and find_begun(), "chunks")
        pid = find_begun()[0][1]
        os.kill(int(pid), signal.SIGKILL)
        killed.extend([pid, time.time()])

    killer = threading.Thread(target=kill)
    with two_worker_processes() as client:
        killer.start()
        yield client, killed
        killer.join()


@pytest.mark.slow
def test_a_worker_that_dies_is_seen_as_its_tasks_noted_it(tmp_path: Path, results: Results) -> None:
    folder, kept = tmp_path / "notes", Journal()
    folder.mkdir()
    with (
        killed_at_work(folder) as (client, killed),
        live.follow(client),
        kept.keep(client, results),
        kept.stage("featurize"),
    ):
        chunks = sorted(map_chunks(client, _fill_chunk, range(24), folder=str(folder)))
    assert chunks == [*range(24)]
    timeline = results.timeline()
    assert timeline is not None
    [life] = timeline.lives
    assert (life.end, life.problem, life.n_lost) == ("finished", "", 1)
    assert [stage.name for stage in life.stages] == ["featurize"]
    counted, notes = figures.count(timeline), read_notes(folder)
    assert counted.n_workers == 2
    [loss] = counted.losses
    pid, killed_at = killed
    assert life.began + loss.at == pytest.approx(killed_at, abs=5)
    assert max(end for _, p, _, *ends in notes if p == pid for end in ends) < killed_at
    # It had begun these chunks, and may have been given two more that it had not begun.
    n_begun_again = len(notes) - 24
    assert 1 <= n_begun_again <= loss.again["features"] <= n_begun_again + 2
    # One thread each, so a worker's busy seconds are the sum of its tasks'.
    ended = [note for note in notes if len(note) == 4]
    spans = [span for w in life.workers for span in w.busy.get("features", ())]
    assert sum(span[3] for span in spans) == len(ended)
    spent = sum(end - begin for _, _, begin, end in ended)
    assert sum(span[2] for span in spans) == pytest.approx(spent, rel=0.1)
    present = sum(w.end - w.begin for w in life.workers)
    assert counted.shares["features"] == pytest.approx(spent / present, rel=0.1)
    assert 0 < loss.at < counted.seconds
    assert counted.most_bytes > 20 << 20
    assert max(n for _, n in life.memory) > 20 << 20


def read(results: Results) -> Life:
    """Return the last life that is kept."""
    timeline = results.timeline()
    assert timeline is not None
    return timeline.lives[-1]


def test_a_killed_command_leaves_what_it_had_written(
    threads: Client, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_WRITE_EVERY_S", (0.1, 0.1))
    monkeypatch.setattr(journal, "_LOOK_EVERY_S", 0.05)
    first = Journal()

    def work_until_it_is_written() -> None:
        with first.keep(threads, results), first.stage("featurize"):
            threads.submit(sum, [1, 2]).result()
            wait_until(
                lambda: (t := results.timeline()) and t.lives[0].seconds > 0.5, "it is written"
            )
            left.append(read(results))  # as a kill would leave it
            raise KeyboardInterrupt

    left: list[Life] = []
    with live.follow(threads):
        with pytest.raises(KeyboardInterrupt):
            work_until_it_is_written()
        assert left[0].end == ""
        assert left[0].stages[0].end == left[0].seconds > 0.5
        assert read(results).end == "interrupted"
        second = Journal()
        with second.stage("featurize"), second.keep(threads, results):
            pass
    timeline = results.timeline()
    assert timeline is not None
    assert [life.end for life in timeline.lives] == ["interrupted", "finished"]
    [restart] = figures.count(timeline).restarts
    assert restart.gap >= 0


def test_a_report_that_is_made_again_has_the_same_timeline(
    threads: Client, results: Results
) -> None:
    kept = Journal()
    with live.follow(threads), kept.keep(threads, results):
        with kept.stage("evaluate"):
            threads.submit(sum, [1, 2]).result()
        kept.save()
        before = read(results)
        threads.submit(sum, [1, 3]).result()
        time.sleep(1.2)  # the memory is looked at again
    after = read(results)
    assert (before.end, after.end) == ("", "finished")
    assert replace(before, end="finished") == after


def test_a_scheduler_without_the_plugin_leaves_the_stages(
    threads: Client, results: Results
) -> None:
    kept = Journal()
    with suppress(ValueError):  # of another test
        threads.unregister_scheduler_plugin(TOPIC)
    with kept.keep(threads, results), kept.stage("train"):
        pass
    life = read(results)
    assert [stage.name for stage in life.stages] == ["train"]
    assert life.workers == ()
    assert "the scheduler cannot record them (KeyError" in life.problem


def test_a_scheduler_that_is_lost_leaves_the_stages(
    threads: Client, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise CommClosedError("gone")

    with live.follow(threads):
        monkeypatch.setattr(live, "read_record", fail)
        kept = Journal()
        with kept.keep(threads, results), kept.stage("train"):
            pass
        assert read(results).problem == "the scheduler was not heard"
        # What it said before stays.
        monkeypatch.undo()
        kept = Journal()
        with kept.keep(threads, results), kept.stage("train"):
            kept.save()
            monkeypatch.setattr(live, "read_record", fail)
    life = read(results)
    assert (life.end, life.problem) == ("finished", "")
    assert [stage.name for stage in life.stages] == ["train"]
    assert len(life.workers) == 2


def test_another_run_on_the_same_scheduler_is_told(threads: Client, results: Results) -> None:
    kept = Journal()
    with live.follow(threads), kept.keep(threads, results), kept.stage("train"):
        live.begin_record(threads, "another's")
    assert read(results).problem == "another run has used the same scheduler"


def test_a_storage_that_fails_is_told_and_stops_nothing(
    threads: Client, results: Results, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Journal()
    Path(results.url).mkdir(parents=True)
    with live.follow(threads), kept.keep(threads, results), kept.stage("train"):
        wait_until(results.timeline, "it is written")
        place = Path(results.url, "timeline.json")
        place.unlink()
        place.mkdir()
        (place / "full").touch()
        kept.save()
        kept.save()
    said = [r for r in caplog.records if r.levelno >= logging.WARNING and r.name.startswith("dtl")]
    assert len(said) == 1
    assert "The timeline is not kept: " in said[0].getMessage()


def test_a_scheduler_that_does_not_answer_is_waited_for_shortly(
    threads: Client, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    def wait(*_: Any) -> None:
        answered.wait(60)

    monkeypatch.setattr(journal, "_PATIENCE_S", 0.2)
    kept = Journal()
    with live.follow(threads):
        began = time.monotonic()
        with kept.keep(threads, results), kept.stage("train"):
            monkeypatch.setattr(live, "read_record", wait)
        assert time.monotonic() - began < 30
        before = Path(results.url, "timeline.json").exists()
        answered.set()
        time.sleep(0.5)
        # The folder is another's by now.
        assert Path(results.url, "timeline.json").exists() == before
