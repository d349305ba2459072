"""Input of the report, gathered from the results of a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dtl import config, storage
from dtl.evaluation.values import Evaluation, Mistake
from dtl.features.store import FeatureStore
from dtl.head.model import Head
from dtl.images import split
from dtl.images.decoding import formats
from dtl.images.values import SPLITS, UNLABELLED
from dtl.pipeline.results import Results
from dtl.pipeline.stages import list_warnings
from dtl.report.page import ReportInput
from dtl.storage import Extent
from dtl.training.values import Tuning

log = logging.getLogger(__name__)

_PICTURE_SIDE = 256  # pixels of the longer side of a mistake's picture
_SHOWN_ELSEWHERE = {
    "class_names", "left_out", "n_left_out", "left_out_counts", "empty_folders", "dtl", "format",
    "shards", "quantization", "generations", "earlier",
}  # fmt: skip


def gather_report(
    results: Results, settings: config.Config, store: FeatureStore, head: Head, scores: Evaluation
) -> ReportInput:
    """Gather what the report shows, with the pictures of the mistakes."""
    usable = store.read_labelled()
    label, rows = store.read("label"), store.read_split()
    n_classes = len(store.class_names)
    n_duplicates, n_conflicting = split.count_duplicates(
        store.read("content_hash")[usable], label[usable]
    )
    root = settings.images.url or str(store.attrs["root"])
    made_by = {k: v for k, v in store.attrs.items() if k not in _SHOWN_ELSEWHERE}
    files = {"head.npz": f"SHA-256 {scores.provenance['head_sha256']}"}
    return ReportInput(
        title=storage.base_name(config.hide(root)),
        config=config.hide_options(config.to_dict(settings)),
        provenance=config.hide_options(
            {"features": made_by, "head": dict(head.provenance), "files": files}
        ),
        class_names=store.class_names,
        class_counts={
            name: np.bincount(label[rows == k], minlength=n_classes)
            for k, name in enumerate(SPLITS)
        },
        history=results.history(),
        evaluation=scores,
        pictures=read_pictures(root, store, scores.mistakes, settings.images.max_pixels),
        skipped=store.list_skipped(),
        left_out=[(path, reason) for path, reason in store.attrs["left_out"]],
        left_out_counts=store.attrs.get("left_out_counts", {}),
        n_duplicates=n_duplicates,
        n_conflicting=n_conflicting,
        timings=results.timings(),
        warnings=list_warnings(store),
        n_lists=len(store.generations),
        n_removed=store.n_images - store.n_present,
        n_unlabelled=int((label == UNLABELLED).sum()),
        quantization=store.attrs.get("quantization", {}),
        tuning=select_tuning(results.tuning(), head.provenance),
    )


def select_tuning(found: Tuning | None, made_from: Mapping[str, Any]) -> Tuning | None:
    """Return a search if it has the features and the split of a head, else None."""
    names = ("features", "weights_sha256", "split", "layer")
    if found is None or any(found.provenance[name] != made_from[name] for name in names):
        return None
    return found


def read_pictures(
    url: str, store: FeatureStore, mistakes: Sequence[Mistake], max_pixels: int
) -> dict[str, bytes]:
    """Read the images of mistakes, from `url` on, as small JPEGs by path; warn if some are gone."""
    tar_names = store.attrs.get("shards", [])
    if tar_names == [storage.base_name(url)]:  # it is the tar itself
        url = url.rstrip("/").removesuffix(f"/{tar_names[0]}")
    root = find_root(url, str(store.attrs["root"]))
    files: dict[str, str | Extent] = {m.path: storage.join(root, m.path) for m in mistakes}
    if tar_names:
        rows = [row for row, path in enumerate(store.read("path")) if path in files]
        for chunk in {row // store.chunk_images for row in rows}:
            located = zip(store.read("path", chunk), store.files(root, chunk), strict=True)
            files |= {str(path): place for path, place in located if path in files}
    pictures: dict[str, bytes] = {}
    problems: list[str] = []
    for path, file in files.items():
        try:
            data = storage.read_file(file)
            pictures[path] = formats.thumbnail(data, _PICTURE_SIDE, max_pixels=max_pixels)
        except (OSError, ValueError) as error:  # they may have moved, or changed, since
            problems.append(f"{path}: {error}")
    if problems:
        log.warning(
            "The report lacks the pictures of %d of %d mistakes, such as %s",
            len(problems), len(files), problems[0],
        )  # fmt: skip
    return pictures


def find_root(given: str, listed: str) -> str:
    """Return where the paths begin: the photographs may have moved since they were listed.

    Their listed place may be a folder in the given one, and lacks its password.

    Examples
    --------
    >>> find_root("/photos", "/photos/archive"), find_root("/moved", "/photos")
    ('/photos/archive', '/moved')
    >>> find_root("ftp://me:pw@host/a", "ftp://me:***@host/a/b")
    'ftp://me:pw@host/a/b'
    """
    given = given.rstrip("/")
    hidden = config.hide(given)
    return given + listed[len(hidden) :] if f"{listed}/".startswith(f"{hidden}/") else given
