"""Fingerprints: what differs, and what a command does about it."""

from __future__ import annotations

import pytest

from dtl.config.errors import DifferentSettingsError, UserError
from dtl.config.provenance import Claim, check_same, claim, differences


def test_differences() -> None:
    wanted = {"layer": "fc2", "seed": 0, "new": 1, "split": {"test": 0.2, "method": "auto"}}
    stored = {"layer": "fc1", "seed": 0, "old": 2, "split": {"test": 0.3, "method": "auto"}}
    assert differences(wanted, stored) == [
        "layer: asked for 'fc2', stored 'fc1'",
        "new: asked for 1, stored None",
        "old: asked for None, stored 2",
        "split.test: asked for 0.2, stored 0.3",
    ]
    assert differences(stored, stored) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_same_result_is_never_replaced(overwrite: bool) -> None:
    same = {"train": {"l2": 0.1}}
    assert claim(same, None, "out", overwrite=overwrite) is Claim.ABSENT
    assert claim(same, dict(same), "out", overwrite=overwrite) is Claim.BEGUN
    assert claim(same, dict(same), "out", finished=True, overwrite=overwrite) is Claim.FINISHED


@pytest.mark.parametrize("finished", [False, True])
def test_another_result_is_refused_or_replaced(finished: bool) -> None:
    wanted, stored = {"train": {"l2": 0.1}}, {"train": {"l2": 0.2}}
    with pytest.raises(DifferentSettingsError, match=r"^out was made .*settings:\n  train\.l2: as"):
        claim(wanted, stored, "out", finished=finished)
    assert claim(wanted, stored, "out", finished=finished, overwrite=True) is Claim.REPLACE


def test_a_person_can_mend_it() -> None:
    with pytest.raises(UserError, match=r"^The seed is another:\n  seed: asked for 0, stored 1$"):
        check_same({"seed": 0}, {"seed": 1}, "The seed is another")
