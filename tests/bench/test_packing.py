"""Listing 30,607 small files, and reading them one by one and packed: `make bench`.

On local disk, where small files cost little, and on HDFS, where each is a question to the NameNode
and a connection to a DataNode; the bar is HDFS's. Files that are only listed are empty, for HDFS
takes minutes to write what they could hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtl import config, storage
from dtl.cluster import connection
from dtl.config import ImagesConfig, PackConfig
from dtl.images import listing, packing, tars

N_FILES, N_CLASSES = 30_607, 257
N_READ, N_BYTES = 2_000, 38_000
"""As many as are read, of Caltech-256's mean size."""
N_TURNS = 3


@pytest.fixture(params=["local disk", "HDFS"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local disk":
        yield str(tmp_path)
        return
    url = f"{request.getfixturevalue('hadoop').url}/tmp/{tmp_path.name}"
    yield url
    storage.remove(url)


def plant(url: str, n_files: int, n_bytes: int) -> None:
    fs, root = storage.filesystem(url)
    data = np.random.default_rng(0).bytes(n_bytes)

    def write(k: int) -> None:
        path = f"{root}/{k % N_CLASSES:03d}.class/{k:05d}.jpg"
        with fs.open(path, "wb") as file:
            if n_bytes:
                file.write(data[k % 256 :])

    for k in range(N_CLASSES):
        fs.makedirs(f"{root}/{k:03d}.class", exist_ok=True)
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(write, range(n_files)))


def seconds(function: Callable[[], Any]) -> float:
    """The best of a few turns, for the machines are shared."""
    times = []
    for _ in range(N_TURNS):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def read(files: list[Any], n_threads: int) -> None:
    """As a task does, or, with one thread, one after the other."""
    rows = range(len(files))
    with storage.Reader(files) as reader, ThreadPoolExecutor(n_threads) as pool:
        if n_threads == 1:
            n_bytes = sum(len(reader.read(row)) for row in rows)
        else:
            n_bytes = sum(len(d) for d in storage.read_ahead(pool, reader.read, rows, 48))
    assert n_bytes > 0.9 * N_READ * N_BYTES


def test_listing_and_reading_small_files(place: str, request: pytest.FixtureRequest) -> None:
    where = request.node.callspec.params["place"]
    plant(f"{place}/names", N_FILES, 0)
    names = ImagesConfig(url=f"{place}/names")
    listing_s = seconds(lambda: listing.list_images(names, 0))
    plant(f"{place}/photographs", N_READ, N_BYTES)
    photographs = listing.list_images(ImagesConfig(url=f"{place}/photographs"), 0)
    settings = config.build({"cluster": {"n_workers": 1, "processes": False}})
    with connection.connect(settings.cluster) as client:
        started = time.perf_counter()
        packing.pack(f"{place}/tars", photographs, PackConfig(shard_mib=32), client)
        packing_s = time.perf_counter() - started
    of_tars_s = seconds(lambda: listing.list_images(ImagesConfig(url=f"{place}/tars"), 0))
    packed = listing.list_images(ImagesConfig(url=f"{place}/tars"), 0)
    assert packed.fingerprint == photographs.fingerprint
    print(
        f"\n{where}: {N_FILES} files listed in {listing_s:.1f} s; {N_READ} packed at "
        f"{N_READ / packing_s:.0f} images/s, listed in tars in {of_tars_s:.2f} s"
    )
    ratio = {}
    for n_threads in (1, 8):
        one_by_one = N_READ / seconds(lambda n=n_threads: read(tars.locate_listed(photographs), n))
        in_tars = N_READ / seconds(lambda n=n_threads: read(tars.locate_listed(packed), n))
        ratio[n_threads] = in_tars / one_by_one
        print(
            f"{where}, {n_threads} threads: {one_by_one:.0f} images/s one by one, "
            f"{in_tars:.0f} packed: {ratio[n_threads]:.1f} times"
        )
    assert listing_s < 30
    if where == "HDFS":
        assert ratio[1] >= 10
