"""What is missing or damaged in a feature store is an error with its file, never another number."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from helpers import MakeStore, all_files

from dtl import config, storage
from dtl.config.errors import UserError
from dtl.evaluation import scoring
from dtl.features import arrays
from dtl.features.arrays import DamagedError
from dtl.features.columns import COLUMNS
from dtl.features.store import FeatureStore
from dtl.images.values import ImageList
from dtl.training import trainer
from dtl.training.spec import TrainingSpec

N_IMAGES = 10
SETTINGS = {"layers": ["fc2"], "dtype": "float32", "chunk_images": 4}
ATTRS = {"settings": SETTINGS, "weights_sha256": "abc", "weights": "random", "left_out": []}


def images(n: int = N_IMAGES, *, tars: tuple[str, ...] = ("a.tar", "b.tar")) -> ImageList:
    row = np.arange(n)
    return ImageList(
        root="/photos",
        path=np.array([f"{'ab'[i % 2]}/{i}.jpg" for i in row], np.dtypes.StringDType()),
        label=(row % 2).astype(np.int32),
        given_split=np.full(n, -1, np.int8),
        size_bytes=row + 9,
        class_names=("a", "b"),
        tar_names=tars,
        tar=(row % max(len(tars), 1)).astype(np.int32) if tars else np.empty(0, np.int32),
        offset=row * 512 + 512 if tars else np.empty(0, np.int64),
    )


def make(url: str) -> FeatureStore:
    """A finished store with every column; the image of row 5 is unreadable, all rows 0 are zero."""
    store = FeatureStore.create(
        url, images(), {"fc2": 3}, dtype="float32", chunk_images=4, attrs=ATTRS
    )
    write_chunks(store)
    store.write_split((np.arange(N_IMAGES) % 3).astype(np.int8), {"made": "by a test"})
    return store


def write_chunks(store: FeatureStore) -> None:
    for chunk in range(store.n_chunks):
        rows = np.arange(store.n_images)[store.rows(chunk)]
        features = (min(chunk, 1) * (rows[:, None] + np.arange(3))).astype(np.float32)
        error = np.where(rows == 5, "damaged", "")
        features[rows == 5] = 0
        store.write_chunk(chunk, {"fc2": features}, rows.astype(np.uint64) + 1, error)


def flip(data: bytes) -> bytes:
    half = len(data) // 2
    return data[:half] + bytes([data[half] ^ 0xFF]) + data[half + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda _: None,
    "flipped": flip,
    "cut off": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "other": lambda _: b"something else that a person wrote there",
    "last byte": lambda data: data[:-1] + bytes([data[-1] ^ 1]),  # of JSON it is a blank
}


def damage(url: str, kind: str) -> bytes:
    """Damage a file; returns what was in it."""
    data = storage.read_bytes(url)
    changed = DAMAGES[kind](data)
    storage.remove(url)
    if changed is not None:
        storage.write_bytes(url, changed)
    return data


def is_chunk(name: str) -> bool:
    return "/c/" in name


def everywhere(kinds: Iterable[str]) -> list[tuple[str, str]]:
    """Every damage where it costs nothing; on servers what each tells in its own way: no file."""
    servers = [(root, "missing") for root in ("hdfs", "webhdfs", "s3")]
    return [*itertools.product(["file", "memory"], kinds), *servers]


@pytest.mark.parametrize(("root", "kind"), everywhere(DAMAGES), indirect=["root"])
def test_every_file_of_every_array_is_missed(root: str, kind: str) -> None:
    store = make(storage.join(root, "features.zarr"))
    names = [name for name in all_files(store.url) if is_chunk(name)]
    assert {name.split("/")[0] for name in names} == {*COLUMNS, "fc2"}
    for name in names:
        column, _, chunk, *_ = name.split("/")
        file = storage.join(store.url, name)
        data = damage(file, kind)
        opened = FeatureStore.open(store.url)
        if (column, kind) == ("status", "missing"):
            assert opened.pending_chunks() == [int(chunk)]  # and no stage takes such a store
        else:
            of_file = int(chunk) if column in ("fc2", *TASK_COLUMNS) else 2
            for rows in (None, of_file):
                with pytest.raises(DamagedError, match=r"is (missing|damaged).*`repair`") as error:
                    opened.read(column, rows)
                assert str(error.value).startswith(file)
        storage.write_bytes(file, data)
    for column in (*COLUMNS, "fc2"):
        FeatureStore.open(store.url).read(column)


TASK_COLUMNS = ("content_hash", "error", "status", "instruction_set", "figures")


@pytest.mark.parametrize("column", ["label", "path", "split", "given_split", "shard", "offset"])
def test_a_chunk_that_is_missing_in_a_file_of_several_is_missed(
    tmp_path: Path, column: str
) -> None:
    store = make(str(tmp_path / "features.zarr"))
    array = store._array(column)
    array[4:8] = array.fill_value  # which Zarr stores by leaving the chunk out
    store = FeatureStore.open(store.url)
    assert len(store.read(column, 0)) == 4
    for chunk in (1, None):
        with pytest.raises(DamagedError, match=rf"{column}/c/0 is damaged \(a chunk in it is miss"):
            store.read(column, chunk)


def read(url: str, name: str, *, overwrite: bool) -> None:
    store = FeatureStore.reuse(url, SETTINGS, overwrite=overwrite)
    assert store is not None
    store.read(name)


@pytest.mark.parametrize(("root", "kind"), everywhere([*DAMAGES][:5]), indirect=["root"])
def test_a_damaged_description_is_a_message(root: str, kind: str) -> None:
    store = make(storage.join(root, "features.zarr"))
    for name in [name for name in all_files(store.url) if name.endswith("zarr.json")]:
        file = storage.join(store.url, name)
        data = damage(file, kind)
        for overwrite in (False, True):
            # Not `FileNotFoundError`: it never counts as absent.
            with pytest.raises(UserError, match=r"zarr\.json"):
                read(store.url, name.split("/")[0], overwrite=overwrite)
        storage.write_bytes(file, data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": None}, "it has no 'settings'"),
        ({"settings": ["fc2"]}, r"'settings' is \['fc2'\], which is no dict"),
        ({"class_names": "ab"}, "'class_names' is 'ab', which is no list"),
        ({"left_out": 3}, "'left_out' is 3, which is no list"),
        ({"dtl": "unfinished"}, None),
    ],
)
def test_attributes_that_are_lacking_or_of_another_type(
    tmp_path: Path, changes: dict[str, Any], message: str | None
) -> None:
    store = make(str(tmp_path / "features.zarr"))
    file = tmp_path / "features.zarr" / "zarr.json"
    described = json.loads(file.read_text())
    for name, value in changes.items():
        described["attributes"][name] = value
        if value is None:
            del described["attributes"][name]
    file.write_text(json.dumps(described))
    if message is None:
        FeatureStore.open(store.url)  # chunks are done: it is not one whose making was interrupted
        return
    with pytest.raises(DamagedError, match=rf"zarr\.json is damaged: {message}.*never replaced"):
        FeatureStore.reuse(store.url, SETTINGS, overwrite=True)


def test_an_attribute_that_is_used_later(tmp_path: Path) -> None:
    store = make(str(tmp_path / "features.zarr"))
    with pytest.raises(DamagedError, match=r"zarr\.json is damaged: it has no 'seed'"):
        store.attrs["seed"]
    with pytest.raises(DamagedError, match=r"zarr\.json is damaged: it has no 'precision'"):
        store.fingerprint["precision"]


def test_a_description_of_other_rows(tmp_path: Path) -> None:
    store = make(str(tmp_path / "features.zarr"))
    file = tmp_path / "features.zarr/label/zarr.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps(described | {"shape": [N_IMAGES - 1]}))
    store = FeatureStore.open(store.url)
    assert store.n_images == N_IMAGES
    with pytest.raises(DamagedError, match=r"label/zarr\.json is damaged \(it describes 9 rows"):
        store.read("label")
    file.write_text(json.dumps(described | {"data_type": "int64"}))
    with pytest.raises(DamagedError, match="it describes int64 instead of int32"):
        FeatureStore.open(store.url).read("label")


@pytest.mark.parametrize("memory", [True, False])
def test_a_text_that_asks_for_any_memory_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: bool
) -> None:
    store = make(str(tmp_path / "features.zarr"))

    def asks(*_: object) -> None:
        raise MemoryError("1.13 GiB for an array with shape (151587081,)")

    monkeypatch.setattr(arrays.Arrays, "_read_strictly", asks)
    monkeypatch.setattr(arrays, "has_memory", lambda _: memory)
    opened = FeatureStore.open(store.url)
    with pytest.raises(DamagedError if memory else MemoryError, match=r"1\.13 GiB") as error:
        opened.read("error", 1)
    assert not memory or "error/c/1 is damaged" in str(error.value)


def test_a_description_of_chunks_without_rows(tmp_path: Path) -> None:
    store = make(str(tmp_path / "features.zarr"))
    file = tmp_path / "features.zarr/fc2/zarr.json"
    described = json.loads(file.read_text())
    described["chunk_grid"]["configuration"]["chunk_shape"] = [0, 3]
    file.write_text(json.dumps(described))
    with pytest.raises(DamagedError, match=r"fc2/zarr\.json is damaged"):
        FeatureStore.open(store.url).read("fc2")


def test_a_layer_without_its_description_is_damaged(tmp_path: Path) -> None:
    store = make(str(tmp_path / "features.zarr"))
    (tmp_path / "features.zarr/fc2/zarr.json").unlink()
    with pytest.raises(DamagedError, match=r"fc2/zarr\.json is missing\..*`repair`"):
        FeatureStore.open(store.url).n_features("fc2")


def test_descriptions_are_compared_while_other_threads_read_more(tmp_path: Path) -> None:
    arrays = FeatureStore.open(make(str(tmp_path / "features.zarr")).url).arrays

    class Meanwhile:
        """An array during whose comparison another thread reads one more."""

        chunks = (4,)

        @property
        def shape(self) -> tuple[int]:
            arrays._arrays["split"] = self
            return (N_IMAGES,)

    arrays._arrays["label"] = Meanwhile()
    assert arrays.array("path").shape == (N_IMAGES,)


# --- training and evaluation ----------------------------------------------------------------------


def scores(store: FeatureStore, client: Client) -> tuple[Any, ...]:
    """All numbers of a head that is trained anew."""
    options = config.build({"train": {"epochs": 2.0, "n_shards": 2, "layer": "fc2"}})
    spec = TrainingSpec(store, options.train, "fc2", 0)
    head = trainer.train(spec, client).head
    return head.to_bytes(), scoring.evaluate(store, head, client).to_json()


@pytest.mark.slow
def test_training_and_evaluation_never_give_another_number(
    make_store: MakeStore, threads: Client
) -> None:
    store = make_store(160, 6, 3, chunk_images=40)
    expected = scores(store, threads)
    refused = set()
    for name in [name for name in all_files(store.url) if is_chunk(name)]:
        for kind in ("missing", "flipped", "cut off"):
            file = storage.join(store.url, name)
            data = damage(file, kind)
            try:
                opened = FeatureStore.open(store.url)
                if opened.pending_chunks():
                    raise DamagedError(file)  # as `Results.store` does
                assert scores(opened, threads) == expected
            except DamagedError as error:
                assert name in str(error)  # noqa: PT017
                refused.add((name.split("/")[0], kind))
            storage.write_bytes(file, data)
    for column in ("fc2", "label", "path", "split", "status"):
        assert {kind for name, kind in refused if name == column} == {
            "missing", "flipped", "cut off",
        }  # fmt: skip
    assert scores(FeatureStore.open(store.url), threads) == expected


# --- stores of earlier versions -------------------------------------------------------------------


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    store = make(str(tmp_path / "features.zarr"))
    description = tmp_path / "features.zarr" / "zarr.json"
    whole = json.loads(description.read_text())
    for format in (None, 3, 5):
        whole["attributes"].pop("format", None)
        if format is not None:
            whole["attributes"]["format"] = format
        description.write_text(json.dumps(whole))
        with pytest.raises(UserError, match=rf"its format is {format or 1}, and .* reads 4\."):
            FeatureStore.open(store.url)
