"""Input of the report, gathered from the results of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dtl import config, storage
from dtl.checking.values import LABEL, Check, Issue
from dtl.evaluation.values import Evaluation
from dtl.features.store import FeatureStore
from dtl.head.model import Head
from dtl.images import split
from dtl.images.values import NO_SPLIT, SPLITS, UNLABELLED
from dtl.pipeline.illustrations import illustrate
from dtl.pipeline.pictures import read_pictures
from dtl.pipeline.results import Results
from dtl.pipeline.stages import list_warnings
from dtl.report import checkup
from dtl.report.checkup import CheckInput
from dtl.report.page import ReportInput
from dtl.training.values import Tuning

_PICTURE_SIDE = 256  # pixels of the longer side of a mistake's picture
_SMALL_SIDE = 128  # of a neighbour's
_MOST_SUSPECTS = 8  # of the report; all are on the check's page
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
    found = select_check(results.check(), head)
    suspects = [i for i in results.issues() if i.kind == LABEL][:_MOST_SUSPECTS] if found else []
    paths = dict.fromkeys([m.path for m in scores.mistakes] + [i.path for i in suspects])
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
        pictures=read_pictures(root, store, paths, settings.images.max_pixels, side=_PICTURE_SIDE),
        skipped=store.list_skipped(),
        left_out=[(path, reason) for path, reason in store.attrs["left_out"]],
        left_out_counts=store.attrs.get("left_out_counts", {}),
        n_duplicates=n_duplicates,
        n_conflicting=n_conflicting,
        timings=results.timings(),
        timeline=results.timeline(),
        warnings=list_warnings(store),
        n_lists=len(store.generations),
        n_removed=store.n_images - store.n_present,
        n_unlabelled=int((label == UNLABELLED).sum()),
        quantization=store.attrs.get("quantization", {}),
        tuning=select_tuning(results.tuning(), head.provenance),
        check=found,
        suspects=suspects,
        illustrations=illustrate(results, settings, store, head, scores),
    )


def gather_check(
    settings: config.Config, store: FeatureStore, found: Check, issues: Sequence[Issue]
) -> CheckInput:
    """Gather what the page of a check shows, with pictures of the first issues of each kind."""
    root = settings.images.url or str(store.attrs["root"])
    shown = checkup.select_issues(issues)
    paths = checkup.list_pictures(shown, found)
    small = {path for path, is_large in paths.items() if not is_large}
    pictures: dict[str, bytes] = {}
    for chosen, side in ((paths.keys() - small, _PICTURE_SIDE), (small, _SMALL_SIDE)):
        pictures |= read_pictures(
            root, store, sorted(chosen), settings.images.max_pixels, page="check", side=side
        )
    rows = zip(store.read("path").tolist(), store.read_split().tolist(), strict=True)
    split_of = {path: SPLITS[k] for path, k in rows if path in paths and k != NO_SPLIT}
    return CheckInput(
        title=storage.base_name(config.hide(root)),
        check=found,
        issues=shown,
        pictures=pictures,
        split_of=split_of,
        warnings=list_warnings(store),
    )


def select_check(found: Check | None, head: Head) -> Check | None:
    """Return a check if it has the features and the split of a head, else None."""
    names = ("features", "weights_sha256", "split")
    if found is None or any(found.provenance[name] != head.provenance[name] for name in names):
        return None
    return found


def select_tuning(found: Tuning | None, made_from: Mapping[str, Any]) -> Tuning | None:
    """Return a search if it has the features and the split of a head, else None."""
    names = ("features", "weights_sha256", "split", "layer")
    if found is None or any(found.provenance[name] != made_from[name] for name in names):
        return None
    return found
