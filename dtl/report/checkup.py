"""The page of a check: what is probably wrong with the images, in pictures."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dtl.checking.values import DUPLICATE, LABEL, LEAK, PERHAPS, Check, Issue
from dtl.report.page import fill

MOST_SHOWN: Mapping[str, int] = {LABEL: 60, LEAK: 24, PERHAPS: 12, DUPLICATE: 24}
"""Issues of each kind that are shown, as many as have neighbours; of odd images, `_MOST_ODD`."""
_MOST_ODD = 12


@dataclass(frozen=True, eq=False)
class CheckInput:
    """Everything that the page of a check shows.

    Parameters
    ----------
    title : str
        Name of the photographs.
    issues : dict of kind to list of Issue
        Of `select_issues`.
    pictures : dict of path to bytes
        Small JPEGs of what `list_pictures` lists; some may be missing.
    split_of : dict of path to str
        Name of the split of each of them that has one.
    warnings : sequence of str
        Facts that a reader must know before any number.
    """

    title: str
    check: Check
    issues: Mapping[str, Sequence[Issue]]
    pictures: Mapping[str, bytes]
    split_of: Mapping[str, str]
    warnings: Sequence[str] = ()


def select_issues(issues: Sequence[Issue]) -> dict[str, list[Issue]]:
    """Return the first issues of each kind, as many as the page shows."""
    shown: dict[str, list[Issue]] = {}
    for issue in issues:
        of_kind = shown.setdefault(issue.kind, [])
        if len(of_kind) < MOST_SHOWN.get(issue.kind, _MOST_ODD):
            of_kind.append(issue)
    return shown


def list_pictures(shown: Mapping[str, Sequence[Issue]], check: Check) -> dict[str, bool]:
    """List the paths of the pictures on the page, and whether each is a large one."""
    near = [n.path for found in check.neighbours.values() for n in found]
    small = dict.fromkeys(near + [p for d in check.double for p in d.one + d.other], False)
    large = [p for of_kind in shown.values() for i in of_kind for p in (i.path, i.partner) if p]
    return small | dict.fromkeys(large, True)


def render(found: CheckInput) -> str:
    """Return the page of a check as one HTML file; the same input gives the same text."""
    check = found.check
    kinds = {kind: n for kind, n in check.n_issues.items() if kind not in MOST_SHOWN}
    return fill(
        "check.html",
        {},
        found=found,
        check=check,
        n_labels=check.n_issues.get(LABEL, 0),
        n_leaks=check.n_issues.get(LEAK, 0),
        n_perhaps=check.n_issues.get(PERHAPS, 0),
        n_duplicates=check.n_issues.get(DUPLICATE, 0),
        odd=kinds,
        pictures={path: b64encode(jpeg).decode() for path, jpeg in found.pictures.items()},
    )
