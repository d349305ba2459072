"""Byte ranges: neighbours in one request, and results read ahead."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dtl import storage
from dtl.storage import Extent, ranges, read_ahead


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
