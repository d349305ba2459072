"""Suggestions of what to label: the same on any workers, and a table that reads back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from helpers import local_cluster

from dtl.checking import suggestion
from dtl.checking.suggested import COVERAGE, MARGIN, count_new_labels, make_table
from dtl.checking.suggestion import suggest
from dtl.config import ImagesConfig
from dtl.config.errors import UserError
from dtl.features.store import FeatureStore
from dtl.head.model import Head
from dtl.images.listing import list_images
from dtl.images.values import UNLABELLED, ImageList

N, N_CLASSES, N_FEATURES = 150, 3, 8
CENTRES = 4 * np.eye(N_CLASSES, N_FEATURES)


def make_store(folder: Path, n_labelled: int, *, copies: int = 0) -> FeatureStore:
    rng = np.random.default_rng(0)
    true = np.arange(N) % N_CLASSES
    features = np.abs(CENTRES[true] + rng.normal(size=(N, N_FEATURES))).astype(np.float32)
    features[N - copies :] = features[N - 1]
    label = np.where(np.arange(N) < n_labelled, true, UNLABELLED).astype(np.int32)
    label[-1] = -2 if not copies else UNLABELLED  # removed
    images = ImageList(
        root="/photos",
        path=np.array([f"{k:03}.jpg" for k in range(N)], np.dtypes.StringDType()),
        label=label, given_split=np.where(label == 0, 0, -1).astype(np.int8),
        size_bytes=np.ones(N, np.int64), class_names=("ant", "bee", "cat"),
    )  # fmt: skip
    attrs = {"settings": {"layers": ["fc2"]}, "weights_sha256": ""}
    store = FeatureStore.create(
        str(folder), images, {"fc2": N_FEATURES}, dtype="float32", chunk_images=32, attrs=attrs
    )
    for chunk in range(store.n_chunks):
        rows = np.arange(N)[store.rows(chunk)]
        errors = ["damaged" if row == 140 else "" for row in rows]
        store.write_chunk(chunk, {"fc2": features[rows]}, rows.astype(np.uint64), errors)
    return store


def make_head() -> Head:
    return Head(
        kernel=CENTRES.T.astype(np.float32), bias=np.zeros(N_CLASSES, np.float32),
        mean=np.zeros(N_FEATURES, np.float32), scale=np.ones(N_FEATURES, np.float32),
        class_names=("ant", "bee", "cat"), provenance={"layer": "fc2"},
    )  # fmt: skip


def test_few_labels_bring_what_covers_most(tmp_path: Path, threads: Client) -> None:
    store = make_store(tmp_path / "s", 0)
    found = suggest(store, "fc2", make_head(), 6, 0, threads)
    assert found.way == COVERAGE
    assert (found.n_unlabelled, found.n_labelled, found.n_compared) == (148, 0, 148)
    assert sorted((found.rows[:3] % 3).tolist()) == [0, 1, 2]  # one of each class first
    assert {*found.guesses} == {"ant", "bee", "cat"}
    assert found.paths == tuple(f"{row:03}.jpg" for row in found.rows)
    without = suggest(store, "fc2", None, 6, 0, threads)
    assert without.rows.tolist() == found.rows.tolist()
    assert without.guesses == ("",) * 6
    assert np.isnan(without.margins).all()


def test_many_labels_bring_what_the_head_is_unsure_of(tmp_path: Path, threads: Client) -> None:
    store = make_store(tmp_path / "s", 60)
    found = suggest(store, "fc2", make_head(), 10, 0, threads)
    assert found.way == MARGIN
    assert found.n_labelled == 60
    assert (found.rows >= 60).all()
    assert not {140, N - 1} & {*found.rows.tolist()}  # skipped, removed
    every = suggest(store, "fc2", make_head(), 1000, 0, threads)
    assert len(every.rows) == every.n_unlabelled == 88
    assert np.mean(found.margins) < np.mean(every.margins) - 0.05
    without = suggest(store, "fc2", None, 10, 0, threads)
    assert without.way == COVERAGE


def test_the_same_on_one_worker_and_four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suggestion, "_MOST_ROWS", 50)
    store = make_store(tmp_path / "s", 60)
    found = []
    for n_workers in (1, 4):
        with local_cluster(n_workers) as local, Client(local) as client:
            found.append(
                [suggest(store, "fc2", head, 20, 3, client) for head in (None, make_head())]
            )
    for one, other in zip(*found, strict=True):
        assert one.n_compared == 50
        assert one.rows.tolist() == other.rows.tolist()
        assert repr(one.margins) == repr(other.margins)


def test_thousands_of_one_image_come_once(tmp_path: Path, threads: Client) -> None:
    store = make_store(tmp_path / "s", 3, copies=100)
    found = suggest(store, "fc2", None, 5, 0, threads)
    assert (found.rows >= N - 100).sum() == 1


def test_bad_input_is_refused(tmp_path: Path, threads: Client) -> None:
    with pytest.raises(UserError, match=r"lacks a label.*`images\.unlabelled` = keep"):
        suggest(make_store(tmp_path / "s", N), "fc2", None, 5, 0, threads)
    store = make_store(tmp_path / "nan", 3)
    features = store.read("fc2", 0)
    features[2, 3] = np.nan
    store.write_chunk(0, {"fc2": features}, np.arange(32).astype(np.uint64), [""] * 32)
    with pytest.raises(UserError, match="Features must be finite"):
        suggest(store, "fc2", None, 5, 0, threads)


def test_the_table_is_one_of_labels(tmp_path: Path, threads: Client) -> None:
    store = make_store(tmp_path / "s", 60)
    config = ImagesConfig(path_column="file", label_column="breed")
    found = suggest(store, "fc2", make_head(), 10, 0, threads)
    table = make_table(found, store.images(), config)
    lines = table.decode().splitlines()
    assert lines[0] == "file,breed,split,guess"
    assert lines[1] == f"{found.paths[0]},,,{found.guesses[0]}"
    assert len(lines) == 1 + 10 + 60
    photos = tmp_path / "photos"
    photos.mkdir()
    for k in range(N):
        (photos / f"{k:03}.jpg").write_bytes(b"1")
    (tmp_path / "t.csv").write_bytes(table)
    given = ImagesConfig(
        url=str(photos), labels=str(tmp_path / "t.csv"), path_column="file", label_column="breed",
        unlabelled="keep",
    )  # fmt: skip
    listed = list_images(given, 0)
    names = dict(zip(listed.path.tolist(), listed.label_names().tolist(), strict=True))
    assert names == {
        f"{k:03}.jpg": ("ant", "bee", "cat")[k % 3] if k < 60 else "" for k in range(N)
    }
    assert count_new_labels(table, names, config) == 0
    (tmp_path / "t.csv").write_text(
        "\n".join([lines[0], lines[1].replace(",,,", ",bee,,"), *lines[2:]])
    )
    assert count_new_labels((tmp_path / "t.csv").read_bytes(), names, config) == 1
    again = list_images(given, 0)
    assert again.label_names()[again.path == found.paths[0]].tolist() == ["bee"]


@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"", b"my notes", b"a,b\n1,2\n", b'path,label\n"a', b"path,label\na\n"]
)
def test_what_is_no_table_of_suggestions(data: bytes) -> None:
    assert count_new_labels(data, {}, ImagesConfig()) is None
