"""Spans of busy time, and peaks of memory, that are merged so that they stay few."""

from __future__ import annotations

import math

Span = tuple[float, float, float, int]
"""Begin and end, the seconds between in which it was busy, and its number of tasks."""

Peak = tuple[float, int]
"""Begin of an interval of a fixed width, and the most bytes in it."""


def add_span(spans: list[Span], begin: float, end: float, gap: float = 0.0) -> None:
    """Add the time of a task to spans that are in order, and more than `gap` apart.

    Times that overlap count once. They do so exactly as long as no spans with a gap between them
    were merged; then what a task overlaps of a span is taken to be as busy as the whole of it.

    Examples
    --------
    >>> spans = [(0.0, 2.0, 2.0, 1)]
    >>> add_span(spans, 1.5, 3.0)
    >>> add_span(spans, 8.0, 9.0, gap=5.0)
    >>> spans
    [(0.0, 9.0, 4.0, 3)]
    """
    first = last = len(spans)
    # Tasks come nearly in the order in which they end, so these are few steps.
    while first and spans[first - 1][1] + gap >= begin:
        first -= 1
    while last > first and spans[last - 1][0] > end + gap:
        last -= 1
    new_begin, new_end, busy, n = begin, end, end - begin, 1
    for b, e, known, count in spans[first:last]:
        outside = max(min(e, begin) - b, 0.0) + max(e - max(b, end), 0.0)
        busy += known * outside / (e - b) if e > b else 0.0
        new_begin, new_end, n = min(new_begin, b), max(new_end, e), n + count
    spans[first:last] = [(new_begin, new_end, busy, n)]


def merge_spans(spans: list[Span], gap: float) -> list[Span]:
    """Merge spans that are at most `gap` apart; what was busy, and the tasks, are added up."""
    merged: list[Span] = []
    for begin, end, busy, n in spans:
        if merged and begin - merged[-1][1] <= gap:
            b, e, known, count = merged.pop()
            begin, end, busy, n = b, max(e, end), known + busy, count + n
        merged.append((begin, end, busy, n))
    return merged


def add_peak(peaks: list[Peak], at: float, n_bytes: int, width: float) -> None:
    """Add a sample to peaks of intervals of a width."""
    start = math.floor(at / width) * width
    if peaks and peaks[-1][0] >= start:
        peaks[-1] = (peaks[-1][0], max(peaks[-1][1], n_bytes))
    else:
        peaks.append((start, n_bytes))


def merge_peaks(peaks: list[Peak], width: float) -> list[Peak]:
    """Return the peaks of wider intervals.

    Examples
    --------
    >>> merge_peaks([(0.0, 5), (1.0, 9), (2.0, 3)], width=2.0)
    [(0.0, 9), (2.0, 3)]
    """
    merged: list[Peak] = []
    for at, n_bytes in peaks:
        add_peak(merged, at, n_bytes, width)
    return merged
