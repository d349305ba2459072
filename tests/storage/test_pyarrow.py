"""Files through pyarrow's client for ``hdfs://``, here over its filesystem of this machine."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import all_files, gaussian_store
from pyarrow import fs as pyarrow_fs

from dtl import storage
from dtl.features.store import FeatureStore
from dtl.storage.ledger import Ledger, read_json
from dtl.storage.lock import hold


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    def local(**_: Any) -> pyarrow_fs.LocalFileSystem:
        return pyarrow_fs.LocalFileSystem()

    monkeypatch.setattr(pyarrow_fs, "HadoopFileSystem", local)
    storage.use_hdfs_client("pyarrow")
    kind = type(storage.filesystem("hdfs://host/")[0])
    yield f"hdfs://host{tmp_path}"
    storage.use_hdfs_client("native")
    kind.clear_instance_cache()


def test_files_and_ranges_of_them(url: str) -> None:
    file = f"{url}/a/b.bin"
    storage.write_bytes(file, b"0123456789")
    assert storage.read_bytes(file) == storage.read_bytes(file, 99) == b"0123456789"
    assert storage.read_start(file, 4) == b"0123"
    assert storage.read_start(file, 99) == b"0123456789"
    with storage.Ranges(file) as ranges:
        found = [ranges.read(*at) for at in ((0, 4), (0, 99), (3, 4), (8, 99), (20, 5))]
    assert found == [b"0123", b"0123456789", b"3456", b"89", b""]
    assert storage.read_file(storage.Extent(file, 0, 2)) == b"01"
    fs, path = storage.asynchronous(file)
    assert asyncio.run(fs._cat_file(path, start=0, end=3)) == b"012"
    assert asyncio.run(fs._cat_file(path, start=-3, end=None)) == b"789"
    storage.write_bytes(file, b"")
    assert storage.read_bytes(file, 9) == storage.read_start(file, 9) == b""
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{url}/none", 9)


def test_names_are_taken_as_they_are(url: str) -> None:
    names = ("a#1.jpg", "a?b=c.jpg", "50%.jpg", "%20", "a::b", "a[1].jpg", "*.jpg", "ä")
    for name in names:
        storage.write_bytes(f"{url}/x/{name}", name.encode())
    assert all_files(f"{url}/x") == {name: name.encode() for name in names}


def test_a_small_file_takes_little_memory_whatever_the_limit(url: str) -> None:
    storage.write_bytes(f"{url}/a", b"01")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), hard))
    try:
        assert storage.read_bytes(f"{url}/a", 1 << 33) == b"01"
        assert storage.read_start(f"{url}/a", 1 << 33) == b"01"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    with pytest.raises(storage.TooLargeError, match=r"/a has 2 bytes\. At most 1 are read\."):
        storage.read_bytes(f"{url}/a", 1)


def test_a_lock_a_ledger_and_a_store(url: str) -> None:
    with hold(url):
        ledger = Ledger(f"{url}/out", "_ledger.json", {"seed": 0})
        ledger.claim()
        ledger.finish()
        assert read_json(f"{url}/out/_ledger.json") == {"seed": 0, "complete": True}
    assert "out/_ledger.json" in all_files(url)
    expected = gaussian_store(f"{url}/features.zarr", 40, 4, 2, chunk_images=10)
    store = FeatureStore.open(expected.url)
    assert store.n_images == expected.n_images
    np.testing.assert_array_equal(store.read("label", 0), store.read("label")[: store.chunk_images])
