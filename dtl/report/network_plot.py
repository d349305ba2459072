"""A network as a picture: one SVG file that needs nothing else.

Layers are boxes. `dtl.report.layered_layout` says where each lies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dtl.features.values import Description, Layer, add_up
from dtl.report.layered_layout import BOX, MARGIN, Node, lay_out
from dtl.report.page import fill

_LEAST_WIDTH = 860
_GLYPH = (20, 40)
"""The symbol of the largest output: as wide as channels, as high as positions."""


@dataclass(kw_only=True)
class Box(Node):
    """A layer, with those after it that only change its values: normalisation, activation.

    `state` is "frozen", "unused" or "trained"; `said` is what a cut gives; `shown` is what is
    written and drawn into it.
    """

    layers: list[Layer]
    state: str
    said: str = ""
    shown: Mapping[str, object] = field(default_factory=dict)


def render_network(
    found: Description,
    title: str,
    facts: Sequence[str],
    cuts: Mapping[str, str],
    head: Sequence[Layer],
    head_layer: str,
) -> str:
    """Return a network as an SVG picture.

    Parameters
    ----------
    found : Description
    title, facts : str, sequence of str
        Shown above it.
    cuts : mapping of layer to str
        What is said of the features that each gives.
    head : sequence of Layer
        What is trained, one after the other, on the features of `head_layer`.
    """
    boxes = _make_boxes(found, cuts, head, head_layer)
    laid = lay_out(boxes)
    most = max((add_up(layer.flop for layer in box.layers) or 0 for box in boxes), default=0)
    largest = [max(n) for n in zip(*(_measure(box) for box in boxes), strict=True)]
    for box in boxes:
        box.shown = _show(box, most, largest)
    return fill(
        "network.svg", {}, boxes=boxes, width=max(laid.size[0], _LEAST_WIDTH),
        height=laid.size[1], box=BOX, margin=MARGIN, lines=laid.lines, arrows=laid.arrows,
        title=_shorten(title, 70),
        facts=[_shorten(fact, 130) for fact in facts],
    )  # fmt: skip


# --- boxes ---------------------------------------------------------------------------------------


def _make_boxes(
    found: Description, cuts: Mapping[str, str], head: Sequence[Layer], head_layer: str
) -> list[Box]:
    """Put each layer into a box: one of its own, or that of the layer whose values it changes."""
    layers = found.layers
    n_takers = [0] * len(layers)
    for layer in layers:
        for k in layer.inputs:
            n_takers[k] += 1
    boxes: list[Box] = []
    box_of: list[int] = []
    for layer in layers:
        state = "frozen" if layer.name in found.used else "unused"
        inputs = [*dict.fromkeys(box_of[k] for k in layer.inputs)]
        before = layers[layer.inputs[0]] if len(layer.inputs) == 1 else None
        if (
            before
            and n_takers[layer.inputs[0]] == 1
            and layer.flop == 0
            and layer.output_shape == before.output_shape
            and before.name not in cuts
            and boxes[inputs[0]].state == state
        ):
            box_of.append(inputs[0])
            boxes[inputs[0]].layers.append(layer)
        else:
            box_of.append(len(boxes))
            boxes.append(Box(inputs=inputs, layers=[layer], state=state))
        if layer.name in cuts:
            boxes[box_of[-1]].said = cuts[layer.name]
            if layer.name == head_layer:
                after = box_of[-1]
                for trained in head:
                    boxes.append(Box(inputs=[after], leads=True, layers=[trained], state="trained"))
                    after = len(boxes) - 1
    return boxes


def _show(box: Box, most_flop: int, largest: Sequence[int]) -> dict[str, object]:
    """Return what is written and drawn into a box."""
    first, last = box.layers[0], box.layers[-1]
    flop = add_up(layer.flop for layer in box.layers)
    n_parameters = sum(layer.n_parameters for layer in box.layers)
    figures = [" \N{MULTIPLICATION SIGN} ".join(str(n or "?") for n in last.output_shape)]
    figures += [f"{format_count(n_parameters)} weights"] if n_parameters else []
    if box.state == "trained" and None in last.output_shape:
        figures = ["one unit for each class"]
    elif flop != 0:
        figures.append(f"{'? G' if flop is None else format_count(flop)}FLOP")
    high, wide = (
        4 + (side - 4) * math.log1p(n) / math.log1p(top)
        for n, top, side in zip(_measure(box), largest, reversed(_GLYPH), strict=True)
    )
    return {
        "name": _shorten((last if box.said else first).name, 38),
        "kinds": _shorten(" \N{MIDDLE DOT} ".join(layer.kind for layer in box.layers), 44),
        "figures": " \N{MIDDLE DOT} ".join(figures),
        "glyph": [round(n, 1) for n in (wide, high)],
        "bar": round(BOX[0] * (flop or 0) / most_flop, 1) if most_flop else 0,
        "layers": [
            f"{layer.name} ({layer.kind}): {' x '.join(map(str, layer.output_shape))}"
            for layer in box.layers
        ],
    }


def _measure(box: Box) -> tuple[int, int]:
    """Return positions along a side, and channels, of a box's output."""
    *positions, channels = [n or 1 for n in box.layers[-1].output_shape] or [1]
    return round(math.prod(positions) ** 0.5), channels


def format_count(n: int) -> str:
    """Format a count in three digits or so.

    Examples
    --------
    >>> [format_count(n) for n in (64, 9472, 102_764_544)]
    ['64', '9.47 k', '103 M']
    """
    for factor, prefix in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if n >= factor:
            return f"{n / factor:.3g}{prefix}"
    return str(n)


def _shorten(text: str, most: int) -> str:
    """Leave out the middle of a long text: networks' names differ at their ends."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}\N{HORIZONTAL ELLIPSIS}{text[-half:]}"
