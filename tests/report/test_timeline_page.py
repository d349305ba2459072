"""The timeline of a report: its sentence, its rows, and its size."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from test_page import HOSTILE, Page, make_timeline, sample

from dtl.cluster.timeline.record import MOST_PEAKS, MOST_SPANS
from dtl.cluster.timeline.values import Life, Stage, Timeline
from dtl.report import timeline
from dtl.report.page import ReportInput, render


@pytest.fixture(scope="module")
def report() -> ReportInput:
    return sample(n_classes=3, n_rounds=2, n_images=3, n_mistakes=2)


def show(report: ReportInput, found: Timeline | None) -> Page:
    return Page(render(replace(report, timeline=found)))


def test_a_report_without_a_record_has_no_timeline(report: ReportInput) -> None:
    page = show(report, None)
    assert "Timeline" not in page.text
    assert not {"timeline", "memory"} & {*page.plots}


def test_the_sentence_tells_what_happened(report: ReportInput) -> None:
    page = show(report, make_timeline(["0", "1", "2", "3"]))
    # Of each 100 s, 9 times 5 s; of the lost worker's 41 s, 4 times 5 s.
    share = (7 * 45 + 20) / (7 * 100 + 41)
    for said in (
        "4 workers, 3 min 20 s.",
        f"{100 * share:.0f}\u202f% went into features.",
        "At 0:00:41 10.0.0.0, 0 was lost; 2 chunks of features had to be computed again.",
        "The driver was killed soon after 0:01:40; the next began 30 s after that.",
        "The most memory, 1.1 GiB of 1.5 GiB, was that of 10.0.0.1, 1.",
        "Dashed: what a worker may use, 1.5 GiB.",
        "features , training .",
    ):
        assert said.replace(" ,", ",").replace(" .", ".") in page.text.replace(" ,", ",").replace(
            " .", "."
        ), said
    assert "left out" not in page.text[page.text.index("Who did what when") :][:600]


def test_one_command_by_itself_says_nothing_of_others(report: ReportInput) -> None:
    life = Life(0.0, 12.0, "finished", (Stage("train", 0.0, 12.0),), problem="nobody recorded it")
    text = show(report, Timeline((life,))).text
    assert "0 workers, 12 s." in text
    assert "What the workers did is not known: nobody recorded it." in text
    assert "killed" not in text
    ended = replace(life, end="failed: KilledWorker")
    text = show(report, Timeline((ended, life), n_forgotten=3)).text
    assert "A command ended at 0:00:12 (failed: KilledWorker); the next began 0 s later." in text
    assert "5 commands worked on it; the first 3 are not shown" in text


def test_of_many_workers_the_lost_the_busiest_and_the_least_busy_are_shown() -> None:
    found = make_timeline([str(k) for k in range(90)], n_lives=1)
    [life] = found.lives
    workers = [
        replace(
            w,
            fate="lost" if k in (7, 77) else "stayed",
            busy={"features": ((0.0, float(k + 1), float(k + 1), 1),)},
            end=100.0,
        )
        for k, w in enumerate(life.workers)
    ]
    rows, n_left_out = timeline.choose_rows(
        Timeline((replace(life, workers=tuple(workers), n_workers=95),))
    )
    assert len(rows) == 40
    assert n_left_out == 55
    names = [int(row.label.rpartition(" ")[2]) for row in rows]
    shown = [k for k in range(90) if k not in (7, 77)]
    assert names == sorted([7, 77, *shown[:19], *shown[-19:]])


def test_a_worker_that_is_started_again_keeps_its_row() -> None:
    rows, n_left_out = timeline.choose_rows(make_timeline(["0", "1"], n_lives=3))
    assert [(row.label, len(row.processes)) for row in rows] == [
        ("10.0.0.0, 0", 3), ("10.0.0.1, 1", 3),
    ]  # fmt: skip
    assert rows[0].is_lost
    assert not rows[1].is_lost
    assert n_left_out == 0


def test_names_of_workers_are_text(report: ReportInput) -> None:
    found = make_timeline(HOSTILE)
    page = show(report, found)
    plain = show(report, make_timeline([str(k) for k in range(len(HOSTILE))]))
    skeleton = ("script", "style", "b", "link", "meta", "strong")
    assert [t for t, _ in page.elements if t in skeleton] == [
        t for t, _ in plain.elements if t in skeleton
    ]
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert HOSTILE[0] in page.text  # the one that was lost
    assert json.dumps(page.plots["timeline"]).count("MathText") == 0


def test_the_largest_record_makes_half_a_megabyte_of_page(report: ReportInput) -> None:
    [life] = make_timeline([str(k) for k in range(1000)], n_lives=1).lives
    n_spans, n_peaks = MOST_SPANS // 1000, MOST_PEAKS // 1000
    workers = tuple(
        replace(
            w,
            busy={"features": tuple((6.0 * k, 6.0 * k + 3, 2.0, 7) for k in range(n_spans))},
            memory=tuple((float(k), 1 << 31) for k in range(n_peaks)),
        )
        for w in life.workers
    )
    few = len(render(report).encode())
    whole = Timeline((replace(life, workers=workers),))
    assert len(render(replace(report, timeline=whole)).encode()) - few < 500_000
    # Few workers have more each.
    [life] = make_timeline(["0", "1"], n_lives=1).lives
    workers = tuple(
        replace(
            w,
            busy={"features": tuple((k / 80, k / 80 + 0.01, 0.01, 7) for k in range(8000))},
            memory=tuple((k / 80, 1 << 31) for k in range(8000)),
        )
        for w in life.workers
    )
    whole = Timeline((replace(life, workers=workers),))
    assert len(render(replace(report, timeline=whole)).encode()) - few < 500_000
    assert render(replace(report, timeline=whole)) == render(replace(report, timeline=whole))
