"""A data set from a server: whole, and only what belongs to it, whatever the server does."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import contents, jpeg

from dtl import config, storage
from dtl.config import Config, ImagesConfig
from dtl.images import fetching, listing
from dtl.images.fetching import DATASETS, fetch
from dtl.pipeline import command_line
from dtl.storage import FullError
from dtl.storage.ledger import IMAGES

CALTECH = DATASETS["caltech256"]
CLASSES = ("001.ak47", "056.dog", "198.spider")
STRAYS = {
    "198.spider/RENAME2": "not an image",
    "056.dog/greg/vision309/notes": "not an image",
    "056.dog/greg/056_0001.jpg": "no image of the data set",
    "056.dog/._056_0001.jpg": "hidden file",
    "../evil.jpg": "unsafe name in a tar",
    "/tmp/evil.jpg": "unsafe name in a tar",
    "001.ak47/link.jpg": "a link in a tar",
}


def photographs() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    files = {
        f"{name}/{name[:3]}_{k:04d}.jpg": jpeg(rng.integers(0, 256, (60, 60, 3), np.uint8))
        for name in CLASSES
        for k in range(1, 13)
    }
    files["198.spider/198_0003.jpg"] = b"not a photograph"  # which featurize will say
    files["056.dog/056_0002.jpg"] = files["056.dog/056_0001.jpg"]
    return files


PHOTOGRAPHS = photographs()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sorted by class below one folder, with strays, as the official archive is."""
    path = tmp_path_factory.mktemp("archive") / "objects.tar"
    with tarfile.open(path, "w") as tar:

        def add(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data), kind, "/etc/passwd"
            tar.addfile(info, io.BytesIO(data))

        for name, data in sorted(PHOTOGRAPHS.items()):
            add(f"Objects/{name}", data)
        for name in STRAYS:
            outside = name.startswith((".", "/"))
            data = b"stray" if not name.endswith(".jpg") else jpeg(np.zeros((8, 8, 3), np.uint8))
            if "link" in name:
                add(f"Objects/{name}", b"", tarfile.SYMTYPE)
            else:
                add(name if outside else f"Objects/{name}", data)
    return path


class Server:
    """Serves one file; says what was asked for."""

    def __init__(self, data: bytes, *, ranges: bool = True) -> None:
        self.data, self.ranges = data, ranges
        self.breaks_after: list[int] = []
        """Bytes of each answer to come after which the connection breaks."""
        self.status = 0
        self.asked: list[str | None] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers["Range"]
        self.asked.append(asked)
        if self.status:
            handler.send_error(self.status)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.ranges else 0  # type: ignore[index]
        total = len(self.data)
        if start >= total:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{total}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if asked and self.ranges:
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(total - start))
        handler.end_headers()
        stop = start + self.breaks_after.pop(0) if self.breaks_after else total
        handler.wfile.write(self.data[start:stop])


@contextmanager
def serving(server: Server) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}/objects.tar"
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture
def server(archive: Path) -> Server:
    return Server(archive.read_bytes())


Fetch = Callable[..., None]


@pytest.fixture
def small(
    server: Server, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Fetch]:
    """`fetch` of the small archive, from the server unless told otherwise."""
    monkeypatch.setattr(fetching, "_PAUSE_S", 0.001)
    monkeypatch.setattr(fetching, "_BLOCK_BYTES", 4096)
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    with serving(server) as url:
        dataset = replace(CALTECH, url=url, n_bytes=archive.stat().st_size, md5=md5)
        monkeypatch.setitem(DATASETS, "caltech256", dataset)

        def run(out: Path | str, settings: dict[str, Any] | None = None, **options: str) -> None:
            c = config.build({"out": str(out)}, settings or {})
            fetch("caltech256", c, scratch=str(tmp_path / "scratch"), **options)

        yield run


def images_in(folder: Path) -> dict[str, bytes]:
    return {path: data for path, data in contents(folder).items() if path != IMAGES}


def scratch(tmp_path: Path) -> list[str]:
    return sorted(path.suffix for path in (tmp_path / "scratch").iterdir())


# --- layouts -------------------------------------------------------------------------------------


def test_the_official_archive_is_named() -> None:
    assert CALTECH.url.endswith("/records/nyy15-4j048/files/256_ObjectCategories.tar")
    assert (CALTECH.n_bytes, CALTECH.md5) == (1183006720, "67b4f42ca05d46448c6bb8ecd2220f6d")
    for path, kept in (
        ("257.clutter/257_0827.jpg", True), ("198.spider/RENAME2", False),
        ("056.dog/greg/vision309/056_0001.jpg", False), ("003.backpack/003_0001.png", False),
    ):  # fmt: skip
        assert (re.fullmatch(CALTECH.image, path) is not None) == kept
    assert "CC BY 4.0" in CALTECH.licence


def test_class_folders(
    small: Fetch, tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "dtl"):
        small(tmp_path / "out")
    assert images_in(tmp_path / "out") == PHOTOGRAPHS
    assert server.asked == [None]
    assert f"{len(STRAYS)} members of the archive are left out" in caplog.text
    for name, reason in STRAYS.items():
        assert f"{name}: {reason}" in caplog.text
    assert "CC BY 4.0" in caplog.text
    assert not list(tmp_path.rglob("evil*"))
    assert scratch(tmp_path) == []  # nothing of the archive is left
    found = listing.list_images(ImagesConfig(url=str(tmp_path / "out")), 0)
    assert (len(found), found.class_names, found.left_out) == (36, CLASSES, ())


def test_split_folders(small: Fetch, tmp_path: Path) -> None:
    split = {"split": {"validation": 0.25, "test": 0.25}}
    small(tmp_path / "out", split, layout="split")
    files = images_in(tmp_path / "out")
    assert {path.split("/", 1)[1]: data for path, data in files.items()} == PHOTOGRAPHS
    found = listing.list_images(ImagesConfig(url=str(tmp_path / "out")), 0)
    assert np.bincount(found.given_split).tolist() == [18, 9, 9]
    twins = [path.split("/")[0] for path in files if re.search(r"056_000[12]", path)]
    assert twins[0] == twins[1]  # the same bytes
    small(tmp_path / "few", {"split": {"train_per_class": 2}}, layout="split")
    few = [path.split("/")[1] for path in images_in(tmp_path / "few") if path[:6] == "train/"]
    assert few.count("001.ak47") == few.count("198.spider") == 2


def test_every_column_has_the_rows_of_the_data_set(archive: Path) -> None:
    listed = fetching._list_archive(str(archive), CALTECH, 0)
    names = ("path", "label", "given_split", "size_bytes", "modified", "tar", "offset")
    assert {len(getattr(listed, name)) for name in names} == {len(PHOTOGRAPHS)}
    assert (listed.modified > 0).all()


def test_tars(small: Fetch, tmp_path: Path) -> None:
    small(tmp_path / "folders")
    small(tmp_path / "tars", {"pack": {"shard_mib": 1}}, layout="tars")
    assert list(images_in(tmp_path / "tars")) == ["shard-000000.tar"]
    folders, packed = (
        listing.list_images(ImagesConfig(url=str(tmp_path / name)), 0)
        for name in ("folders", "tars")
    )
    assert packed.fingerprint == folders.fingerprint


# --- the download --------------------------------------------------------------------------------


def test_a_broken_connection_is_gone_on_with(
    small: Fetch, tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.breaks_after = [20_000, 10_000, 0]
    with caplog.at_level("WARNING", "dtl"):
        small(tmp_path / "out")
    assert images_in(tmp_path / "out") == PHOTOGRAPHS
    assert server.asked == [None, "bytes=20000-", "bytes=30000-", "bytes=30000-"]
    assert f"it ended after 20000 of {len(server.data)} bytes; trying again" in caplog.text


def test_the_next_command_goes_on(small: Fetch, tmp_path: Path, server: Server) -> None:
    server.breaks_after = [40_000, 0, 0, 0, 0, 0]
    message = r"objects\.tar cannot be downloaded: it ended after 40000 of \d+ bytes\. What came is"
    with pytest.raises(OSError, match=message + r" kept in .*\.partial; the same command goes on"):
        small(tmp_path / "out")
    assert scratch(tmp_path) == [".partial"]
    assert len(server.asked) == 5
    server.breaks_after = []
    small(tmp_path / "out")
    assert server.asked[5:] == ["bytes=40000-"]
    assert images_in(tmp_path / "out") == PHOTOGRAPHS


def test_a_server_without_ranges(small: Fetch, tmp_path: Path, server: Server) -> None:
    server.ranges = False
    server.breaks_after = [20_000, 50_000]
    small(tmp_path / "out")
    assert images_in(tmp_path / "out") == PHOTOGRAPHS
    assert server.asked == [None, "bytes=20000-", "bytes=50000-"]


def test_a_server_without_ranges_that_always_breaks(
    small: Fetch, tmp_path: Path, server: Server
) -> None:
    server.ranges = False
    server.breaks_after = [20_000] * 99
    with pytest.raises(OSError, match="cannot be downloaded: it ended after 20000 of"):
        small(tmp_path / "out")
    assert len(server.asked) == 5


@pytest.fixture
def partial(small: Fetch, tmp_path: Path, server: Server) -> Path:
    """What an interrupted download left."""
    server.breaks_after = [0] * 5
    with pytest.raises(OSError, match="cannot be downloaded"):
        small(tmp_path / "out")
    server.breaks_after, server.asked = [], []
    (left,) = (tmp_path / "scratch").iterdir()
    return left


def test_a_whole_partial_file_is_not_downloaded_again(
    small: Fetch, tmp_path: Path, server: Server, partial: Path
) -> None:
    partial.write_bytes(server.data)
    small(tmp_path / "out")
    assert server.asked == [f"bytes={len(server.data)}-"]
    assert images_in(tmp_path / "out") == PHOTOGRAPHS


def test_a_partial_file_of_something_longer_is_begun_anew(
    small: Fetch, tmp_path: Path, server: Server, partial: Path
) -> None:
    partial.write_bytes(server.data + b"more")
    small(tmp_path / "out")
    assert images_in(tmp_path / "out") == PHOTOGRAPHS


def test_a_server_that_is_busy_or_knows_nothing(
    small: Fetch, tmp_path: Path, server: Server
) -> None:
    server.status = 404
    with pytest.raises(OSError, match=r"objects\.tar: HTTP Error 404: .*Check `source`\."):
        small(tmp_path / "out")
    assert len(server.asked) == 1
    server.status = 503
    with pytest.raises(OSError, match=r"HTTP Error 503.*bring the archive by other means"):
        small(tmp_path / "out")
    assert len(server.asked) == 6


def test_no_server(small: Fetch, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"Connection refused.*Without internet here, bring"):
        small(tmp_path / "out", source="http://127.0.0.1:9/objects.tar")


def test_damage_on_the_way(small: Fetch, tmp_path: Path, server: Server) -> None:
    whole = server.data
    server.data = whole[:5000] + b"X" + whole[5001:]
    with pytest.raises(ValueError, match=r"has the MD5 [0-9a-f]{32} instead of .* Try again, or"):
        small(tmp_path / "out")
    assert scratch(tmp_path) == []
    server.data = whole
    small(tmp_path / "out")
    assert images_in(tmp_path / "out") == PHOTOGRAPHS


def test_another_size_is_refused_before_it_is_downloaded(
    small: Fetch, tmp_path: Path, server: Server
) -> None:
    n_bytes = len(server.data)
    server.data += bytes(10_000)
    message = (
        rf"has {n_bytes + 10_000} bytes, the official archive has {n_bytes}\. .*`md5`, or none"
    )
    with pytest.raises(ValueError, match=message):
        small(tmp_path / "out")
    assert not images_in(tmp_path / "out")
    with pytest.raises(ValueError, match="has the MD5"):
        small(tmp_path / "a", md5="0" * 32)
    small(tmp_path / "b", md5=hashlib.md5(server.data).hexdigest().upper())
    small(tmp_path / "c", md5="none")
    assert images_in(tmp_path / "b") == images_in(tmp_path / "c") == PHOTOGRAPHS


@pytest.mark.parametrize("memory", [False, True])
def test_a_file_at_hand(
    small: Fetch, tmp_path: Path, server: Server, archive: Path, memory: bool
) -> None:
    source = f"memory://{tmp_path.name}/objects.tar" if memory else str(archive)
    if memory:
        storage.write_bytes(source, server.data)
    small(tmp_path / "out", source=source)
    assert images_in(tmp_path / "out") == PHOTOGRAPHS
    assert server.asked == []
    assert storage.read_bytes(source) == server.data
    storage.remove(f"memory://{tmp_path.name}")
    with pytest.raises(FileNotFoundError, match=r"No such file: .*gone\.tar\. Check `source`\."):
        small(tmp_path / "other", source=str(tmp_path / "gone.tar"))


def test_what_is_no_archive_of_the_data_set(small: Fetch, tmp_path: Path, archive: Path) -> None:
    (tmp_path / "text.tar").write_bytes(b"<html>Please log in</html>" * 99)
    with pytest.raises(ValueError, match=r"text\.tar is not a whole tar"):
        small(tmp_path / "out", source=str(tmp_path / "text.tar"), md5="none")
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        for name in ("a/1.jpg", "b/2.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(ValueError, match=r"other\.tar has no image of the data set"):
        small(tmp_path / "out2", source=str(tmp_path / "other.tar"), md5="none")


# --- the target ----------------------------------------------------------------------------------


def test_what_is_there_is_not_written_again(
    small: Fetch, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, written = tmp_path / "out", []
    write_bytes = storage.write_bytes

    def fails_in_the_middle(url: str, data: bytes) -> None:
        if len(written) == 10:
            raise OSError("No space left on device")
        if url.endswith(".jpg"):
            written.append(url)
        write_bytes(url, data)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_bytes", fails_in_the_middle)
        with pytest.raises(OSError, match="No space left"):
            small(out)
    with pytest.raises(ValueError, match="says that its folder is not complete"):
        listing.list_images(ImagesConfig(url=str(out)), 0)
    there = {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    assert 10 <= len(there) < 36
    (out / "001.ak47" / "001_0001.jpg.0123.partial").write_bytes(b"half")
    cut = next(iter(there))
    cut.write_bytes(cut.read_bytes()[:100])
    small(out)
    assert len(server.asked) == 1  # the archive was kept
    assert images_in(out) == PHOTOGRAPHS
    del there[cut]
    assert {path: path.stat().st_mtime_ns for path in there} == there
    small(out)
    assert len(server.asked) == 1


def test_something_else_is_there(
    small: Fetch, tmp_path: Path, server: Server, archive: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"mine is not empty: it has thesis\.txt"):
            small(tmp_path / "mine", {"overwrite": overwrite})
    out = tmp_path / "out"
    small(out)
    with pytest.raises(ValueError, match=r"layout: asked for 'tars', stored 'folders'"):
        small(out, layout="tars")
    assert images_in(out) == PHOTOGRAPHS
    assert len(server.asked) == 1  # all that was known before the download
    small(out, {"overwrite": True}, layout="tars")
    assert list(images_in(out)) == ["shard-000000.tar"]


def test_straight_to_hdfs(small: Fetch, tmp_path: Path, server: Server, hadoop: Any) -> None:
    url = f"{hadoop.url}/tmp/{tmp_path.name}"
    small(f"{url}/folders")
    written = {file.path for file in storage.walk(f"{url}/folders")}
    assert written - {IMAGES} == PHOTOGRAPHS.keys()
    assert all(storage.read_bytes(f"{url}/folders/{p}") == PHOTOGRAPHS[p] for p in PHOTOGRAPHS)
    storage.write_bytes(f"{url}/objects.tar", server.data)
    small(f"{url}/tars", layout="tars", source=f"{url}/objects.tar")
    folders, packed = (
        listing.list_images(ImagesConfig(url=f"{url}/{name}"), 0) for name in ("folders", "tars")
    )
    assert packed.fingerprint == folders.fingerprint
    storage.remove(url)


def test_the_command(
    small: Fetch, tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fetch", "caltech256", "--to", str(tmp_path / "out"), "--from", str(archive)]
    assert command_line.main([*arguments, "--layout", "tars", "--pack.shard-mib", "1"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"caltech256: {tmp_path}/out\n"
    assert "packing: 36 of 36 images" in printed.err
    assert "dashboard" not in printed.err
    assert command_line.main([*arguments, "--layout", "tars", "--pack.shard-mib", "1"]) == 0
    assert "fetch: done before" in capsys.readouterr().err
    assert command_line.main(arguments) == 1
    assert "layout: asked for 'folders', stored 'tars'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command_line.main(["fetch", "caltech257", "--to", str(tmp_path)])
    assert "invalid choice: 'caltech257'" in capsys.readouterr().err
    assert command_line.main(["fetch", "caltech256"]) == 1
    assert "Set --out" in capsys.readouterr().err


def test_settings_out_of_range(small: Fetch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one of folders, split, tars\. Received: 'zip'"):
        small(tmp_path / "out", layout="zip")
    assert Config().pack.shard_mib == 256
    with pytest.raises(ValueError, match=r"pack\.shard_mib must be 1 or more"):
        small(tmp_path / "out", {"pack": {"shard_mib": 0}})


def test_a_full_scratch_is_named_at_once(small_disk: Path) -> None:
    n_bytes = 1 << 20

    def open_at(source: str, start: int) -> tuple[io.BytesIO, int, int]:
        return io.BytesIO(bytes(n_bytes)), 0, n_bytes

    partial = small_disk / "archive.tar.partial"
    with pytest.raises(FullError, match=rf"^{partial} cannot be written: no space is left there"):
        fetching._download("http://host/archive.tar", partial, open_at, n_bytes)
