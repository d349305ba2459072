"""A failure is no answer: transient ones are tried again, others raised, none means "absent"."""

from __future__ import annotations

import asyncio
import errno
import re
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flaky import failing

from dtl import storage
from dtl.config.provenance import Claim
from dtl.features.store import FeatureStore
from dtl.storage import retries
from dtl.storage.hdfs import Hdfs, translate
from dtl.storage.ledger import Ledger, read_json
from dtl.storage.local import Local
from dtl.storage.retries import FullError

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def url() -> Iterator[str]:
    url = f"flaky://{uuid.uuid4().hex}"
    storage.write_bytes(f"{url}/a/1.jpg", b"12345")
    yield url
    storage.remove(url)


ASKING: dict[str, Any] = {
    "exists": (storage.exists, True),
    "is_file": (storage.is_file, True),
    "size": (storage.size, 5),
    "read_bytes": (storage.read_bytes, b"12345"),
    "read_start": (lambda url: storage.read_start(url, 2), b"12"),
}


@pytest.mark.parametrize("name", ASKING)
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset"),
        TimeoutError("no answer"),
        OSError("the server is busy"),
    ],
)
def test_storage_that_fails_three_times(url: str, name: str, error: Exception) -> None:
    ask, expected = ASKING[name]
    with failing(3, error) as calls:
        assert ask(f"{url}/a/1.jpg") == expected
    assert len(calls) == 3


@pytest.mark.parametrize("name", ASKING)
@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), PermissionError(13, "Permission denied")]
)
def test_storage_that_goes_on_failing_is_an_error_with_the_place(
    url: str, name: str, error: Exception
) -> None:
    with failing(99, error), pytest.raises(type(error)) as caught:
        ASKING[name][0](f"{url}/a/1.jpg")
    assert f"{url}/a/1.jpg" in f"{caught.value} {caught.value.__notes__}"


def test_what_lasts_is_not_tried_again(url: str) -> None:
    with failing(99, PermissionError(13, "Permission denied")) as calls:
        with pytest.raises(PermissionError):
            storage.exists(url)
        assert calls == ["info"]
    assert not storage.exists(f"{url}/b")
    assert not storage.exists(f"{url}/a/1.jpg/c")


def test_a_write_that_fails_three_times(url: str) -> None:
    with failing(3) as calls:
        storage.write_bytes(f"{url}/a/2.jpg", b"2")
    assert len(calls) == 3
    assert storage.read_bytes(f"{url}/a/2.jpg") == b"2"
    assert [file.path for file in storage.walk(url)] == ["a/1.jpg", "a/2.jpg"]


def test_a_folder_that_cannot_be_looked_at_is_not_removed(url: str) -> None:
    with failing(99), pytest.raises(OSError, match="Input/output error"):
        storage.remove(url)
    with failing(3):
        storage.remove(f"{url}/a/1.jpg")
    assert not storage.exists(f"{url}/a/1.jpg")


@pytest.mark.parametrize("n_failures", [3, 99])
def test_a_finished_ledger_is_never_begun_again(url: str, n_failures: int) -> None:
    ledger = Ledger(f"{url}/out", "_ledger.json", {"seed": 0})
    ledger.claim()
    storage.write_bytes(f"{url}/out/piece", b"work")
    ledger.finish()
    with failing(n_failures, below="out"):
        if n_failures == 3:
            assert ledger.claim(overwrite=True) is Claim.FINISHED
        else:
            with pytest.raises(OSError, match="Input/output error"):
                ledger.claim(overwrite=True)
    assert storage.read_bytes(f"{url}/out/piece") == b"work"
    assert read_json(f"{url}/out/_ledger.json") == {"seed": 0, "complete": True}


@pytest.mark.parametrize("n_failures", [3, 99])
def test_a_store_that_cannot_be_reached_is_not_absent(url: str, n_failures: int) -> None:
    store = f"{url}/features.zarr"
    storage.write_bytes(f"{store}/zarr.json", b"{}")
    with failing(n_failures), pytest.raises((OSError, ValueError)) as caught:
        FeatureStore.open(store)
    assert not isinstance(caught.value, FileNotFoundError)
    assert storage.read_bytes(f"{store}/zarr.json") == b"{}"


def test_zarr_is_told_the_same(url: str) -> None:
    fs, path = storage.asynchronous(f"{url}/a")
    with failing(3):
        assert asyncio.run(fs._exists(f"{path}/1.jpg"))
    with failing(3):
        assert asyncio.run(fs._cat_file(f"{path}/1.jpg", start=1, end=3)) == b"23"
    with failing(3):
        asyncio.run(fs._pipe_file(f"{path}/2.jpg", b"2"))
    assert not asyncio.run(fs._exists(f"{path}/3.jpg"))
    with failing(99), pytest.raises(OSError, match=f"{url.split('//')[1]}/a/1.jpg"):
        asyncio.run(fs._exists(f"{path}/1.jpg"))
    assert storage.list_names(f"{url}/a") == ["1.jpg", "2.jpg"]
    assert storage.list_names(f"{url}/b") == storage.list_names(f"{url}/a/1.jpg/c") == []


def test_a_disk_that_blinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"1")
    info, failures = Local.info, iter([errno.ESTALE, errno.EIO, errno.ETIMEDOUT])

    def blink(self: Local, path: Any, **kwargs: Any) -> Any:
        if number := next(failures, None):
            raise OSError(number, "blinks", str(path))
        return info(self, path, **kwargs)

    monkeypatch.setattr(Local, "info", blink)
    assert storage.exists(str(tmp_path / "a"))


def test_a_full_disk_names_the_place_and_what_to_do(url: str) -> None:
    for number, said in (
        (errno.ENOSPC, "no space is left there"),
        (errno.EDQUOT, "the quota there is used up"),
        (errno.EROFS, "its file system is read-only now"),
    ):
        with failing(99, OSError(number, "full")) as calls:
            with pytest.raises(
                OSError, match=rf"{url}/b cannot be written: {said}\. Free some"
            ) as caught:
                storage.write_bytes(f"{url}/b", b"1")
            assert caught.value.errno == number
            assert len(calls) <= 2  # the write, and the removal of what was half written


def test_a_full_device() -> None:
    with (
        pytest.raises(FullError, match="/dev/full cannot be written: no space is left there"),
        retries.naming_full("/dev/full"),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"1")


def test_no_room_for_a_copy_on_this_machine(url: str) -> None:
    with (
        failing(99, OSError(errno.ENOSPC, "full"), only="get_file"),
        pytest.raises(FullError, match=rf"^{tempfile.gettempdir()} cannot be written: no space"),
        storage.local_copy(f"{url}/a/1.jpg"),
    ):
        pass


def test_a_small_disk_runs_full(small_disk: Path) -> None:
    url = f"{small_disk}/out/head.npz"
    storage.write_bytes(url, bytes(100_000))
    said = rf"^{url} cannot be written: no space is left there\. Free some, or choose another place"
    with pytest.raises(FullError, match=said):
        storage.write_bytes(url, bytes(300_000))
    source = small_disk.parent / "source"
    source.write_bytes(bytes(300_000))
    with pytest.raises(FullError, match=said):
        storage.put(str(source), url)
    fs, path = storage.asynchronous(f"{small_disk}/out")
    with pytest.raises(FullError, match=rf"^{small_disk}/out/c/0 cannot be written"):
        asyncio.run(fs._pipe_file(f"{path}/c/0", bytes(300_000)))
    assert {file.path: file.n_bytes for file in storage.walk(str(small_disk))} == {
        "out/head.npz": 100_000
    }
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(FullError, match=rf"^{url} cannot be written: its file system is read-only"):
        storage.write_bytes(url, b"")


class _Answers(BaseHTTPRequestHandler):
    """Answers with the status that the path is."""

    def do_HEAD(self) -> None:
        self.send_response(int(self.path.strip("/")))
        self.send_header("Content-Length", "2")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


def test_a_web_server_that_fails_says_nothing_of_absence() -> None:
    with HTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            assert storage.exists(f"{url}/200")
            assert not storage.exists(f"{url}/404")
            for status in (403, 500, 503):
                with pytest.raises(OSError, match=f"{url}/{status}: {status}"):
                    storage.exists(f"{url}/{status}")
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(OSError, match=f"{url}/200: Cannot connect"):
        storage.exists(f"{url}/200")


def test_an_error_of_hdfs_is_not_its_own_cause() -> None:
    """Dask follows causes to their end, and would fill the worker's memory with them."""
    hdfs: Any = SimpleNamespace(unstrip_protocol=str)

    def fail() -> None:
        raise RuntimeError('RPCError("a.b.AccessControlException", "Permission denied")')

    with pytest.raises(PermissionError, match="Permission denied") as caught:
        Hdfs.attempt(hdfs, "hdfs://n/a", lambda: Hdfs.attempt(hdfs, "hdfs://n/a", fail))
    causes: list[BaseException | None] = [caught.value]
    while causes[-1] is not None:
        assert causes[-1].__cause__ not in causes
        causes.append(causes[-1].__cause__)


def test_hdfs_without_room_says_so() -> None:
    said = "File /a could only be written to 0 of the 1 minReplication nodes."
    error = RuntimeError(f'RPCError("java.io.IOException", "{said}")')
    full = translate(error, "hdfs://n/a")
    assert re.search(r"hdfs://n/a cannot be written: .* full, see .*: File /a could", str(full))
    kind = "org.apache.hadoop.hdfs.protocol.DSQuotaExceededException"
    full = translate(RuntimeError(f'RPCError("{kind}", "quota = 1 MB")'), "hdfs://n/a")
    assert re.search(r"quota of space is used up: .* 1 MB\. Remove files, or ask", str(full))


def test_two_threads_ask(url: str) -> None:
    found: list[bool] = []
    threads = [threading.Thread(target=lambda: found.append(storage.exists(url))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8
