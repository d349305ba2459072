"""Listing: whatever lies in a folder is yielded, with a reason where it is no file to read."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flaky import failing

from dtl import storage
from dtl.config import ImagesConfig
from dtl.images.listing import list_images
from dtl.storage import Found
from dtl.storage.local import Local

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def url() -> Iterator[str]:
    url = f"flaky://{uuid.uuid4().hex}"
    for path in ("cat/1.jpg", "cat/deep/2.jpg", "dog/3.jpg"):
        storage.write_bytes(f"{url}/{path}", b"x")
    yield url
    storage.remove(url)


PATHS = ["cat/1.jpg", "cat/deep/2.jpg", "dog/3.jpg"]


def test_files_come_sorted_a_folders_own_first(root: str) -> None:
    for path in ("b/2.jpg", "b/a/3.jpg", "b/1.jpg", "a/x.jpg", "a-b/y.jpg", "z.txt", "B/w.jpg"):
        storage.write_bytes(storage.join(root, path), b"")
    assert [found.path for found in storage.walk(root)] == [
        "z.txt", "B/w.jpg", "a/x.jpg", "a-b/y.jpg", "b/1.jpg", "b/2.jpg", "b/a/3.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize("gone", ["a/0.partial", "b"])
def test_half_written_files_that_their_writers_end_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    for path in ("a/0.partial", "a/1.partial", "b/2.partial", "c/3.partial", "c/whole"):
        storage.write_bytes(f"{tmp_path}/{path}", b"")
    ls = Local.ls

    def list_then_lose(self: Local, path: str, **kwargs: Any) -> Any:
        found = ls(self, path, **kwargs)
        if (Path(path) / Path(gone).name).exists():
            storage.remove(f"{tmp_path}/{gone}")
        return found

    monkeypatch.setattr(Local, "ls", list_then_lose)
    storage.remove_partials(str(tmp_path))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["whole"]


def test_a_folder_that_blinks_is_listed(url: str) -> None:
    with failing(3, below="dog"):
        assert [found.path for found in storage.walk(url)] == PATHS


@pytest.mark.parametrize("folder", ["cat", "cat/deep", "dog"])
@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.EIO, "Input/output error"), "Try again later"),
        (OSError("the server is busy"), "Try again later"),
        (PermissionError(13, "Permission denied"), r"Ask for permission .*\(chmod\)"),
    ],
)
def test_a_folder_that_cannot_be_listed_is_an_error(
    url: str, folder: str, error: OSError, advice: str
) -> None:
    with (
        failing(99, error, below=folder),
        pytest.raises(
            type(error), match=rf"(?s){url}/{folder} .*its files would be missed\. {advice}"
        ),
    ):
        list(storage.walk(url))


def test_a_folder_that_goes_away_is_an_error(url: str) -> None:
    with (
        failing(99, FileNotFoundError(2, "gone"), below="dog"),
        pytest.raises(OSError, match=rf"{url}/dog was removed while being listed"),
    ):
        list(storage.walk(url))


AS_A_USER = """
import os, sys
from dtl import storage
from dtl.config import ImagesConfig
from dtl.images.listing import list_images
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    print([found.path for found in storage.walk(sys.argv[1])])
except PermissionError as error:
    print(*error.__notes__)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become an ordinary user")
@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_class_that_an_ordinary_user_may_not_list(tmp_path: Path, mode: int) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.jpg").write_bytes(b"1")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and str(folder).startswith("/tmp/"):
            folder.chmod(folder.stat().st_mode | 0o555)
    (tmp_path / "photos/cat").chmod(mode)
    done = subprocess.run(
        [sys.executable, "-c", AS_A_USER, tmp_path / "photos"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert f"{tmp_path}/photos/cat may not be listed" in done.stdout
    assert "(chmod)" in done.stdout


def test_only_regular_files_have_no_problem(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    photo = tmp_path / "cat/photo.jpg"
    photo.write_bytes(b"12345")
    os.mkfifo(tmp_path / "cat/pipe.jpg")
    for link, target in {
        "to_pipe.jpg": "pipe.jpg", "to_photo.jpg": "photo.jpg", "self.jpg": "self.jpg",
        "one": "two", "two": "one", "nowhere.jpg": "gone.jpg", "below_a_file": "photo.jpg/x",
        "to_null.jpg": "/dev/null", "up": "..", "here": ".",
    }.items():  # fmt: skip
        (tmp_path / "cat" / link).symlink_to(target)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "cat/socket.jpg"))
        found = list(storage.walk(str(tmp_path)))
    assert found == [
        Found("cat/below_a_file", 0, "a link to nowhere"),
        Found("cat/here", 0, "a link to a folder above itself"),
        Found("cat/nowhere.jpg", 0, "a link to nowhere"),
        Found("cat/one", 0, "a link to itself"),
        Found("cat/photo.jpg", 5),
        Found("cat/pipe.jpg", 0, "a named pipe"),
        Found("cat/self.jpg", 0, "a link to itself"),
        Found("cat/socket.jpg", 0, "a socket"),
        Found("cat/to_null.jpg", 0, "a link to a device"),
        Found("cat/to_photo.jpg", 5),
        Found("cat/to_pipe.jpg", 0, "a link to a named pipe"),
        Found("cat/two", 0, "a link to itself"),
        Found("cat/up", 0, "a link to a folder above itself"),
    ]


def test_a_device_is_no_file() -> None:
    assert Found("null", 0, "a device") in list(storage.walk("/dev"))


def test_reading_a_pipe_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (
        lambda: storage.read_start(str(tmp_path / "pipe"), 9),
        lambda: storage.read_bytes(str(tmp_path / "pipe"), 9),
        lambda: storage.Reader([str(tmp_path / "pipe")], 9).read(0),
    ):
        with pytest.raises(OSError, match=r"Not a regular file: .*/pipe"):
            read()


def test_names_that_are_not_utf_8_are_shown(tmp_path: Path) -> None:
    here = os.fsencode(tmp_path)
    os.mkdir(here + b"/caf\xe9")
    for name in (b"/caf\xe9/1.jpg", b"/b\xff.jpg", "/ä.jpg".encode()):
        with open(here + name, "wb"):
            pass
    found = list(storage.walk(str(tmp_path)))
    assert found == [
        Found("b\\xff.jpg", 0, "its name is not UTF-8"),
        Found("ä.jpg", 0),
        Found("caf\\xe9/1.jpg", 0, "its name is not UTF-8"),
    ]
    for file in found:
        file.path.encode()


def test_the_names_of_the_field(cases: Path, pictures: Path) -> None:
    (pictures / "blue").rename(pictures / "cat")
    (pictures / "cat/0.jpg").rename(pictures / "cat/01.jpg")
    script = (cases / "names/make.sh").read_text().replace("chmod 000 cat", "")
    subprocess.run(["sh", "-c", script], cwd=pictures, check=True)
    found = {file.path: file for file in storage.walk(str(pictures))}
    problems = {path: file.problem for path, file in found.items() if file.problem}
    assert problems == {
        "cat/caf\\xe9.jpg": "its name is not UTF-8", "cat/pipe": "a named pipe",
        "cat/self": "a link to itself",
    }  # fmt: skip
    assert len(found) == 24 + 1 + len(problems)
    url = storage.join(str(pictures), "cat/IMG::1.jpg")
    assert storage.read_file(url) == (pictures / "cat/01.jpg").read_bytes()
    assert "cat/IMG::1.jpg" in list_images(ImagesConfig(url=str(pictures)), 0).path.tolist()


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere/cats").mkdir(parents=True)
    (tmp_path / "elsewhere/cats/1.jpg").write_text("12345")
    photos = tmp_path / "photos"
    (photos / "dogs").mkdir(parents=True)
    (photos / "dogs/2.jpg").symlink_to("../../elsewhere/cats/1.jpg")
    (photos / "cats").symlink_to("../elsewhere/cats")
    (tmp_path / "link").symlink_to("photos")
    expected = [Found("cats/1.jpg", 5), Found("dogs/2.jpg", 5)]
    assert list(storage.walk(str(photos))) == expected
    assert list(storage.walk(str(tmp_path / "link"))) == expected


def test_links_in_a_circle_are_followed_once(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jpg").write_text(name)
    (tmp_path / "a/to_b").symlink_to("../b")
    (tmp_path / "b/to_a").symlink_to("../a")
    above = "a link to a folder above itself"
    assert list(storage.walk(str(tmp_path))) == [
        Found("a/a.jpg", 1), Found("a/to_b/b.jpg", 1), Found("a/to_b/to_a", 0, above),
        Found("b/b.jpg", 1), Found("b/to_a/a.jpg", 1), Found("b/to_a/to_b", 0, above),
    ]  # fmt: skip


def test_folders_may_be_left_out_and_are_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("cat/1.jpg", "cat/@eaDir/1.jpg", "lost+found/x"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
    listed: list[str] = []
    ls = Local.ls

    def watch(self: Local, path: str, **kwargs: Any) -> Any:
        listed.append(path)
        return ls(self, path, **kwargs)

    monkeypatch.setattr(Local, "ls", watch)
    hidden = {"@eaDir": "hidden", "lost+found": "hidden"}
    found = list(storage.walk(str(tmp_path), lambda name: hidden.get(name, "")))
    assert found == [
        Found("lost+found", 0, "hidden"), Found("cat/1.jpg", 1), Found("cat/@eaDir", 0, "hidden"),
    ]  # fmt: skip
    assert listed == [str(tmp_path), f"{tmp_path}/cat"]


def test_a_deep_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(1100):  # more than Python's recursion
        os.mkdir("a")
        os.chdir("a")
    Path("1.jpg").write_text("x")
    os.chdir(tmp_path)
    assert [found.path for found in storage.walk(str(tmp_path))] == ["a/" * 1100 + "1.jpg"]
    storage.remove_partials(str(tmp_path))
    for _ in range(1100):
        os.chdir("a")
    Path("1.jpg").unlink()
    for _ in range(1100):
        os.chdir("..")
        os.rmdir("a")


def test_a_stores_own_empty_object_is_no_file(s3: str) -> None:
    url = f"{s3}/{uuid.uuid4().hex}"
    fs, path = storage.filesystem(url)
    for name in ("photos/", "photos/cat/", "photos/cat/1.jpg"):
        fs.pipe_file(f"{path}/{name}", b"")
    assert list(storage.walk(f"{url}/photos")) == [Found("cat/1.jpg", 0)]
    fs.pipe_file(f"{path}/photos/cat//2.jpg", b"2")
    assert list(storage.walk(f"{url}/photos")) == [
        Found("cat//", 0, "a name with nothing between two slashes"), Found("cat/1.jpg", 0),
    ]  # fmt: skip
    assert storage.list_names(f"{url}/photos/cat") == ["1.jpg"]
    storage.empty_folder(f"{url}/photos", keep="cat")
    assert storage.exists(f"{url}/photos/cat/1.jpg")
