"""The feature store on every backend."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from helpers import all_files

from dtl import storage
from dtl.config.errors import DifferentSettingsError, UserError
from dtl.features import arrays
from dtl.features.arrays import ArrayLayout
from dtl.features.store import FeatureStore
from dtl.images.values import ImageList
from dtl.storage.guards import guard
from dtl.storage.lock import LostLockError

N_IMAGES = 10
CHUNK_IMAGES = 4
ATTRS = {"settings": {"network": "VGG16", "layers": ["fc2"]}, "weights_sha256": "abc"}


most_backends = pytest.mark.parametrize("root", ["file", "memory", "hdfs", "s3"], indirect=True)
"""WebHDFS takes ten times as long as HDFS: one test shows that a store is the same there."""


def images() -> ImageList:
    return ImageList(
        root="/photos",
        path=np.array([f"b/straße {row}.jpg" for row in range(N_IMAGES)], np.dtypes.StringDType()),
        label=(np.arange(N_IMAGES) % 2).astype(np.int32),
        given_split=(np.arange(N_IMAGES) % 4 - 1).astype(np.int8),
        size_bytes=np.arange(N_IMAGES),
        class_names=("a", "b"),
    )


def create(url: str, layers: dict[str, int] | None = None, **options: Any) -> FeatureStore:
    layers = layers or {"fc2": 3}
    attrs = ATTRS | {"settings": {"network": "VGG16", "layers": list(layers)}}
    options = {"dtype": "float32", "chunk_images": CHUNK_IMAGES, "attrs": attrs} | options
    return FeatureStore.create(url, images(), layers, **options)


def content(store: FeatureStore, chunk: int) -> tuple[dict[str, np.ndarray], np.ndarray, list[str]]:
    """Features, hashes and errors of a chunk; row 5 cannot be read."""
    rows = np.arange(N_IMAGES)[store.rows(chunk)]
    features = np.random.default_rng(0).normal(size=(N_IMAGES, 3)).astype(np.float32)[rows]
    error = np.where(rows == 5, "damaged: image file is truncated", "").tolist()
    features[rows == 5] = 0
    return {"fc2": features}, rows.astype(np.uint64) + 2**63, error


def fill(store: FeatureStore, chunks: Sequence[int] = (0, 1, 2)) -> FeatureStore:
    for chunk in chunks:
        store.write_chunk(chunk, *content(store, chunk))
    return store


@most_backends
def test_a_new_store(root: str) -> None:
    url = storage.join(root, "features.zarr")
    made = create(url)
    for store in (made, FeatureStore.open(url)):
        assert (store.n_images, store.chunk_images, store.n_chunks) == (10, 4, 3)
        assert store.pending_chunks() == [0, 1, 2]
        assert store.class_names == ("a", "b")
        assert store.fingerprint == ATTRS["settings"]
        assert store.attrs["weights_sha256"] == "abc"
        assert store.n_features("fc2") == 3
        assert store.dtype("fc2") == np.float32
        assert [store.rows(chunk) for chunk in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 10)]
        listed = images()
        np.testing.assert_array_equal(store.read("path"), listed.path)
        np.testing.assert_array_equal(store.read("label"), listed.label, strict=True)
        np.testing.assert_array_equal(store.read("given_split"), listed.given_split, strict=True)
        assert (store.read("split") == -1).all()
        assert store.split_fingerprint is None


def test_write_and_read(root: str) -> None:
    url = storage.join(root, "features.zarr")
    store = create(url)
    fill(store, [1])
    assert store.pending_chunks() == [0, 2]
    fill(store, [2, 0])
    store = FeatureStore.open(url)
    assert store.pending_chunks() == []
    assert store.read("status").tolist() == [1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    assert store.read("error")[5] == "damaged: image file is truncated"
    assert store.read("error").tolist().count("") == 9
    for chunk in range(3):
        features, content_hash, error = content(store, chunk)
        np.testing.assert_array_equal(store.read("fc2", chunk), features["fc2"], strict=True)
        np.testing.assert_array_equal(store.read("content_hash", chunk), content_hash, strict=True)
        assert store.read("error", chunk).tolist() == error
    assert store.read("path", 2).tolist() == ["b/straße 8.jpg", "b/straße 9.jpg"]
    np.testing.assert_array_equal(
        store.read("fc2"), np.concatenate([store.read("fc2", chunk) for chunk in range(3)])
    )


@most_backends
def test_the_order_of_the_chunks_leaves_no_trace(root: str) -> None:
    one, other = storage.join(root, "one.zarr"), storage.join(root, "other.zarr")
    fill(create(one), [0, 1, 2])
    fill(create(other), [2, 0, 1])
    fill(FeatureStore.open(other), [1])  # once more, as a task that was run again does
    assert all_files(other) == all_files(one)
    assert len(all_files(one)) > 10


@most_backends
def test_a_chunk_is_pending_until_its_status_is_written(root: str) -> None:
    url = storage.join(root, "features.zarr")
    store = fill(create(url), [0])
    before = all_files(url)
    features, content_hash, error = content(store, 1)
    with pytest.raises(ValueError, match=r"shape|broadcast"):
        store.write_chunk(1, features, content_hash[:2], error)
    # Features may be there, and yet nobody takes the chunk for done.
    assert "status/c/1" not in set(all_files(url)) - set(before)
    store = FeatureStore.open(url)
    assert store.pending_chunks() == [1, 2]
    fill(store, store.pending_chunks())
    whole = storage.join(root, "whole.zarr")
    fill(create(whole))
    assert all_files(url) == all_files(whole)


@most_backends
def test_several_layers_and_float16(root: str) -> None:
    url = storage.join(root, "features.zarr")
    store = create(url, {"fc1": 2, "fc2": 3}, dtype="float16")
    features = {"fc1": np.full((4, 2), 0.1, np.float32), "fc2": np.full((4, 3), 2, np.float32)}
    store.write_chunk(0, features, np.zeros(4, np.uint64), [""] * 4)
    assert store.dtype("fc1") == np.float16
    np.testing.assert_array_equal(store.read("fc1", 0), features["fc1"].astype(np.float16))
    assert (store.n_features("fc1"), store.n_features("fc2")) == (2, 3)


@pytest.mark.parametrize("layer", ["fc3", "path", "status", "given_split"])
def test_unknown_layer(tmp_path: Path, layer: str) -> None:
    store = create(str(tmp_path / "features.zarr"))
    with pytest.raises(ValueError, match=rf"No features of layer '{layer}' in .* has: \['fc2'\]"):
        store.n_features(layer)


@pytest.mark.parametrize(
    ("layers", "dims"),
    [
        ({"fc2": 3}, {"fc2": ("image", "feature")}),
        ({"fc1": 2, "fc2": 3}, {"fc1": ("image", "fc1_feature"), "fc2": ("image", "fc2_feature")}),
    ],
)
def test_xarray_opens_it(
    tmp_path: Path, layers: dict[str, int], dims: dict[str, tuple[str, ...]]
) -> None:
    url = str(tmp_path / "features.zarr")
    store = create(url, layers)
    columns = ("path", "label", "given_split", "size_bytes", "modified", "split", "content_hash",
               "error", "status", "instruction_set")  # fmt: skip
    with xarray.open_zarr(url, consolidated=False) as dataset:
        assert dataset.sizes["image"] == 10
        assert {name: array.dims for name, array in dataset.items()} == dims | dict.fromkeys(
            columns, ("image",)
        ) | {"figures": ("image", "figure")}
        assert dataset.attrs["class_names"] == ["a", "b"]
        assert {array.chunks[0] for array in dataset.values()} == {(4, 4, 2)}
        np.testing.assert_array_equal(dataset["path"].values, store.read("path"))


@most_backends
def test_a_store_is_only_replaced_by_one_of_another_fingerprint(root: str) -> None:
    url = storage.join(root, "features.zarr")
    fill(create(url))
    before = all_files(url)
    for make in (create, lambda url: FeatureStore.remove_other(url, ATTRS)):
        # As after a storage that said for a moment that nothing is there.
        with pytest.raises(FileExistsError, match="was not there a moment ago"):
            make(url)
        assert all_files(url) == before
    FeatureStore.remove_other(url, {**ATTRS, "weights_sha256": "other"})
    create(url, {"fc1": 2})
    store = FeatureStore.open(url)
    assert store.pending_chunks() == [0, 1, 2]
    with pytest.raises(ValueError, match="No features of layer 'fc2'"):
        store.n_features("fc2")


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.slow
def test_a_removal_that_is_killed_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    other = {**ATTRS, "settings": {"network": "VGG16", "layers": ["fc1"]}}

    def replace_store(url: str) -> FeatureStore:
        """As `featurize` with `overwrite`."""
        assert FeatureStore.reuse(url, other["settings"], overwrite=True) is None
        FeatureStore.remove_other(url, other)
        return create(url, {"fc1": 2})

    unlink, n_left = os.unlink, 0

    def die(*args: Any, **kwargs: Any) -> None:
        nonlocal n_left
        if not (n_left := n_left - 1):
            raise KeyboardInterrupt
        unlink(*args, **kwargs)

    for n_files in itertools.count(1, 3):
        url = str(tmp_path / f"{n_files}.zarr")
        fill(create(url))
        if not whole:  # its making was interrupted
            storage.remove(storage.join(url, "status/c"))
            zarr.open_group(url).attrs.put({"dtl": "unfinished"})
        n_left = n_files
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", die)
            with contextlib.suppress(KeyboardInterrupt):
                replace_store(url)
        if n_left > 0:
            break  # it ended
        store = replace_store(url)
        assert store.pending_chunks() == [0, 1, 2]
        assert not (tmp_path / f"{n_files}.zarr" / "fc2").exists()
    assert n_files > 10


def test_a_store_of_which_only_half_a_file_was_written(tmp_path: Path) -> None:
    url = tmp_path / "features.zarr"
    url.mkdir()
    (url / "zarr.json.0123abc.partial").write_bytes(b"half")
    assert FeatureStore.reuse(str(url), ATTRS["settings"]) is None
    create(str(url))
    assert not list(url.glob("*.partial"))


@most_backends
def test_nothing_is_there(root: str) -> None:
    url = storage.join(root, "features.zarr")
    with pytest.raises(FileNotFoundError, match=r"No feature store at .* Run the featurize stage"):
        FeatureStore.open(url)
    fs, path = storage.filesystem(url)
    fs.makedirs(path, exist_ok=True)
    with pytest.raises(FileNotFoundError, match=r"is empty\.|No feature store"):  # S3: no folders
        FeatureStore.open(url)


@most_backends
def test_a_half_made_store(root: str) -> None:
    url = storage.join(root, "features.zarr")
    listed = images()
    object.__setattr__(listed, "label", listed.label[:3])  # a run that dies while it writes labels
    with pytest.raises(ValueError, match=r"shape|broadcast"):
        FeatureStore.create(
            url, listed, {"fc2": 3}, dtype="float32", chunk_images=4, attrs=ATTRS
        )  # fmt: skip
    assert storage.exists(storage.join(url, "path/zarr.json"))
    with pytest.raises(FileNotFoundError, match=r"The feature store at .* was interrupted while"):
        FeatureStore.open(url)


OTHERS = {
    "a group": lambda url: zarr.create_group(arrays._backing(url), attributes={"dtl": "x"}),
    "an array": lambda url: zarr.create_array(arrays._backing(url), shape=(3,), dtype="i4"),
    "version 2": lambda url: zarr.create_group(arrays._backing(url), zarr_format=2),
    "a folder": lambda url: storage.write_bytes(storage.join(url, "thesis.tex"), b"chapter"),
    "a file": lambda url: storage.write_bytes(url, b"chapter"),
    "half a file": lambda url: storage.write_bytes(storage.join(url, "zarr.json"), b'{"zarr_'),
}


@pytest.mark.parametrize("other", OTHERS)
@most_backends
def test_something_else_is_there(root: str, other: str) -> None:
    url = storage.join(root, "features.zarr")
    OTHERS[other](url)
    before = all_files(root)
    message = (
        r"(?s)is (no feature store|a Zarr group that dtl did not make).* Choose another `out`, or "
        "remove it yourself: it is never replaced"
    )
    for overwrite in (False, True):
        with pytest.raises(UserError, match=message):
            FeatureStore.reuse(url, ATTRS["settings"], overwrite=overwrite)
    assert all_files(root) == before


def test_reuse(tmp_path: Path) -> None:
    url = str(tmp_path / "features.zarr")
    wanted = {**ATTRS["settings"], "layers": ["fc1"]}
    assert FeatureStore.reuse(url, wanted) is None
    store = create(url)
    begun = FeatureStore.reuse(url, ATTRS["settings"])
    assert begun is not None
    assert begun.n_done == 0
    fill(store)
    for overwrite in (False, True):
        whole = FeatureStore.reuse(url, ATTRS["settings"], overwrite=overwrite)
        assert whole is not None
        assert not whole.pending_chunks()
    with pytest.raises(DifferentSettingsError, match=r"layers: asked for \['fc1'\], stored"):
        FeatureStore.reuse(url, wanted)
    assert FeatureStore.reuse(url, wanted, overwrite=True) is None
    assert FeatureStore.open(url).n_done == N_IMAGES  # which makes the new one removes it


@most_backends
def test_a_store_is_pickled_without_its_data(root: str) -> None:
    store = create(storage.join(root, "features.zarr"))
    data = pickle.dumps(store)
    assert len(data) < 300  # however many files were left out, however long the names of classes
    fill(store)
    again = pickle.loads(data)
    assert again.pending_chunks() == []
    np.testing.assert_array_equal(again.read("fc2"), store.read("fc2"))
    assert again.attrs == store.attrs


@most_backends
def test_a_process_opens_a_store_once_and_sees_what_the_driver_changed(root: str) -> None:
    store = create(storage.join(root, "features.zarr"))
    before = pickle.dumps(store)
    assert pickle.loads(before).arrays is store.arrays
    listed = images()
    n = np.arange(N_IMAGES)
    in_tars = replace(listed, tar_names=("a.tar",), tar=np.zeros(N_IMAGES, np.int32), offset=n)
    store.write_places(in_tars)
    assert pickle.loads(pickle.dumps(store)).attrs["shards"] == ["a.tar"]
    assert store.read("offset").tolist() == n.tolist()


@most_backends
def test_split(root: str) -> None:
    url = storage.join(root, "features.zarr")
    store = fill(create(url))
    rows = (np.arange(N_IMAGES) % 3).astype(np.int8)
    reader = FeatureStore.open(url)
    store.write_split(rows, {"method": "stratified", "train": 0.5, "validation": "rest"})
    for one in (store, reader, FeatureStore.open(url)):
        np.testing.assert_array_equal(one.read("split"), rows, strict=True)
        assert one.split_fingerprint == {"method": "stratified", "train": 0.5, "validation": "rest"}
    with pytest.raises(ValueError, match=r"shape|broadcast"):
        store.write_split(rows[:3], {"method": "random"})
    assert store.split_fingerprint is None  # what is stored was made by nobody knows what


@most_backends
def test_every_change_passes_the_guards(root: str) -> None:
    """Zarr's writes of attributes and descriptions, too."""
    store = fill(create(storage.join(root, "features.zarr")))
    store.write_split(np.zeros(store.n_images, np.int8), {"seed": 0})
    before = all_files(root)

    def refuse() -> None:
        raise LostLockError("lost")

    stored = store.arrays
    zeros = np.zeros(N_IMAGES, np.int64)
    moved = replace(images(), tar_names=("a.tar",), tar=zeros.astype(np.int32), offset=zeros)
    for change in (
        store.forget_split,
        lambda: store.write_places(moved),
        lambda: stored.group.attrs.update({"root": "/elsewhere"}),
        lambda: stored.create_array("new", ArrayLayout((2,), "int8", 0, 1, None, ("image",))),
        lambda: stored.write("split", slice(None), np.ones(store.n_images, np.int8)),
        lambda: stored.replace("split", np.zeros(store.n_images, np.int8)),
        lambda: stored.extend("split", N_IMAGES + 1),
        lambda: FeatureStore.create(
            f"{store.url}/more", images(), {"fc2": 4}, dtype="float32", chunk_images=4, attrs={}
        ),
    ):
        with guard(root, refuse), pytest.raises(LostLockError):
            change()
        assert all_files(root) == before


def test_clean_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    store = fill(create(str(tmp_path / "features.zarr")))
    before = all_files(store.url)
    (tmp_path / "features.zarr/fc2/c/1/0.0123abc.partial").write_bytes(b"half")
    (tmp_path / "features.zarr/zarr.0123abc.partial").write_bytes(b"half")
    storage.remove_partials(store.url)
    assert all_files(store.url) == before


@most_backends
def test_clean_leaves_what_is_whole_on_any_filesystem(root: str) -> None:
    store = fill(create(storage.join(root, "features.zarr")))
    before = all_files(store.url)
    storage.remove_partials(store.url)
    assert all_files(store.url) == before
