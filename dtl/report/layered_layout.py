"""Where the boxes of a graph lie: in rows by their distance from its start, side by side in lanes.

Rows are cut into columns where few edges cross, so that a deep network is a page and no ribbon.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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

_Cell = tuple[int, int]
"""Row and lane."""

_Stop = tuple[_Cell, bool]
"""A cell that an edge runs through, and whether it is a box's."""


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
    """Place boxes, and draw the edges between them: no two run along one line beside boxes."""
    ends = _assign_rows(boxes)
    tracks = _assign_lanes(boxes, ends)
    columns = _break_rows(boxes, ends)
    x, gutters = float(MARGIN), dict[int, float]()
    box_places: dict[_Cell, Point] = {}
    track_places: dict[_Cell, Point] = {}
    for rows in columns:
        wide = {box.lane for box in boxes if box.row in rows}
        passed = {lane for (_, row), lane in tracks.items() if row in rows}
        ys = {row: HEADER + k * (BOX[1] + _GAP[1]) for k, row in enumerate(rows)}
        # Lines that begin later end earlier, so those beside the first boxes nest this way.
        beside = sorted(passed - wide, reverse=True)
        for lane in [*sorted(wide & {0}), *beside, *sorted(wide - {0})]:
            if lane in passed:
                track_places |= {(row, lane): (x, y) for row, y in ys.items()}
                x += _TRACK
            if lane in wide:
                box_places |= {(row, lane): (x, y) for row, y in ys.items()}
                x += BOX[0] + _GAP[0]
        gutters |= dict.fromkeys(rows, x)
        x += _GAP[0]
    for box in boxes:
        box.place = box_places[box.row, box.lane]

    def locate(cell: _Cell, *, is_box: bool) -> Point:
        x, y = (box_places if is_box else track_places)[cell]
        return x + is_box * BOX[0] / 2, y

    lines = []
    for (cell, is_box), (next_cell, is_next_box) in _list_steps(boxes, tracks):
        x0, y0 = locate(cell, is_box=is_box)
        x1, y1 = locate(next_cell, is_box=is_next_box)
        middle = y0 + BOX[1] + _GAP[1] / 2
        points = [(x0, y0 + BOX[1] if is_box else y0)]
        if (gutter := gutters[cell[0]]) != gutters[next_cell[0]]:  # up to the next column
            above = y1 - _GAP[1] / 2
            points += [(x0, middle), (gutter, middle), (gutter, above), (x1, above)]
        elif x0 != x1:
            points += [(x0, middle), (x1, middle)]
        lines.append(_round_corners([*points, (x1, y1)]))
    heads = [locate((box.row, box.lane), is_box=True) for box in boxes if box.inputs]
    bottom = max(box.place[1] for box in boxes) + BOX[1]
    size = round(x - 2 * _GAP[0] + MARGIN), round(bottom + MARGIN)
    return Laid(size, "".join(lines), "".join(f"M{x:g} {y:g}l-5 -8h10z" for x, y in heads))


def _list_steps(
    boxes: Sequence[Node], tracks: Mapping[tuple[int, int], int]
) -> list[tuple[_Stop, _Stop]]:
    """List the steps of all edges from row to row; edges from one box share theirs."""
    steps: dict[tuple[_Stop, _Stop], None] = {}
    for box in boxes:
        for source in box.inputs:
            start = boxes[source]
            way: list[_Stop] = [((start.row, start.lane), True)]
            way += [((r, tracks[source, r]), False) for r in range(start.row + 1, box.row)]
            steps |= dict.fromkeys(pairwise([*way, ((box.row, box.lane), True)]))
    return [*steps]


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
        for end, command in ((before, "L{:g} {:g}"), (after, "Q{2:g} {3:g} {0:g} {1:g}")):
            share = min(_CORNER / (math.dist(corner, end) or 1), 0.5)
            near = (a + (b - a) * share for a, b in zip(corner, end, strict=True))
            path += command.format(*near, *corner)
    return path + "L{:g} {:g}".format(*others[-1])
