"""The timeline of a report: a row for each worker, and memory below it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtl.cluster.timeline import figures
from dtl.cluster.timeline.merging import Peak, Span, merge_peaks, merge_spans
from dtl.cluster.timeline.record import KINDS
from dtl.cluster.timeline.values import Timeline, Worker
from dtl.report.plots import COLORS, make_figure, models

KIND_COLORS = {
    "starting": "#c9b8a0",
    "features": COLORS["test"],
    "loading": COLORS["train"],
    "training": COLORS["validation"],
    "averaging": "#e0a93b",
    "scoring": "#8a63b0",
    "checking": "#5f7f3f",
    "other": COLORS["grey"],
}
assert KIND_COLORS.keys() == {*KINDS}

LOST = "#b3261e"
DRIVER = "driver"

MOST_ROWS = 40
_MOST_LOST = 20
"""Rows of workers that were lost; of others, half are the busiest, and half the least busy."""

_MOST_SPANS, _MOST_PEAKS = 6000, 6000
"""That are drawn: 400 KB of the page."""
_MOST_PIXELS = 1000
"""Spans nearer than this part of the time are drawn as one."""

_MOST_LABEL = 18
_ROW_HEIGHT, _AXIS_HEIGHT = 22, 70
_LETTER_WIDTH, _LEAST_LEFT = 8, 66  # pixels
_LEAST_NAMED = 0.06
"""Share of the time from which on a stage's name has room in it."""
_FURTHEST_LIMIT = 2.5
"""A limit of memory is drawn up to so many times the highest peak."""

_TIME = "00:00:00"
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"))


@dataclass(frozen=True)
class Row:
    """A worker, with the processes that were it one after the other, and when each life began."""

    label: str
    processes: tuple[tuple[float, Worker], ...]

    @property
    def is_lost(self) -> bool:
        """Whether one of them was lost."""
        return any(worker.fate == "lost" for _, worker in self.processes)

    @property
    def busy(self) -> float:
        """Seconds of all kinds together, as a share of those in which it was there."""
        present = sum(worker.end - worker.begin for _, worker in self.processes)
        seconds = sum(
            span[2]
            for _, worker in self.processes
            for spans in worker.busy.values()
            for span in spans
        )
        return seconds / present if present else 0.0


@dataclass(frozen=True)
class Shown:
    """What a page shows of a timeline, besides its figures."""

    rows: tuple[Row, ...]
    n_left_out: int
    kinds: tuple[str, ...]
    unit: str
    limit: float
    """Of memory, where all workers have the same; 0 if they do not."""
    is_limit_drawn: bool


def choose_rows(timeline: Timeline) -> tuple[tuple[Row, ...], int]:
    """Choose the workers that are drawn, in the order of their names, and count the others.

    Of more than 40, first those that were lost, then the busiest and the least busy.
    """
    with_host = len(figures.find_hosts(timeline)) > 1
    found: dict[str, list[tuple[float, Worker]]] = {}
    n_workers = 0
    for before, life in figures.list_lives(timeline):
        n_workers += life.n_workers - len(life.workers)
        for worker in life.workers:
            name = figures.label(worker, with_host=with_host)
            found.setdefault(name, []).append((before, worker))
    rows = [Row(name, tuple(processes)) for name, processes in found.items()]
    n_workers += len(rows)
    if len(rows) > MOST_ROWS:
        lost = [row for row in rows if row.is_lost][:_MOST_LOST]
        taken = {row.label for row in lost}
        others = sorted((r for r in rows if r.label not in taken), key=lambda r: (-r.busy, r.label))
        n_busiest = (MOST_ROWS - len(lost)) // 2
        n_least = MOST_ROWS - len(lost) - n_busiest
        rows = lost + others[:n_busiest] + others[-n_least:]
    return tuple(sorted(rows, key=lambda row: _natural(row.label))), n_workers - len(rows)


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Return what sorts names with numbers: worker 9 before worker 10."""
    parts = re.findall(r"[0-9]{1,18}|[^0-9]+", name)
    return [(not p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in parts]


def draw(timeline: Timeline) -> tuple[dict[str, Any], Shown]:
    """Draw who did what when, and memory; say what is shown."""
    rows, n_left_out = choose_rows(timeline)
    seconds = max(sum(life.seconds for life in timeline.lives), 1e-3)
    longest = max(min(len(row.label), _MOST_LABEL) for row in (Row(DRIVER, ()), *rows))
    left = max(_LETTER_WIDTH * longest + 15, _LEAST_LEFT)
    work, kinds = _draw_work(timeline, rows, seconds, left)
    memory, unit, limit, is_drawn = _draw_memory(timeline, rows, seconds, left)
    shown = Shown(rows, n_left_out, kinds, unit, limit, is_drawn)
    return {"timeline": work, "memory": memory}, shown


def _draw_work(
    timeline: Timeline, rows: Sequence[Row], seconds: float, left: int
) -> tuple[Any, tuple[str, ...]]:
    height = _AXIS_HEIGHT + _ROW_HEIGHT * (len(rows) + 1)
    plot = _make_timed_figure("", seconds, left, height=height, y_range=(len(rows) + 0.6, -0.6))
    _name_rows(plot.yaxis[0], [DRIVER, *(row.label for row in rows)])
    plot.ygrid.visible = False
    there = [(y, b + w.begin, b + w.end) for y, r in enumerate(rows, 1) for b, w in r.processes]
    if there:
        y, begin, end = map(list, zip(*there, strict=True))
        plot.hbar(y=y, left=begin, right=end, height=0.8, color="#edf0f3", line_color=None)
    _draw_stages(plot, timeline, seconds)
    spans = _collect_spans(rows, seconds)
    kinds = tuple(kind for kind in KINDS if spans.get(kind))
    for kind in kinds:
        _draw_spans(plot, rows, kind, spans[kind])
    lost = [
        {
            "y": y,
            "lost_after": before + worker.end,
            "who": row.label,
            "tasks_again": sum(worker.again.values()),
        }
        for y, row in enumerate(rows, 1)
        for before, worker in row.processes
        if worker.fate == "lost"
    ]
    if lost:
        source = models.ColumnDataSource({name: [at[name] for at in lost] for name in lost[0]})
        look = {"size": 13, "line_width": 3.5, "color": LOST, "marker": "x"}
        crosses = plot.scatter("lost_after", "y", source=source, **look)
        _add_timed_hover(plot, crosses, "who", "lost_after", "tasks_again")
    for before, _ in [*figures.list_lives(timeline)][1:]:
        look = {"line_color": LOST, "line_dash": "dashed", "line_width": 1.5}
        plot.add_layout(models.Span(location=before, dimension="height", **look))
    return plot, kinds


def _draw_stages(plot: Any, timeline: Timeline, seconds: float) -> None:
    stages = [
        (before + stage.begin, before + stage.end, stage.name)
        for before, life in figures.list_lives(timeline)
        for stage in life.stages
    ]
    if not stages:
        return
    begin, end, name = map(list, zip(*stages, strict=True))
    columns = {"begin": begin, "end": end, "stage": name, "y": [0] * len(stages)}
    columns["seconds"] = [e - b for b, e, _ in stages]
    source = models.ColumnDataSource(columns)
    look = {"fill_color": "#d8e2ee", "line_color": "white", "line_width": 1}
    boxes = plot.hbar(y="y", left="begin", right="end", height=0.8, source=source, **look)
    _add_timed_hover(plot, boxes, "stage", "begin", "end", "seconds")
    wide = [s for s in stages if s[1] - s[0] >= _LEAST_NAMED * seconds]
    if wide:
        plot.text(
            x=[(b + e) / 2 for b, e, _ in wide], y=[0] * len(wide), text=[s[2] for s in wide],
            text_font_size="11px", text_align="center", text_baseline="middle",
            text_color="#1c2733",
        )  # fmt: skip


def _collect_spans(rows: Sequence[Row], seconds: float) -> dict[str, list[tuple[int, Span]]]:
    """Return spans by kind with the row of each, merged until they are few enough to draw."""
    gap = seconds / _MOST_PIXELS
    while True:
        found: dict[str, list[tuple[int, Span]]] = {}
        for y, row in enumerate(rows, 1):
            of_kind: dict[str, list[Span]] = {}
            for before, worker in row.processes:
                for kind, spans in worker.busy.items():
                    moved = [(before + b, before + e, busy, n) for b, e, busy, n in spans]
                    of_kind.setdefault(kind, []).extend(merge_spans(moved, gap))
            for kind, merged in of_kind.items():
                found.setdefault(kind, []).extend((y, span) for span in merged)
        if sum(map(len, found.values())) <= _MOST_SPANS or gap > seconds:
            return found
        gap *= 2


def _draw_spans(
    plot: Any, rows: Sequence[Row], kind: str, spans: Sequence[tuple[int, Span]]
) -> None:
    begin, end, busy, tasks = np.array([span for _, span in spans]).T
    columns: dict[str, Any] = {"y": np.array([y for y, _ in spans]), "begin": begin, "end": end}
    columns |= {"busy_s": busy, "tasks": tasks.astype(np.int32)}
    columns["who"] = [rows[y - 1].label for y, _ in spans]
    columns["what"] = [kind] * len(spans)
    # Paler where it was busy for a part of the time only.
    length = np.maximum(end - begin, 1e-9)
    columns["alpha"] = 0.3 + 0.7 * np.clip(busy / length, 0, 1)
    look = {"fill_color": KIND_COLORS[kind], "fill_alpha": "alpha", "line_color": None}
    bars = plot.hbar(
        y="y", left="begin", right="end", height=0.8,
        source=models.ColumnDataSource(columns), **look,
    )  # fmt: skip
    _add_timed_hover(plot, bars, "who", "what", "begin", "end", "busy_s", "tasks")


def _draw_memory(
    timeline: Timeline, rows: Sequence[Row], seconds: float, left: int
) -> tuple[Any, str, float, bool]:
    """Draw memory; return its unit, the workers' limit in it, and whether that is drawn."""
    lines: list[tuple[str, list[Peak]]] = [
        (row.label, [(before + at, n) for at, n in worker.memory])
        for row in rows
        for before, worker in row.processes
    ]
    lines += [
        (DRIVER, [(before + at, n) for at, n in life.memory])
        for before, life in figures.list_lives(timeline)
    ]
    width = 1.0
    while sum(len(peaks) for _, peaks in lines) > _MOST_PEAKS and width < seconds:
        width *= 2
        lines = [(name, merge_peaks(peaks, width)) for name, peaks in lines]
    highest = max((n for _, peaks in lines for _, n in peaks), default=0)
    size, unit = next((u for u in _UNITS if highest >= u[0]), _UNITS[-1])
    plot = _make_timed_figure(unit, seconds, left, height=250)
    for name, peaks in lines:
        if not peaks:
            continue
        at, n_bytes = np.array(peaks, float).T
        columns = {"at": at, "memory": n_bytes / size, "who": [name] * len(at)}
        source, is_driver = models.ColumnDataSource(columns), name == DRIVER
        color, line_width = (COLORS["wrong"], 2) if is_driver else (COLORS["test"], 1.2)
        look = {"line_color": color, "line_width": line_width, "line_alpha": 0.8}
        line = plot.line("at", "memory", source=source, **look)
        _add_timed_hover(plot, line, "who", "at", "memory")
    limits = {worker.limit for row in rows for _, worker in row.processes}
    limit = limits.pop() / size if len(limits) == 1 else 0.0
    is_drawn = 0 < limit <= _FURTHEST_LIMIT * highest / size
    plot.y_range = models.Range1d(0, max(1.08 * max(highest / size, limit * is_drawn), 1e-3))
    if is_drawn:
        look = {"line_color": COLORS["grey"], "line_dash": "dashed", "line_width": 2}
        plot.add_layout(models.Span(location=limit, dimension="width", **look))
    return plot, unit, limit, is_drawn


def _make_timed_figure(y_label: str, seconds: float, left: int, **options: Any) -> Any:
    """Make a plot over time; what is left of it has one width, so that plots are in line."""
    plot = make_figure(y_label, None, x_range=(0, seconds), **options)
    plot.update(min_border_left=left, min_border_right=26)
    axis = plot.xaxis[0]
    axis.formatter = models.NumeralTickFormatter(format=_TIME)
    axis.ticker = models.AdaptiveTicker(
        base=60, mantissas=[1, 2, 5, 10, 15, 20, 30], min_interval=1, num_minor_ticks=0,
        desired_num_ticks=5,
    )  # fmt: skip
    axis.major_label_policy = models.NoOverlap(min_distance=8)
    return plot


def _add_timed_hover(plot: Any, renderer: Any, *names: str) -> None:
    """Add a hover tool that shows seconds since the beginning as hours, minutes and seconds."""
    formats = dict.fromkeys(("begin", "end", "at", "lost_after"), f"{{{_TIME}}}")
    formats |= dict.fromkeys(("seconds", "busy_s", "memory"), "{0,0.0}")
    tooltips = [(name.replace("_s", "").replace("_", " "), f"@{name}{formats.get(name, '')}")
                for name in names]  # fmt: skip
    plot.add_tools(models.HoverTool(tooltips=tooltips, renderers=[renderer], mode="mouse"))


def _name_rows(axis: Any, names: Sequence[str]) -> None:
    axis.ticker = list(range(len(names)))
    # Plain text: Bokeh would take a name in $$ for TeX and fetch MathJax from the internet.
    axis.major_label_overrides = {
        k: models.PlainText(
            text=name if len(name) <= _MOST_LABEL else f"…{name[1 - _MOST_LABEL :]}"
        )
        for k, name in enumerate(names)
    }
    axis.update(major_label_text_font_size="11px", major_tick_line_color=None)


def count_again(again: dict[str, int]) -> str:
    """Say how many tasks of which kinds were computed again.

    Examples
    --------
    >>> count_again({"features": 2, "training": 1})
    '2 chunks of features and 1 task of training'
    >>> count_again({})
    'nothing'
    """
    parts = [
        f"{n:,} {'chunk' if kind == 'features' else 'task'}{'s' if n != 1 else ''} of {kind}"
        for kind, n in sorted(again.items(), key=lambda entry: KINDS.index(entry[0]))
    ]
    *first, last = parts or ["nothing"]
    return f"{', '.join(first)} and {last}" if first else last


def add_up(losses: Sequence[figures.Loss]) -> dict[str, int]:
    """Add up the tasks that several losses cost."""
    total: Counter[str] = Counter()
    for loss in losses:
        total.update(loss.again)
    return dict(total)


def format_clock(seconds: float) -> str:
    """Format a time since the beginning, as the axis does.

    Examples
    --------
    >>> format_clock(41.2), format_clock(7265)
    ('0:00:41', '2:01:05')
    """
    minutes, rest = divmod(math.floor(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
