"""How many flipped labels of the real photographs `check` finds, and how fast: `make bench`.

`DTL_BENCH_RUN` may name a finished run on the photographs, whose features are taken then.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from helpers import local_cluster
from numpy.typing import NDArray

from dtl.checking import inspection
from dtl.checking.listing import Rows
from dtl.checking.values import Issue
from dtl.config import CheckConfig
from dtl.features.columns import COMPUTED_COLUMNS
from dtl.features.store import FeatureStore
from dtl.images.values import ImageList

LAYER = "block5_pool"
SEEDS = range(int(os.environ.get("DTL_BENCH_SEEDS", "5")))
SHARE = 0.05


@pytest.fixture(scope="module")
def store(real_results: Path) -> FeatureStore:
    return FeatureStore.open(str(real_results / "features.zarr"))


def relabel(store: FeatureStore, url: str, label: NDArray[np.int32]) -> FeatureStore:
    """A copy of a store with other labels."""
    images = store.images()
    listed = ImageList(
        root=images.root, path=images.path, label=label, given_split=images.given_split,
        size_bytes=images.size_bytes, class_names=images.class_names, modified=images.modified,
    )  # fmt: skip
    made = FeatureStore.create(
        url, listed, {LAYER: store.n_features(LAYER)}, dtype="float32",
        chunk_images=store.chunk_images,
        attrs={k: v for k, v in store.attrs.items() if k not in ("dtl", "format", "class_names")},
    )  # fmt: skip
    for chunk in range(store.n_chunks):
        columns = (store.read(name, chunk) for name in COMPUTED_COLUMNS)
        made.write_chunk(chunk, {LAYER: store.read(LAYER, chunk)}, *columns)
    return made


def flip(label: NDArray[np.int32], n_classes: int, seed: int) -> NDArray[np.int32]:
    """Give a share of the rows another class, any one."""
    rng = np.random.default_rng(seed)
    n = round(SHARE * len(label))
    rows = rng.choice(len(label), n, replace=False)
    flipped = label.copy()
    flipped[rows] = (label[rows] + rng.integers(1, n_classes, n)) % n_classes
    return flipped


def find(store: FeatureStore, seed: int, client: Client) -> tuple[list[Issue], float]:
    """The suspects, and the seconds that they take; without twins, which are no part of this."""
    started = time.monotonic()
    _, group = np.unique(store.read("content_hash"), return_inverse=True)
    found = inspection.check_labels(
        store, LAYER, Rows.read(store), group, CheckConfig(), seed, client
    )
    return [*found.issues], time.monotonic() - started


@pytest.mark.timeout(3600)
def test_flipped_labels_are_found(store: FeatureStore, tmp_path: Path) -> None:
    """Recall and precision of the flags on 5 % of flipped labels, over seeds.

    Some photographs have a wrong label of their own, and a flag on one of these counts as false
    here. What precision is without the flags that the check raises before any label is flipped is
    printed beside it.
    """
    label, path = store.read("label"), store.read("path").tolist()
    with local_cluster(n_workers=2) as local, Client(local) as client:
        before = {issue.path for issue in find(store, 0, client)[0]}
        print(f"\n{len(before)} flags before any label is flipped")
        for seed in SEEDS:
            flipped = flip(label, len(store.class_names), seed)
            wrong = {path[row] for row in np.flatnonzero(flipped != label)}
            other = relabel(store, str(tmp_path / f"{seed}.zarr"), flipped)
            issues, seconds = find(other, seed, client)
            flags = {issue.path for issue in issues}
            true_class = dict(zip(path, (store.class_names[k] for k in label), strict=True))
            right = sum(i.suggested == true_class[i.path] for i in issues if i.path in wrong)
            recall = len(flags & wrong) / len(wrong)
            precision = len(flags & wrong) / len(flags)
            known = flags - (before - wrong)
            print(
                f"seed {seed}: {len(flags)} flags, recall {recall:.3f}, precision {precision:.3f} "
                f"({len(known & wrong) / len(known):.3f} without those that were flags before), "
                f"{right} of {len(flags & wrong)} with the right class, {seconds:.1f} s",
                flush=True,
            )
            assert min(recall, precision) >= 0.8
