from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from dtl.evaluation import parts
from dtl.evaluation.parts import Part, Version

Stored = dict[int, list[Version]]

versions = st.lists(
    st.builds(Version, st.sampled_from("abcdefghijklmnop"), st.integers(1, 2), st.just(5)),
    unique_by=lambda image: image.path,
)


@dataclasses.dataclass
class Dataset:
    """Files as lists of rows, to which a plan is done as the driver and workers do it."""

    stored: Stored = dataclasses.field(default_factory=dict)

    def update(
        self, listed: Sequence[Version], first: int, size: int, killed: st.DataObject | None = None
    ) -> None:
        planned = parts.plan(self.stored, listed, first, size)
        shorter = [p for p in planned if len(p.kept) < len(self.stored.get(p.number, ()))]
        longer = [p for p in planned if p.new]
        if killed is not None:
            shorter, n = killed.draw(st.permutations(shorter)), len(shorter)
            shorter = shorter[: killed.draw(st.integers(0, n))]
            longer = killed.draw(st.permutations(longer)) if len(shorter) == n else []
            longer = longer[: killed.draw(st.integers(0, len(longer)))]
        for part in shorter:
            self.write(part, part.kept)
        for part in longer:
            self.write(part, part.kept + part.new)

    def write(self, part: Part, rows: list[Version]) -> None:
        self.stored[part.number] = rows
        if not rows:
            del self.stored[part.number]
        paths = [image.path for rows in self.stored.values() for image in rows]
        assert len(paths) == len(set(paths)), "a reader finds an image twice"


@settings(max_examples=50)
@given(st.lists(versions, min_size=1, max_size=4), st.integers(1, 4), st.data())
def test_killed_updates_go_on_to_what_undisturbed_ones_give(
    lists: list[list[Version]], size: int, data: st.DataObject
) -> None:
    undisturbed, killed = Dataset(), Dataset()
    for listed in lists:
        first = max(undisturbed.stored, default=0)
        assert first == max(killed.stored, default=0)
        undisturbed.update(listed, first, size)
        for _ in range(data.draw(st.integers(0, 2))):
            killed.update(listed, first, size, data)
        killed.update(listed, first, size)
        assert killed.stored == undisturbed.stored
        rows = [image for part in undisturbed.stored.values() for image in part]
        assert sorted(rows) == sorted(listed)
        n_rows = [len(part) for part in undisturbed.stored.values()]
        assert max(n_rows, default=0) <= size
        assert not any(part.new for part in parts.plan(undisturbed.stored, listed, first, size))


@settings(max_examples=50)
@given(versions, versions, versions, st.integers(1, 4), st.data())
def test_a_list_that_changes_after_a_kill_gets_its_rows(
    before: list[Version], then: list[Version], now: list[Version], size: int, data: st.DataObject
) -> None:
    dataset = Dataset()
    dataset.update(before, 0, size)
    dataset.update(then, max(dataset.stored, default=0), size, data)
    dataset.update(now, max(dataset.stored, default=0), size)
    assert sorted(image for part in dataset.stored.values() for image in part) == sorted(now)


@given(versions, versions)
def test_changes_are_counted(before: list[Version], now: list[Version]) -> None:
    old, new = ({i.path: i.size_bytes for i in images} for images in (before, now))
    changes = parts.compare(before, now)
    assert changes.new == sum(path not in old for path in new)
    assert changes.removed == sum(path not in new for path in old)
    assert changes.changed == sum(old.get(path, n) != n for path, n in new.items())
    assert changes.new + changes.changed + changes.as_before == len(now)


def test_changes_in_words() -> None:
    assert str(parts.Changes(1204, 3, 17, 30607)) == (
        "1,204 new, 3 changed, 17 removed, 30,607 as before"
    )
    assert str(parts.Changes(0, 0, 0, 30607)) == "nothing new, 30,607 as before"


def test_a_hash_of_a_list_has_all_of_it() -> None:
    a, b = Version("a", 1, 5), Version("b", 2, 5)
    lists = ([a, b], [b, a], [a], [a, b._replace(modified=6)], [a, b._replace(size_bytes=3)])
    assert len(set(map(parts.hash_versions, lists))) == len(lists)
