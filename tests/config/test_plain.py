"""Values of JSON's types as dataclasses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtl.config.plain import from_plain


@dataclass(frozen=True)
class Leaf:
    name: str
    scores: tuple[float, ...] = ()
    place: tuple[str, int] = ("here", 1)


@dataclass(frozen=True)
class Tree:
    leaves: Mapping[str, Leaf]
    is_old: bool
    table: tuple[tuple[int, int], ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)


LEAVES = st.builds(Leaf, st.text(), st.lists(st.floats(allow_nan=False)).map(tuple))
PAIRS = st.lists(st.tuples(st.integers(), st.integers())).map(tuple)


@given(st.builds(Tree, st.dictionaries(st.text(), LEAVES), st.booleans(), PAIRS))
def test_what_json_has_of_a_value_is_the_value(tree: Tree) -> None:
    assert from_plain(Tree, json.loads(json.dumps(asdict(tree)))) == tree


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"it must be an object. Received: \[\]"),
        (None, r"it must be an object. Received: None"),
        ({}, "it lacks the field is_old"),
        ({"leaves": {}, "is_old": 1}, "it.is_old must be true or false. Received: 1"),
        ({"leaves": {}, "is_old": True, "new": 0}, "it has an unknown field: new"),
        ({"leaves": [], "is_old": True}, r"it.leaves must be an object. Received: \[\]"),
        ({"leaves": {"a": {"name": 3}}, "is_old": True}, "it.leaves.a.name must be a text"),
        (
            {"leaves": {"a": {"name": "", "scores": [0, "x"]}}, "is_old": True},
            r"it.leaves.a.scores\[1\] must be a number. Received: 'x'",
        ),
        (
            {"leaves": {"a": {"name": "", "place": ["x"]}}, "is_old": True},
            r"it.leaves.a.place must have 2 values. Received: \['x'\]",
        ),
        (
            {"leaves": {}, "is_old": True, "table": [[1, 2], [1, True]]},
            r"it.table\[1\]\[1\] must be a whole number. Received: True",
        ),
        ({"leaves": {}, "is_old": True, "table": "a" * 99}, "it.table must be a list.*a…"),
    ],
)
def test_any_other_value_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_plain(Tree, value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["leaves", "is_old", "name", "table"]), inner, max_size=4)
    ),
)


@given(JSON)
def test_whatever_comes_is_a_value_or_refused(value: Any) -> None:
    try:
        found = from_plain(Tree, value)
    except ValueError:
        return
    assert isinstance(found, Tree)
