"""Names with characters that mean something to others, and URLs that are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import Run, all_files

from dtl import storage
from dtl.config.errors import UserError

NAMES = (
    "IMG::1.jpg", "a::b::c", "file::x", "zip::x", "memory::", "a#1.jpg", "a?b=c.jpg", "50%.jpg",
    "%20", "a[1].jpg", "a[b]/c*.jpg", "*.jpg", "a?c", "{x}.jpg", " lead and trail ", "ä 日本 ñ",
    "a:b", "~x", "back\\slash", "quote'\".jpg", "&;|$.jpg", "+", "--x", "c;d,e=f@g",
)  # fmt: skip


def test_names_are_taken_as_they_are(root: str) -> None:
    expected = {}
    on_hdfs = root.startswith(("hdfs:", "webhdfs:"))  # which refuses colons itself
    for number, name in enumerate(name for name in NAMES if not (on_hdfs and ":" in name)):
        expected[name] = f"{number}".encode()
        storage.write_bytes(storage.join(root, name), expected[name])
    if root.startswith(("/", "memory:")):
        expected["line\nbreak"] = b"x"
        storage.write_bytes(storage.join(root, "line\nbreak"), b"x")
    assert all_files(root) == expected
    for name, data in expected.items():
        url = storage.join(root, name)
        assert storage.is_file(url)
        assert storage.size(url) == len(data)
        assert storage.read_start(url, 99) == storage.read_bytes(url, 99) == data
        assert storage.read_file(storage.Extent(url, 0, 1)) == data[:1]
        with storage.local_copy(url) as path:
            assert Path(path).read_bytes() == data


def test_no_name_is_taken_for_a_pattern(root: str) -> None:
    names = ["a[b]", "ab", "a*", "axx", "a?", "c[d]/e", "cd/e", "c[d]/e.partial", "cd/e.partial"]
    for name in names:
        storage.write_bytes(storage.join(root, name), b"")
    for name in ("a[b]", "a*", "a?"):
        storage.remove(storage.join(root, name))
        names.remove(name)
        assert sorted(all_files(root)) == sorted(names)
    storage.remove_partials(storage.join(root, "c[d]"))
    if not root.startswith("s3:"):
        names.remove("c[d]/e.partial")
    assert sorted(all_files(root)) == sorted(names)
    storage.empty_folder(storage.join(root, "c[d]"), keep="x")
    assert sorted(all_files(root)) == sorted(set(names) - {"c[d]/e", "c[d]/e.partial"})


@pytest.mark.parametrize("url", ["a::b", "/data/a::b", "memory://a::b", "s3://bucket/x::y/z"])
def test_double_colons_are_refused_where_a_place_is_given(url: str) -> None:
    with pytest.raises(UserError, match=r"'.*::.*' has '::' in it, .* Rename that file or folder"):
        storage.absolute(url)


def test_a_place_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(UserError, match=r"'/data/caf\\xe9' is not UTF-8\. Rename"):
        storage.absolute("/data/caf\udce9")


@pytest.mark.parametrize("url", ["zip://photos.zip", "zip://*.jpg::photos.zip", "tar://x.tar"])
def test_a_place_in_an_archive(url: str) -> None:
    with pytest.raises(UserError, match=r"is a place in an archive\. Unpack that, and give the f"):
        storage.absolute(url)


def test_folders_of_a_web_server() -> None:
    with pytest.raises(UserError, match=r"^http://host/photos: the folders of a web server cannot"):
        next(storage.walk("http://host/photos"))


@pytest.mark.parametrize("name", ["photos.zip", "photos.tgz", "photos.tar.gz", "photos.7z"])
def test_an_archive_in_the_place_of_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(NotADirectoryError, match=rf"Not a folder: .*/{name}\. Unpack it, and give"):
        next(storage.walk(str(tmp_path / name)))


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///data/a#b", "/data/a#b"),
        ("/data/file:x", "/data/file:x"),
        ("memory://x/a::b", "/x/a::b"),
        ("memory://", ""),
        ("hdfs://host:8020/a/b?c#d::e", "/a/b?c#d::e"),
        ("hdfs://host:8020/a/", "/a"),
        ("webhdfs://host:9870/a?b#c", "/a?b#c"),
        ("http://host/a?b=c", "http://host/a?b=c"),
    ],
)
def test_the_path_on_a_filesystem(url: str, path: str) -> None:
    assert storage.filesystem(url)[1] == path


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given in ("a", "./a", "././a/", f"{tmp_path}/a"):
        assert storage.absolute(given) == f"{tmp_path}/a"
    assert storage.absolute(".") == storage.absolute("./") == str(tmp_path)
    assert storage.absolute("/") == "/"
    assert storage.absolute("file:x") == f"{tmp_path}/file:x"
    assert storage.absolute("~") == str(Path.home())


@pytest.mark.parametrize(
    "arguments",
    [
        ("featurize", "--images", "photos", "--out", "a::b"),
        ("featurize", "--images", "a::b", "--out", "out"),
        ("featurize", "--images", "photos", "--out", "out", "--features.weights", "a::b.h5"),
        ("run", "--images", "photos", "--out", "out", "--train.start-from", "a::b"),
        ("train", "--out", "a::b"),
        ("predict", "--model", "a::b", "--images", "photos", "--out", "out"),
        ("fetch", "caltech256", "--to", "a::b"),
        ("pack-environment", "--out", "a::b.tar"),
    ],
)
def test_commands_refuse_double_colons_and_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Run, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()  # another run's, into which fsspec would have written
    done = here(*arguments)
    assert done.returncode == 1
    assert re.search(r"error: .*::.*[Rr]ename ", done.stderr)
    assert "a::b" in done.stderr
    assert all_files(str(tmp_path)) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
