"""Where the boxes of a graph lie: in rows by their distance from its start, side by side in lanes.

Rows are cut into columns where few edges cross, so that a deep network is a page and no ribbon.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

BOX = (344, 58)
"""Width and height of a box, in pixels."""

MARGIN = 32
"""Around all, in pixels."""
HEADER = 160
"""Above the first row, in pixels."""

_GAP = (30, 30)
"""Beside and below a box."""
_TRACK = 14
"""Between lines beside boxes."""
_CORNER = 7
_ASPECT = 1.5

Point = tuple[float, float]

_Stop = tuple[int, int, bool]
"""Row and lane that an edge runs through, and whether that is a box."""


@dataclass(kw_only=True)
class Node:
    """A box, which takes those of the numbers `inputs`, all lower than its own.

    `leads` puts it left of others of its row. `row` counts from the start, `lane` from the left;
    `place` is its upper left corner, in pixels.
    """

    inputs: list[int]
    leads: bool = False
    row: int = 0
    lane: int = 0
    place: Point = (0, 0)


class Laid(NamedTuple):
    """The width and height of a picture, in pixels, and the paths of its edges and arrow heads."""

    size: tuple[int, int]
    lines: str
    arrows: str


def lay_out(boxes: Sequence[Node]) -> Laid:
    """Place boxes."""
    ends = _assign_rows(boxes)
    tracks = _assign_lanes(boxes, ends)
    columns = _break_rows(boxes, ends)
    x, places, rights = float(MARGIN), {}, []
    for rows in columns:
        wide = {box.lane for box in boxes if box.row in rows}
        n_lanes = 1 + max(
            [*wide, *(lane for (_, row), lane in tracks.items() if row in rows)], default=0
        )
        # Lines that begin later end earlier, so those beside the first boxes nest this way.
        narrow = [lane for lane in reversed(range(1, n_lanes)) if lane not in wide]
        for lane in [0, *narrow, *sorted(wide - {0})]:
            for row in rows:
                y = HEADER + (row - rows.start) * (BOX[1] + _GAP[1])
                places[row, lane] = (x, y, lane in wide)
            x += BOX[0] + _GAP[0] if lane in wide else _TRACK
        rights.append(x)
        x += _GAP[0]
    for box in boxes:
        box.place = places[box.row, box.lane][:2]
    column_of = {row: k for k, rows in enumerate(columns) for row in rows}

    def line(row: int, lane: int, *, is_box: bool) -> tuple[float, float]:
        """Return where edges run: through the middle of a box, or beside the boxes of a lane."""
        left, y, is_wide = places[row, lane]
        return (left + BOX[0] / 2 if is_box else left - _TRACK if is_wide else left), y

    drawn: dict[tuple[_Stop, _Stop], None] = {}
    for target in boxes:
        for source in target.inputs:
            start = boxes[source]
            way = [(start.row, start.lane, True)]
            way += [(r, tracks[source, r], False) for r in range(start.row + 1, target.row)]
            way.append((target.row, target.lane, True))
            for one, other in pairwise(way):
                drawn[one, other] = None
    lines = []
    for (row, lane, is_box), (next_row, next_lane, is_next_box) in drawn:
        x0, y0 = line(row, lane, is_box=is_box)
        x1, y1 = line(next_row, next_lane, is_box=is_next_box)
        points = [(x0, y0 + BOX[1])] if is_box else [(x0, y0), (x0, y0 + BOX[1])]
        middle = y0 + BOX[1] + _GAP[1] / 2
        if (column := column_of[row]) != column_of[next_row]:
            right, above = rights[column] - _TRACK, y1 - _GAP[1] / 2
            points += [(x0, middle), (right, middle), (right, above), (x1, above)]
        elif x0 != x1:
            points += [(x0, middle), (x1, middle)]
        lines.append(_round_corners([*points, (x1, y1)]))
    arrows = [
        "M{:g} {:g}l-5 -8h10z".format(*line(box.row, box.lane, is_box=True))
        for box in boxes
        if box.inputs
    ]
    bottom = max((box.place[1] for box in boxes), default=0) + BOX[1]
    size = round(x - 2 * _GAP[0] + MARGIN), round(bottom + MARGIN)
    return Laid(size, "".join(lines), "".join(arrows))


def _assign_rows(boxes: Sequence[Node]) -> list[int]:
    """Put each box below those it takes; return the last row that takes each."""
    ends = [0] * len(boxes)
    for box in boxes:
        box.row = 1 + max((boxes[k].row for k in box.inputs), default=-1)
        for k in box.inputs:
            ends[k] = max(ends[k], box.row)
    return ends


def _assign_lanes(boxes: Sequence[Node], ends: Sequence[int]) -> dict[tuple[int, int], int]:
    """Put boxes, and the edges that run past boxes, side by side.

    Returns the lane of each edge by the box from which it comes, and the row.
    """
    rows: list[list[int]] = [[] for _ in range(1 + max((box.row for box in boxes), default=0))]
    for k, box in enumerate(boxes):
        rows[box.row].append(k)
    tracks: dict[tuple[int, int], int] = {}
    passing: list[int] = []
    for row, here in enumerate(rows):
        taken: set[int] = set()

        def find_lane(wanted: int, taken: set[int] = taken) -> int:
            free = (lane for lane in range(len(taken) + 1 + wanted) if lane not in taken)
            lane = min(free, key=lambda lane: (abs(lane - wanted), -lane))
            taken.add(lane)
            return lane

        def above(k: int, row: int = row) -> int:
            return tracks.get((k, row - 1), boxes[k].lane)

        passing = [k for k in passing if ends[k] > row]
        new = [k for k in rows[row - 1] if ends[k] > row] if row else []
        for k in passing:
            tracks[k, row] = find_lane(above(k))
        for k in sorted(here, key=lambda k: not boxes[k].leads):
            boxes[k].lane = find_lane(min(map(above, boxes[k].inputs), default=0))
        for k in new:
            tracks[k, row] = find_lane(above(k))
        passing += new
    return tracks


def _break_rows(boxes: Sequence[Node], ends: Sequence[int]) -> list[range]:
    """Cut rows into columns of about one height, as many as give the picture its shape."""
    n_rows = 1 + max((box.row for box in boxes), default=0)
    n_boxes, crossing = [0] * n_rows, [0] * n_rows
    for box, end in zip(boxes, ends, strict=True):
        n_boxes[box.row] += 1
        for row in range(box.row, end):
            crossing[row] += 1

    def cut(n_columns: int) -> list[range]:
        each = n_rows / n_columns
        starts = {0, n_rows}
        for near in (k * each for k in range(1, n_columns)):  # cut where the fewest edges cross
            rows = range(max(1, math.ceil(near - each / 5)), math.floor(near + each / 5) + 1)
            starts.add(min(rows, key=lambda row: (crossing[row - 1], abs(row - near))))
        return [range(*pair) for pair in pairwise(sorted(starts))]

    def distort(columns: Sequence[range]) -> float:
        width = (BOX[0] + _GAP[0]) * sum(max(n_boxes[row] for row in rows) for rows in columns)
        height = HEADER + (BOX[1] + _GAP[1]) * max(map(len, columns))
        return abs(math.log(width / height / _ASPECT))

    return min((cut(n) for n in range(1, 1 + math.ceil(n_rows / 4))), key=distort)


def _round_corners(points: Iterable[Point]) -> str:
    """Return a path along points, with round corners."""
    first, *others = points
    path = "M{:g} {:g}".format(*first)
    for before, corner, after in zip([first, *others], others, others[1:], strict=False):
        for a, b, command in (
            (corner, before, "L{:g} {:g}"),
            (corner, after, "Q{2:g} {3:g} {0:g} {1:g}"),
        ):
            distance = math.dist(a, b) or 1
            share = min(_CORNER, distance / 2) / distance
            path += command.format(a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, *a)
    return path + "L{:g} {:g}".format(*others[-1])
