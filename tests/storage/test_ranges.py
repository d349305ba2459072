"""Byte ranges: neighbours in one request, and results read ahead."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dtl import storage
from dtl.storage import Extent, hdfs, ranges, read_ahead


def group_rows(files: list[str | Extent], most_bytes: int = 1 << 20) -> list[list[int]]:
    """Return the rows of each request."""
    groups: dict[int, list[int]] = {}
    for row, request in ranges.plan_requests(files, most_bytes).items():
        groups.setdefault(id(request), []).append(row)
    return list(groups.values())


def test_neighbours_are_one_request() -> None:
    def at(*offsets: int) -> list[str | Extent]:
        return [Extent("0.tar", offset, 1000) for offset in offsets]

    assert group_rows(at(512, 2048, 3584), 2600) == [[0, 1], [2]]
    assert group_rows(at(2048, 512)) == [[0], [1]]  # backwards
    assert group_rows(at(512, 90_000)) == [[0], [1]]  # far apart
    assert group_rows(at(512, 512, 1024)) == [[0, 1, 2]]  # the same, and overlapping
    assert group_rows([*at(512), "a.jpg", *at(2048), Extent("1.tar", 4096, 9)]) == [[0, 2], [3]]
    assert group_rows([Extent("0.tar", 512, 1 << 30), *at(1 << 31)]) == [[0], [1]]
    assert group_rows(["a.jpg"]) == group_rows([]) == []


def test_a_tar_is_opened_once_and_read_in_one_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * 20
    files: list[str | Extent] = []
    for name in ("0.tar", "1.tar"):
        (tmp_path / name).write_bytes(data)
        files += [Extent(str(tmp_path / name), 512 * k, 300) for k in range(9)]
    opened, requests = [], []
    init, read_range = storage.Ranges.__init__, storage.Ranges.read

    def open_file(self: storage.Ranges, url: str) -> None:
        opened.append(url)
        init(self, url)

    def read(self: storage.Ranges, offset: int, n_bytes: int) -> bytes:
        requests.append((offset, n_bytes))
        return read_range(self, offset, n_bytes)

    monkeypatch.setattr(storage.Ranges, "__init__", open_file)
    monkeypatch.setattr(storage.Ranges, "read", read)
    with storage.Reader(files) as reader:
        found = [reader.read(row) for row in range(len(files))]
    assert found == [data[512 * k : 512 * k + 300] for _ in range(2) for k in range(9)]
    assert opened == [f"{tmp_path}/0.tar", f"{tmp_path}/1.tar"]
    assert requests == [(0, 8 * 512 + 300)] * 2


class Tar:
    """An open file of HDFS, whose first reads fail."""

    n_opened = 0
    n_read = 0

    def __init__(self, error: Exception, n_failures: int) -> None:
        self._error, self._n_failures = error, n_failures

    def open(self, *_: Any, **__: Any) -> Tar:
        self.n_opened += 1
        if self.n_opened == 1:
            raise self._error
        return self

    def __len__(self) -> int:
        return 10

    def read_range(self, offset: int, n_bytes: int) -> bytes:
        self.n_read += 1
        if self.n_read <= self._n_failures:
            raise self._error
        return b"0123456789"[offset : offset + n_bytes]

    def close(self) -> None:
        pass


LOST = 'DataTransferError("Failed to connect to DataNode")'


@pytest.mark.parametrize("said", [LOST, "IOError(Connection refused (os error 111))"])
def test_a_tar_on_hdfs_is_read_again_from_other_datanodes(
    monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(hdfs, "_FIRST_PAUSE_S", 0.01)
    url = "hdfs://127.0.0.1:9/photos.tar"
    tar = Tar(RuntimeError(said), 3)
    monkeypatch.setattr(storage.filesystem(url)[0], "open", tar.open)
    assert storage.read_file(Extent(url, 2, 4)) == b"2345"
    assert tar.n_opened == 5  # again after each failure, for its DataNodes may have changed
    monkeypatch.setattr(hdfs, "_PATIENCE_S", 0.0)
    tar = Tar(RuntimeError(said), 99)
    tar.n_opened = 1
    monkeypatch.setattr(storage.filesystem(url)[0], "open", tar.open)
    with pytest.raises(OSError, match=f"^{url}: ") as caught:
        storage.read_file(Extent(url, 2, 4))
    assert "NameNode" not in str(caught.value)


def test_results_are_read_ahead_in_order() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def read(row: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        return row

    with ThreadPoolExecutor(8) as pool:
        for row, result in enumerate(read_ahead(pool, read, range(50), 6)):
            assert row == result
            with lock:
                running -= 1
    assert 1 <= most <= 7  # one is taken before the next is begun
