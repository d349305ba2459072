from __future__ import annotations

import re
from itertools import combinations, pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtl.features.network import architecture
from dtl.features.values import Description, Layer
from dtl.report import layered_layout
from dtl.report.layered_layout import BOX, Node, lay_out
from dtl.report.network_plot import render_network

SVG = "{http://www.w3.org/2000/svg}"
HEAD = [Layer("softmax", "Dense", (None,), 0, None)]


def draw(found: Description, layer: str, **said: str) -> ElementTree.Element:
    cuts = {layer: "cut: 64 features"}
    return ElementTree.fromstring(render_network(found, "A network", ["fact"], cuts, HEAD, layer))


def list_boxes(picture: ElementTree.Element, state: str) -> list[str]:
    groups = picture.iter(f"{SVG}g")
    return [
        next(text.text for text in g.iter(f"{SVG}text") if text.get("class") == "name")
        for g in groups
        if g.get("class") == state and g.get("transform")
    ]


def test_vgg16_is_frozen_up_to_the_cut_and_trained_after_it() -> None:
    found = architecture.describe("VGG16", ("block5_pool",), "avg")
    picture = draw(found, "block5_pool")
    assert list_boxes(picture, "frozen") == [
        layer.name for layer in found.layers if layer.name in found.used
    ]
    assert list_boxes(picture, "unused") == ["flatten", "fc1", "fc2", "predictions"]
    assert list_boxes(picture, "trained") == ["softmax"]
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert texts.count("cut: 64 features") == 1
    assert "224 \u00d7 224 \u00d7 64 \u00b7 36.9 k weights \u00b7 3.7 GFLOP" in texts
    assert picture.get("role") == "img"


def test_layers_that_only_change_values_share_a_box() -> None:
    found = architecture.describe("ResNet50", ("avg_pool",), "avg")
    picture = draw(found, "avg_pool")
    boxes = list_boxes(picture, "frozen")
    assert "conv2_block1_1_conv" in boxes
    assert "conv2_block1_1_bn" not in boxes
    named = [title.text for title in picture.iter(f"{SVG}title")]
    shown = "\n".join(named).count(": ")
    assert shown == len(found.layers) + 1  # each layer once, and the head


def test_a_box_has_the_name_of_the_layer_that_is_cut() -> None:
    found = architecture.describe("ResNet50", ("conv4_block6_out",), "avg")
    boxes = list_boxes(draw(found, "conv4_block6_out"), "frozen")
    assert boxes[-1] == "conv4_block6_out"  # an activation, in the box of a sum
    assert "conv4_block6_add" not in boxes


def test_hostile_names_are_shown_as_they_are() -> None:
    name = '<script>alert("1")</script>&\ufffe' + "x" * 4000
    layers = (
        Layer(name, name, (4, 4, 3), 0, 0, ()),
        Layer("</svg>", "'\"", (None,), 1, None, (0,)),
    )
    found = Description((4, 4), {"</svg>": 3}, layers, frozenset({name}), 0)
    text = render_network(found, name, [name], {name: name}, HEAD, name)
    picture = ElementTree.fromstring(text)
    assert not [*picture.iter(f"{SVG}script")]
    assert len(text) < 20_000 + len(name) * 10
    assert "…" in next(picture.iter(f"{SVG}title")).text


@st.composite
def graphs(draw: st.DrawFn) -> list[list[int]]:
    n = draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    return [
        sorted({int(rng.integers(max(0, k - 6), k)) for _ in range(rng.integers(1, 4))})
        if k
        else []
        for k in range(n)
    ]


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_boxes_lie_apart_and_below_those_they_take(inputs: list[list[int]]) -> None:
    boxes = [Node(inputs=each) for each in inputs]
    laid = lay_out(boxes)
    for k, box in enumerate(boxes):
        x, y = box.place
        assert 0 <= x <= laid.size[0] - BOX[0]
        assert 0 <= y <= laid.size[1] - BOX[1]
        for other in boxes[:k]:
            assert abs(x - other.place[0]) >= BOX[0] or abs(y - other.place[1]) >= BOX[1]
        assert all(boxes[taken].row < box.row for taken in box.inputs)
    # Each box that takes another has its arrow, and each that is taken a line that begins below it.
    arrows = re.findall(r"M([\d.e+]+) ([\d.e+]+)l", laid.arrows)
    assert len(arrows) == sum(bool(each) for each in inputs)
    starts = {(float(x), float(y)) for x, y in re.findall(r"M([\d.e+]+) ([\d.e+]+)", laid.lines)}
    for taken in {k for each in inputs for k in each}:
        x, y = boxes[taken].place
        assert (x + BOX[0] / 2, y + BOX[1]) in starts


def test_lines_beside_boxes_lie_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """One skip within another, as EfficientNet has them, and a box that makes a lane wide."""
    monkeypatch.setattr(layered_layout, "_ASPECT", 0.1)  # one column
    laid = lay_out([Node(inputs=k) for k in ([], [0], [1], [2], [1, 3], [0, 4], [5], [5])])
    runs = []
    for path in laid.lines.split("M")[1:]:
        ends = [tuple(map(float, pair.split())) for pair in re.findall(r"[\d.]+ [\d.]+", path)]
        runs += [(x, y, to) for (x, y), (x1, to) in pairwise(ends) if x == x1 and to - y > 40]
    assert len({x for x, _, _ in runs}) == 2
    for (x, start, end), (x1, start1, end1) in combinations(runs, 2):
        assert x != x1 or start >= end1 or start1 >= end


@pytest.mark.parametrize(
    ("n", "said"), [(0, "0"), (999, "999"), (10**6, "1 M"), (3 * 10**9, "3 G")]
)
def test_counts(n: int, said: str) -> None:
    from dtl.report.network_plot import format_count

    assert format_count(n) == said
