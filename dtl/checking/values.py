"""Values of a check: issues of images, findings on classes, and the figures that matter."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from dtl.config.plain import from_plain
from dtl.evaluation.metrics import find_interval

LABEL, LEAK, PERHAPS, DUPLICATE = "label", "leak", "perhaps", "duplicate"
"""Kinds of issues; the others are those of odd images."""


ALL, CLEAN = "all", "without suspected label errors"
APART, BOTH = "without near-twins in training", "without both"
"""Images that an `Accuracy` is of."""


class Issue(NamedTuple):
    """One fault of an image, a row of issues.parquet.

    Parameters
    ----------
    kind : str
        ``label``: probably a wrong label. ``leak``: it has a near-twin on another side of the
        split. ``perhaps``: it has one that is a bit less alike; most show something else.
        ``duplicate``: a near-twin on the same side. Others: what is odd about it.
    score : float
        Higher is surer, within a kind: 1 less the probability of a label, similarity of twins.
    partner : str
        Path of the twin; empty for others.
    given, suggested : str
        Its class, and the likelier one; empty for none.
    reason : str
        Why, in words, where the kind does not say it.
    """

    path: str
    kind: str
    score: float
    partner: str = ""
    given: str = ""
    suggested: str = ""
    reason: str = ""


_TEXTS = ("path", "kind", "partner", "given", "suggested", "reason")


def issues_to_bytes(issues: Sequence[Issue]) -> bytes:
    """Return the bytes of issues.parquet, in which what is empty is null."""
    import pyarrow as pa  # not for those who only read the figures
    import pyarrow.parquet as pq

    kinds = {name: pa.string() if name in _TEXTS else pa.float64() for name in Issue._fields}
    rows = [{k: v for k, v in issue._asdict().items() if v != ""} for issue in issues]
    table = pa.Table.from_pylist(rows, schema=pa.schema(kinds))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, write_page_checksum=True)
    return buffer.getvalue()


def issues_from_bytes(data: bytes) -> list[Issue]:
    """Read what `issues_to_bytes` wrote."""
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
    if tuple(table.schema.names) != Issue._fields:
        raise ValueError(f"its columns are {table.schema.names}, not {Issue._fields}")
    columns = (table[name].to_pylist() for name in Issue._fields)
    rows = zip(*columns, strict=True)
    return [Issue._make("" if value is None else value for value in row) for row in rows]


@dataclass(frozen=True)
class Overlap:
    """Two classes of which images have each other's label.

    Parameters
    ----------
    n_expected : float
        Images, by the joint of labels and true classes, that are of one and have the other's label.
    share : float
        Of the images of the smaller class.
    """

    one: str
    other: str
    n_expected: float
    share: float


@dataclass(frozen=True)
class SmallClass:
    """A class with few images; it is not judged where all of them are in one fold."""

    name: str
    n_images: int
    judged: bool


@dataclass(frozen=True)
class DoubleClass:
    """A class whose images look like those of two.

    Parameters
    ----------
    parts : (int, int)
        Images of each part.
    between : float
        Share of the links of the smaller part, between nearest neighbours, that lead to the other.
    one, other : tuple of str
        Paths of some images of each.
    """

    name: str
    parts: tuple[int, int]
    between: float
    one: tuple[str, ...]
    other: tuple[str, ...]


@dataclass(frozen=True)
class Accuracy:
    """The accuracy on some images of a split.

    Parameters
    ----------
    of : str
        Which images, in words: ``all``, or without which.
    """

    of: str
    n_images: int
    n_right: int

    def __post_init__(self) -> None:
        if not 0 <= self.n_right <= self.n_images:
            raise ValueError(f"{self.n_right} of {self.n_images} images are right")

    @property
    def value(self) -> float:
        """The share that is right; NaN of no images."""
        return self.n_right / self.n_images if self.n_images else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval (Wilson); it needs an image."""
        return find_interval(self.n_right, self.n_images)


@dataclass(frozen=True)
class Neighbour:
    """An image that is near another in the features."""

    path: str
    label: str
    cosine: float


@dataclass(frozen=True)
class Check:
    """The figures of a check, as check.json holds them.

    Parameters
    ----------
    n_images, n_labelled, n_judged : int
        Images with features; those of them with a label; those of these whose class has others in
        another fold.
    n_issues : dict of kind to int
    n_wrong : float
        Labels that are expected to be wrong, by the joint of labels and true classes.
    held_out : tuple of Accuracy
        Of the held-out heads, on all judged images and without suspects.
    overlaps, small, double : tuple
        Findings on classes, the worst first.
    twins : str
        Which images count as near-twins, and why.
    n_unread : int
        Pairs of images that could not be compared, for one of them could not be read.
    neighbours : dict of path to tuple of Neighbour
        The nearest images of the first suspects.
    relabel : str
        Name of the table of labels to correct.
    accuracies : dict of split name to tuple of Accuracy
        Of the head with `head_sha256`; empty without one.
    provenance : dict
        Its fingerprint.
    """

    n_images: int
    n_labelled: int
    n_judged: int
    n_issues: Mapping[str, int]
    n_wrong: float
    held_out: tuple[Accuracy, ...]
    overlaps: tuple[Overlap, ...]
    small: tuple[SmallClass, ...]
    double: tuple[DoubleClass, ...] = ()
    twins: str = ""
    n_unread: int = 0
    neighbours: Mapping[str, tuple[Neighbour, ...]] = field(default_factory=dict)
    relabel: str = ""
    head_sha256: str = ""
    accuracies: Mapping[str, tuple[Accuracy, ...]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Return the text of check.json."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Check:
        """Read what `to_json` wrote; anything else is a `ValueError`."""
        value: Check = from_plain(cls, json.loads(data))
        return value


def count_kinds(issues: Iterable[Issue]) -> dict[str, int]:
    """Count the images with each kind of issue, in the order of their first one."""
    paths: dict[str, set[str]] = {}
    for issue in issues:
        paths.setdefault(issue.kind, set()).add(issue.path)
    return {kind: len(found) for kind, found in paths.items()}
