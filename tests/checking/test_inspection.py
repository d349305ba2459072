from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from helpers import MakeStore, local_cluster
from helpers import write_store as write_any_store

from dtl.checking import inspection, spec
from dtl.checking.values import (
    DUPLICATE,
    LABEL,
    Check,
    Issue,
    issues_from_bytes,
    issues_to_bytes,
)
from dtl.config import CheckConfig, TrainConfig
from dtl.config.errors import UserError
from dtl.evaluation import scoring
from dtl.features.store import FeatureStore
from dtl.images.values import ImageList
from dtl.training import trainer
from dtl.training.spec import TrainingSpec

CONFIG = CheckConfig(folds=2)
N, N_CLASSES = 300, 4


def write_store(
    url: str, label: np.ndarray, features: np.ndarray, split: np.ndarray | None = None
) -> FeatureStore:
    split = np.zeros(len(label)) if split is None else split
    return write_any_store(url, label, lambda _, rows: features[rows], split, chunk_images=100)


def make_rows(n: int = N, n_classes: int = N_CLASSES) -> tuple[np.ndarray, np.ndarray]:
    """Features of classes that are far from each other, and their labels."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, n_classes, n)
    centres = rng.normal(size=(n_classes, 16)) * 4
    return (centres[label] + rng.normal(size=(n, 16))).astype(np.float32), label


def make_flipped(url: str) -> tuple[FeatureStore, np.ndarray]:
    """A store of which ten rows have a wrong label, and these rows."""
    features, label = make_rows()
    wrong = np.random.default_rng(1).choice(N, 10, replace=False)
    label[wrong] = (label[wrong] + 1) % N_CLASSES
    split = np.random.default_rng(2).choice(3, N)
    return write_store(url, label, features, split), np.sort(wrong)


def check(store: FeatureStore, client: Client) -> tuple[Check, list[Issue]]:
    return inspection.check(store, "fc2", CONFIG, 0, client, "/nowhere")


def test_flipped_labels_are_found_with_the_right_class(tmp_path: Path, threads: Client) -> None:
    store, wrong = make_flipped(str(tmp_path / "f.zarr"))
    found, issues = check(store, threads)
    path, names, label = store.read("path").tolist(), store.class_names, store.read("label")
    labels = [issue for issue in issues if issue.kind == LABEL]
    assert sorted(path.index(issue.path) for issue in labels) == wrong.tolist()
    for issue in labels:
        row = path.index(issue.path)
        assert issue.given == names[label[row]]
        assert issue.suggested == names[(label[row] - 1) % N_CLASSES]
        assert {n.label for n in found.neighbours[issue.path]} >= {issue.suggested}
    scores = [issue.score for issue in labels]
    assert scores == sorted(scores, reverse=True)
    assert found.n_issues[LABEL] == 10
    assert found.n_wrong == pytest.approx(10, abs=3)
    every, clean = found.held_out
    assert (every.n_images, clean.n_images, clean.value) == (N, N - 10, 1.0)
    assert issues_from_bytes(issues_to_bytes(issues)) == issues
    assert Check.from_json(found.to_json()) == found
    assert issues_from_bytes(issues_to_bytes([])) == []


def test_accuracy_beside_its_value_without_suspects(tmp_path: Path, threads: Client) -> None:
    store, wrong = make_flipped(str(tmp_path / "f.zarr"))
    _, issues = check(store, threads)
    head = trainer.train(TrainingSpec(store, TrainConfig(n_shards=2), "fc2", 0), threads).head
    found = inspection.measure(store, head, issues, threads)
    scores = scoring.evaluate(store, head, threads).scores
    for k, (name, accuracies) in enumerate(found.items()):
        every, clean = accuracies
        in_split = store.read("split") == k
        assert every.n_images == in_split.sum()
        assert every.value == pytest.approx(scores[name].accuracy)
        assert clean.n_images == every.n_images - in_split[wrong].sum()
    assert found["test"][0].value < found["test"][1].value == 1


def test_same_bytes_on_one_and_four_workers(tmp_path: Path) -> None:
    store, _ = make_flipped(str(tmp_path / "f.zarr"))
    made = []
    for n_workers in (1, 4):
        with local_cluster(n_workers=n_workers) as local, Client(local) as client:
            found, issues = check(store, client)
            made.append((found.to_json(), issues_to_bytes(issues)))
    assert made[0] == made[1]


BadInput = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def one_row_per_class(features: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features[:5], np.arange(5)


def one_class(features: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features, np.zeros_like(label)


@pytest.mark.parametrize("bad", [one_row_per_class, one_class])
def test_labels_that_cannot_be_judged(
    bad: BadInput, tmp_path: Path, threads: Client, caplog: pytest.LogCaptureFixture
) -> None:
    features, label = bad(*make_rows())
    store = write_store(str(tmp_path / "f.zarr"), label, features)
    with caplog.at_level(logging.WARNING):
        found, issues = check(store, threads)
    assert "fewer than two classes" in caplog.text
    assert LABEL not in {issue.kind for issue in issues}
    assert (found.n_labelled, found.held_out, found.overlaps) == (len(label), (), ())
    if bad is one_row_per_class:
        assert found.n_judged == 0
        assert [small.judged for small in found.small] == [False] * 5


def test_two_classes_of_which_one_is_small(tmp_path: Path, threads: Client) -> None:
    features, label = make_rows(n_classes=2)
    keep = np.r_[np.flatnonzero(label == 0), np.flatnonzero(label == 1)[:2]]
    features, label = features[keep], label[keep]
    label[0] = 1
    store = write_store(str(tmp_path / "f.zarr"), label, features)
    found, issues = check(store, threads)
    assert [issue.path for issue in issues if issue.kind == LABEL] == ["1/0.jpg"]
    assert [(small.name, small.n_images) for small in found.small] == [("class 1", 3)]


def test_rows_without_features_or_label_take_no_part(tmp_path: Path, threads: Client) -> None:
    features, label = make_rows()
    store = write_store(str(tmp_path / "f.zarr"), label, features)
    skipped = np.zeros_like(store.read("fc2", 0))
    store.write_chunk(0, {"fc2": skipped}, store.read("content_hash", 0), ["bad"] * len(skipped))
    label = label.astype(np.int32)
    label[200:220] = -1
    store.write_columns(_images(store), {"label": label})
    found, _ = check(store, threads)
    assert (found.n_images, found.n_labelled) == (N - len(skipped), N - len(skipped) - 20)
    label[:] = -1
    store.write_columns(_images(store), {"label": label})
    found, issues = check(store, threads)
    assert (found.n_labelled, found.n_judged, found.small) == (0, 0, ())
    assert LABEL not in {issue.kind for issue in issues}


def _images(store: FeatureStore) -> ImageList:
    return store.images()


def test_no_image_with_features_is_an_error(tmp_path: Path, threads: Client) -> None:
    features, label = make_rows(n=20)
    store = write_store(str(tmp_path / "f.zarr"), label, features)
    store.write_chunk(0, {"fc2": features}, np.zeros(20, np.uint64), ["bad"] * 20)
    with pytest.raises(UserError, match="nothing to check"):
        check(store, threads)


def test_a_store_without_a_split_is_checked(tmp_path: Path, threads: Client) -> None:
    store, wrong = make_flipped(str(tmp_path / "f.zarr"))
    store.forget_split()
    found, _ = check(store, threads)
    assert found.provenance["split"] is None
    assert found.n_issues[LABEL] == len(wrong)


def test_what_a_check_follows_from(make_store: MakeStore) -> None:
    store = make_store(n_images=100)

    def fingerprint(config: CheckConfig = CONFIG, layer: str = "fc2", seed: int = 0) -> object:
        return spec.provenance(store, layer, config, seed)

    assert fingerprint() == fingerprint()
    others = [fingerprint(replace(CONFIG, l2=0.2)), fingerprint(layer="x"), fingerprint(seed=1)]
    assert fingerprint() not in others


def test_thousands_of_copies_of_one_image(tmp_path: Path, threads: Client) -> None:
    """They lie in one fold, and are no suspects."""
    features, label = make_rows(n=100, n_classes=2)
    copies = 2000
    features = np.concatenate([features, np.repeat(features[:1], copies, axis=0)])
    label = np.r_[label, np.full(copies, label[0])]
    store = write_any_store(
        str(tmp_path / "f.zarr"), label, lambda _, rows: features[rows], np.zeros(len(label)),
        chunk_images=700,
    )  # fmt: skip
    for chunk in range(store.n_chunks):
        rows = store.rows(chunk)
        hashes = np.minimum(np.arange(rows.start, rows.stop), 100).astype(np.uint64) + 1
        store.write_chunk(chunk, {"fc2": features[rows]}, hashes, [""] * len(hashes))
    found, issues = check(store, threads)
    assert found.n_judged == len(label)
    assert LABEL not in {issue.kind for issue in issues}
    assert found.n_issues[DUPLICATE] == copies - 1
    assert "could not be read" in found.twins
