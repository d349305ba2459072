"""Pictures of the report: of confused classes, of a map of the features, of covered parts."""

from __future__ import annotations

from collections import Counter

import numpy as np

from dtl import config
from dtl.evaluation.values import Evaluation
from dtl.features.store import FeatureStore
from dtl.head import blas
from dtl.head.model import Head
from dtl.images.values import NO_SPLIT, SPLITS, TRAIN
from dtl.neighbours import projection
from dtl.pipeline.pictures import choose_rows, read_pictures
from dtl.pipeline.results import Results
from dtl.report.illustrations import ConfusedPair, FeatureMap, Illustrations

_MOST_PAIRS = 4
_N_OF_A_CLASS = 4
_MOST_POINTS = 600
"""Points of the map: their pictures make the page 1 MB larger."""
_MOST_BYTES = 128 << 20
"""Of their features, which the driver holds for a moment."""
_PICTURE_SIDE = 160
_THUMBNAIL_SIDE = 48


def illustrate(
    results: Results, settings: config.Config, store: FeatureStore, head: Head, scores: Evaluation
) -> Illustrations:
    """Choose what is shown of a run, and read the pictures of it."""
    split = next(s for s in reversed(SPLITS) if s in scores.scores)
    confused = find_confused(store, scores, split)
    feature_map = map_features(store, head, split)
    occlusion = results.occlusion(head)
    root = settings.images.url or str(store.attrs["root"])
    paths = {path: None for pair in confused for of_class in pair.paths for path in of_class}
    if occlusion:
        paths |= {picture.path: None for picture in occlusion.pictures}
    most = settings.images.max_pixels
    return Illustrations(
        confused=confused,
        feature_map=feature_map,
        occlusion=occlusion,
        pictures=read_pictures(root, store, paths, most, side=_PICTURE_SIDE),
        thumbnails=read_pictures(
            root,
            store,
            feature_map.paths if feature_map else (),
            most,
            page="report's map",
            side=_THUMBNAIL_SIDE,
        ),
        resize=settings.images.resize,
    )


def find_confused(store: FeatureStore, scores: Evaluation, split: str) -> list[ConfusedPair]:
    """Find the pairs of classes with most confusions, and the first training images of each."""
    n_taken: Counter[tuple[int, int]] = Counter()
    for true, predicted, n in scores.scores[split].confusion:
        if true != predicted:
            n_taken[true, predicted] += n
    both = Counter({tuple(sorted(pair)): 0 for pair in n_taken})
    for pair, n in n_taken.items():
        both[tuple(sorted(pair))] += n
    chosen = sorted(both, key=lambda pair: (-both[pair], pair))[:_MOST_PAIRS]
    label, rows, path = store.read("label"), store.read_split(), store.read("path")

    def choose(k: int) -> tuple[str, ...]:
        of_class = np.flatnonzero((label == k) & (rows != NO_SPLIT))
        # Training images first: rows are in a random order, so these are a fair sample.
        first = of_class[np.argsort(rows[of_class] != TRAIN, kind="stable")][:_N_OF_A_CLASS]
        return tuple(map(str, path[first]))

    return [
        ConfusedPair(
            (scores.class_names[one], scores.class_names[other]),
            (n_taken[one, other], n_taken[other, one]),
            (choose(one), choose(other)),
        )
        for one, other in chosen
    ]


def map_features(store: FeatureStore, head: Head, split: str) -> FeatureMap | None:
    """Project images of a split, as the head sees their features; None for fewer than three."""
    layer = head.provenance["layer"]
    of_split = np.flatnonzero(store.read_split() == SPLITS.index(split))
    most = min(_MOST_POINTS, _MOST_BYTES // (4 * store.n_features(layer)))
    rows = choose_rows(store, of_split, most)
    if len(rows) < 3:
        return None
    features = np.empty((len(rows), store.n_features(layer)), np.float32)
    predicted = np.empty(len(rows), np.int32)
    for chunk, at, within in store.by_chunk(rows):
        found = store.read(layer, chunk)[within]
        features[at] = head.scaling.apply(found)
        with blas.one_blas_thread():
            predicted[at] = head.logits(found).argmax(axis=1)
    way = projection.choose_way(len(rows))
    return FeatureMap(
        way=way,
        places=projection.project(features, way),
        label=store.read("label")[rows],
        predicted=predicted,
        paths=tuple(map(str, store.read("path")[rows])),
        n_images=len(of_split),
    )
