"""Words for files that are left out of a list, and for folders without an image."""

from __future__ import annotations

from collections.abc import Sequence

from dtl.config.text import printable

_N_EXAMPLES = 3
_MOST_FOLDERS = 10


def describe_left_out(left_out: Sequence[tuple[str, str]]) -> str:
    """Say how many files are left out, and for each reason how many and the first ones.

    Examples
    --------
    >>> print(describe_left_out([("b", "too big"), ("c.txt", "not an image"), ("a", "too big")]))
    3 other files left out:
      2 too big: a, b
      1 not an image: c.txt
    """
    reasons = list_reasons(left_out)
    return f"{len(left_out)} other files left out{':' if reasons else ''}{reasons}"


def list_reasons(left_out: Sequence[tuple[str, str]]) -> str:
    """Return a line for each reason, after a line break, with how many files and the first ones."""
    paths: dict[str, list[str]] = {}
    for path, reason in left_out:
        paths.setdefault(reason, []).append(path)
    lines = [
        f"\n  {len(some)} {reason}: {name_some(sorted(some))}"
        for reason, some in sorted(paths.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return "".join(lines)


def name_some(paths: Sequence[str]) -> str:
    """Name the first of some paths."""
    some = ", ".join(map(printable, paths[:_N_EXAMPLES])) or "none"
    return some + ", ..." * (len(paths) > _N_EXAMPLES)


def describe_empty_folders(empty_folders: Sequence[tuple[str, str]]) -> str:
    """Say which folders are no classes because no image is in them.

    Examples
    --------
    >>> describe_empty_folders([("cat", "hidden file")])
    'Folders without an image are no classes: cat (hidden file).'
    """
    some = empty_folders[:_MOST_FOLDERS]
    shown = ", ".join(f"{printable(name)} ({reason})" for name, reason in some)
    n_more = len(empty_folders) - len(some)
    return (
        f"Folders without an image are no classes: {shown}{f' and {n_more} more' * bool(n_more)}."
    )
