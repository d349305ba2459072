"""Tars as a source: every image that is in them is listed where its bytes are, and nothing else."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import jpeg
from hypothesis import given
from hypothesis import strategies as st

from dtl import storage
from dtl.config import ImagesConfig
from dtl.images import tars
from dtl.images.decoding import formats
from dtl.images.listing import find_images, list_images
from dtl.images.values import ImageList

Contents = dict[str, bytes]


def photo(k: int) -> bytes:
    return jpeg(np.full((8, 8, 3), k % 256, np.uint8))


def write_tar(path: Path, files: Contents, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def listed(url: Path | str, seed: int = 0) -> ImageList:
    return list_images(ImagesConfig(url=str(url)), seed)


def classes(images_: ImageList) -> dict[str, str]:
    return {
        str(path): images_.class_names[label]
        for path, label in zip(images_.path, images_.label, strict=True)
    }


def read(images_: ImageList) -> Contents:
    files = tars.locate_listed(images_)
    with storage.Reader(files) as reader:
        return {str(path): reader.read(row) for row, path in enumerate(images_.path)}


MIXED = [(f"{name}/{k}.jpg", photo(k)) for k in range(9) for name in ("ant", "bee", "cat")]


# --- headers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_the_headers_say(tmp_path: Path, kind: int) -> None:
    long = "/".join(["a" * 60] * 3)
    files = {"ant/1.jpg": b"1" * 5, f"{long}/2.jpg": b"2" * 512, "bee/3.jpg": b"", "c": b"4" * 9000}
    data = write_tar(tmp_path / "0.tar", files, format=kind).read_bytes()
    requests: list[tuple[int, int]] = []

    def read_range(offset: int, n_bytes: int) -> bytes:
        requests.append((offset, n_bytes))
        return data[offset : offset + n_bytes]

    members = list(tars.read_members(storage.Window(read_range, len(data))))
    assert {m.name: data[m.offset : m.offset + m.n_bytes] for m in members} == files
    assert not any(m.problem for m in members)


def test_only_headers_are_read() -> None:
    sizes = [1_000_000] * 20
    data = b"".join(tars.make_header(f"a/{k}.jpg", n) + bytes(n) + tars.make_padding(n)
                    for k, n in enumerate(sizes)) + tars.END  # fmt: skip
    for ahead_bytes in (0, 1 << 18):
        n_read = 0

        def read_range(offset: int, n_bytes: int) -> bytes:
            nonlocal n_read
            n_read += n_bytes
            return data[offset : offset + n_bytes]

        assert (
            len(list(tars.read_members(storage.Window(read_range, len(data), ahead_bytes)))) == 20
        )
        assert n_read < 25 * 4096 + ahead_bytes


def test_what_is_written_is_read_by_others(tmp_path: Path) -> None:
    names = ["003.backpack/003_0001.jpg", "a" * 200 + ".jpg", "straße/größe.jpg", "x/empty.jpg"]
    files = {name: name.encode() for name in names}
    data = b"".join(
        tars.make_header(n, len(d)) + d + tars.make_padding(len(d)) for n, d in files.items()
    )
    (tmp_path / "0.tar").write_bytes(data + tars.END)
    with tarfile.open(tmp_path / "0.tar") as tar:
        for name in names:
            member = tar.extractfile(name)
            assert member is not None
            assert member.read() == files[name]
        assert {(m.mtime, m.uid, m.uname, m.mode) for m in tar} == {(0, 0, "", 0o644)}


@given(st.lists(st.integers(0, 3000), max_size=40), st.integers(1, 20_000), st.integers(1, 9))
def test_tars_take_every_row_once_in_order(sizes: list[int], most: int, n_most: int) -> None:
    planned = tars.plan_tars(np.array(sizes, np.int64), most, n_most)
    assert [row for rows in planned for row in rows] == list(range(len(sizes)))
    for rows in planned:
        n_bytes = sum(512 + sizes[row] + len(tars.make_padding(sizes[row])) for row in rows)
        assert 1 <= len(rows) <= n_most
        assert n_bytes <= most or len(rows) == 1


# --- layouts -------------------------------------------------------------------------------------


def test_class_folders_in_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "0.tar", dict(MIXED[:15]))
    write_tar(tmp_path / "tars" / "1.tar", dict(MIXED[15:]))
    found = listed(tmp_path / "tars")
    assert found.path.tolist() == [path for path, _ in MIXED]  # their order is random enough
    assert classes(found) == {path: path.split("/")[0] for path, _ in MIXED}
    assert read(found) == dict(MIXED)
    assert found.tar_names == ("0.tar", "1.tar")
    assert found.tar.tolist() == [0] * 15 + [1] * 12
    assert found.left_out == ()


def test_a_tar_stands_for_a_folder_of_its_members(tmp_path: Path) -> None:
    write_tar(tmp_path / "train" / "ant" / "0.tar", {"1.jpg": photo(1), "2.jpg": photo(2)})
    write_tar(tmp_path / "train" / "more.tar", {"./bee/3.jpg": photo(3)})
    (tmp_path / "test" / "bee").mkdir(parents=True)
    (tmp_path / "test" / "bee" / "4.jpg").write_bytes(photo(4))
    found = listed(tmp_path)
    expected = {"train/ant/1.jpg": "ant", "train/ant/2.jpg": "ant", "train/bee/3.jpg": "bee",
                "test/bee/4.jpg": "bee"}  # fmt: skip
    assert classes(found) == expected
    assert {path: data == photo(int(path[-5])) for path, data in read(found).items()} == (
        dict.fromkeys(expected, True)
    )
    assert sorted(found.tar.tolist()) == [-1, 0, 0, 1]


def test_one_tar_with_one_top_folder(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "all.tar", {f"photos/{name}": data for name, data in MIXED})
    found = listed(path)
    assert classes(found) == {path: path.split("/")[0] for path, _ in MIXED}
    assert read(found) == dict(MIXED)


def test_image_and_class_together(tmp_path: Path) -> None:
    files: Contents = {}
    for k, name in enumerate(["ant", "bee", "7", "ant", "rock/pop"]):
        files |= {f"{k:06d}.jpg": photo(k), f"{k:06d}.cls": name.encode()}
        files |= {f"{k:06d}.json": b'{"cls": "another"}', f"{k:06d}.seg.png": photo(k)}
    found = listed(write_tar(tmp_path / "0.tar", files))
    assert classes(found) == {
        "ant/000000.jpg": "ant", "bee/000001.jpg": "bee", "7/000002.jpg": "7",
        "ant/000003.jpg": "ant", "rock_pop/000004.jpg": "rock_pop",
    }  # fmt: skip
    assert read(found)["7/000002.jpg"] == photo(2)
    assert found.left_out == tuple((f"{k:06d}.seg.png", "in no class folder") for k in range(5))


@pytest.mark.parametrize("key", ["cls", "class", "label"])
def test_the_output_of_img2dataset(tmp_path: Path, key: str) -> None:
    for shard in range(2):
        files: Contents = {}
        for k in range(6):
            name = f"{shard:05d}{k:04d}"
            about = {"caption": "a photo", "status": "success", key: ["ant", 3][k % 2]}
            files |= {f"{name}.jpg": photo(k), f"{name}.txt": b"a photo"}
            files[f"{name}.json"] = json.dumps(about if k < 5 else {"caption": "?"}).encode()
        write_tar(tmp_path / f"{shard:05d}.tar", files)
        (tmp_path / f"{shard:05d}.parquet").write_bytes(b"PAR1")
    found = listed(tmp_path)
    assert len(found) == 10
    assert classes(found)["ant/000000000.jpg"] == "ant"
    assert classes(found)["3/000010003.jpg"] == "3"
    assert [path for path, _ in found.left_out] == [
        "00000.parquet", "000000005.jpg", "00001.parquet", "000010005.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [("a.cls", b" ant\n", "ant"), ("a.cls", b"12", "12"), ("a.cls", b"\xff", None),
     ("a.cls", b"", None), ("a.cls", b"..", None), ("a.cls", b"a\0b", None),
     ("a.json", b'{"label": true, "class": 4}', "4"), ("a.json", b'["ant"]', None),
     ("a.json", b"{", None), ("a.txt", b"ant", None)],
)  # fmt: skip
def test_classes_beside_images(name: str, data: bytes, expected: str | None) -> None:
    window = storage.Window(lambda offset, n: data[offset : offset + n], len(data))
    assert tars.read_class(window, tars.Member(name, 0, len(data))) == expected


@pytest.mark.parametrize(
    "data",
    [b"ant\r\n", *("\ufeffant\r\n".encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be"))],
)
def test_class_lists_as_windows_writes_them(tmp_path: Path, data: bytes) -> None:
    about = b"\xef\xbb\xbf" + json.dumps({"label": "cat"}).encode()
    files = {"1.jpg": photo(1), "1.cls": data, "2.jpg": photo(2), "2.cls": b"bee",
             "3.jpg": photo(3), "3.json": about}  # fmt: skip
    found = listed(write_tar(tmp_path / "0.tar", files))
    assert classes(found) == {"ant/1.jpg": "ant", "bee/2.jpg": "bee", "cat/3.jpg": "cat"}
    assert found.left_out == ()


@pytest.mark.parametrize("data", [b"caf\xe9", b"", b"ant\nbee", b"\xff"])
def test_a_class_that_cannot_be_read_is_named(tmp_path: Path, data: bytes) -> None:
    files = {"1.jpg": photo(1), "1.cls": data, "2.jpg": photo(2), "2.cls": b"bee",
             "3.jpg": photo(3), "3.cls": b"ant"}  # fmt: skip
    found = listed(write_tar(tmp_path / "0.tar", files))
    assert len(found) == 2
    assert found.left_out == (
        ("0.tar/1.cls", "no class in it: expected one line of UTF-8"),
        ("1.jpg", "in no class folder"),
    )


def test_the_case_of_keys_that_end_at_the_first_dot(cases: Path) -> None:
    found = listed(cases / "tars" / "input_jpg_cls.tar")
    assert classes(found) == {f"{'ab'[k % 2]}/{k:04d}.input.jpg": "ab"[k % 2] for k in range(8)}
    assert found.left_out == ()


@pytest.mark.parametrize("folder", ["", "shards/", "train/", "data/shards/"])
def test_keys_end_at_the_first_dot(tmp_path: Path, folder: str) -> None:
    for shard in range(2):
        files: Contents = {}
        for k in range(4):
            key = f"{shard}{k}"
            files |= {f"{key}.input.jpg": photo(k), f"{key}.target.cls": [b"ant", b"bee"][k % 2]}
        files |= {"x9.left.jpg": photo(1), "x9.right.jpg": photo(2), f"x9.{shard}.cls": b"ant"}
        write_tar(tmp_path / f"{folder}{shard}.tar", files)
    # Which of two images the class is of, nobody can know.
    with pytest.raises(ValueError, match="2 images have the path"):
        listed(tmp_path)
    (tmp_path / f"{folder}1.tar").unlink()
    found = listed(tmp_path)
    assert sorted(classes(found).values()) == ["ant", "ant", "bee", "bee"]
    assert [(Path(path).name, reason) for path, reason in found.left_out] == [
        ("x9.left.jpg", "in no class folder"), ("x9.right.jpg", "in no class folder"),
    ]  # fmt: skip


def test_class_folders_stay_where_keys_end_at_the_first_dot(tmp_path: Path) -> None:
    """As these tars were listed before: the folder is the class, and so the fingerprint stays."""
    files = {f"{name}/{k}.v1.jpg": photo(k) for name in ("ant", "bee") for k in range(3)}
    plain = listed(write_tar(tmp_path / "a" / "0.tar", files))
    beside = {f"{name}/{k}.cls": b"3" for name in ("ant", "bee") for k in range(3)}
    found = listed(write_tar(tmp_path / "b" / "0.tar", files | beside))
    assert found.class_names == ("ant", "bee")
    assert found.fingerprint == plain.fingerprint


def test_names_with_several_dots_keep_their_own_class(tmp_path: Path) -> None:
    files = {"p.2018.jpg": photo(1), "p.2018.cls": b"ant", "p.2019.jpg": photo(2),
             "p.2019.cls": b"bee", "p.2020.jpg": photo(3)}  # fmt: skip
    found = listed(write_tar(tmp_path / "0.tar", files))
    assert classes(found) == {"ant/p.2018.jpg": "ant", "bee/p.2019.jpg": "bee"}
    assert found.left_out == (("p.2020.jpg", "in no class folder"),)


def test_a_class_in_tars_without_an_image_is_named(tmp_path: Path) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500)
    files = dict(MIXED) | {"dog/1.heic": heic, "x.heic": heic, "x.cls": b"elk"}
    found = listed(write_tar(tmp_path / "0.tar", files))
    assert [folder for folder, _ in found.empty_folders] == ["dog", "elk"]
    assert all(reason.startswith("HEIC") for _, reason in found.empty_folders)


def test_images_without_labels_for_predict(tmp_path: Path) -> None:
    write_tar(tmp_path / "1.tar", {"b.jpg": photo(0), "a.jpg": photo(1)})
    write_tar(tmp_path / "0.tar", {"d.jpg": photo(2), "notes": b"text", "c": photo(3)})
    (tmp_path / "z.jpg").write_bytes(photo(4))
    found = find_images(str(tmp_path))
    found.sort()
    assert found.paths == ["z.jpg", "d.jpg", "c", "b.jpg", "a.jpg"]  # as they lie
    assert [storage.read_file(file) for file in found.files()] == [
        photo(4), photo(2), photo(3), photo(0), photo(1),
    ]  # fmt: skip
    assert found.left_out == [("0.tar/notes", "not an image")]


# --- what must not get in ------------------------------------------------------------------------


def test_unsafe_and_weird_members_are_left_out_and_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:

        def add(
            name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", link: str = ""
        ) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(data), link
            tar.addfile(info, io.BytesIO(data))

        for path, data in MIXED:
            add(path, data=data)
        add("ant", tarfile.DIRTYPE)
        for name in ("/etc/evil.jpg", "../evil.jpg", "ant/../../evil.jpg"):
            add(name, data=photo(0))
        add("ant/link.jpg", tarfile.SYMTYPE, link="/etc/passwd")
        add("ant/hard.jpg", tarfile.LNKTYPE, link="ant/0.jpg")
        add("ant/device.jpg", tarfile.CHRTYPE)
        add("ant/pipe.jpg", tarfile.FIFOTYPE)
        add("ant/._0.jpg", data=photo(0))
        add("ant/RENAME2", data=b"mv a b")
        add("bee/\udcff.jpg", data=photo(0))
        add("bee/alone.cls", data=b"bee")
    found = listed(tmp_path)
    assert set(found.path.tolist()) == {path for path, _ in MIXED}
    unsafe = "unsafe name in a tar"
    assert dict(found.left_out) == {
        "0.tar//etc/evil.jpg": unsafe, "0.tar/../evil.jpg": unsafe,
        "0.tar/ant/../../evil.jpg": unsafe, "0.tar/ant/link.jpg": "a link in a tar",
        "0.tar/ant/hard.jpg": "a link in a tar",
        "0.tar/ant/device.jpg": "not a plain file in the tar",
        "0.tar/ant/pipe.jpg": "not a plain file in the tar",
        "0.tar/ant/._0.jpg": "hidden file", "0.tar/ant/RENAME2": "not an image",
        "0.tar/bee/\\xff.jpg": "name in a tar that is not UTF-8",
        "0.tar/bee/alone.cls": "not an image",
    }  # fmt: skip


def broken(data: bytes, how: str) -> bytes:
    second = 512 + 512 * -(-len(photo(0)) // 512)
    return {
        "empty": b"",
        "in a header": data[: second + 100],
        "in the data": data[: second + 600],
        "before a header": data[:second],
        "damaged header": data[: second + 148] + b"\xff" * 8 + data[second + 156 :],
        "compressed": b"\x1f\x8b\x08\0" + data[4:],
        "negative size": checked(data[:124] + b"\xff" * 12 + data[136:512]) + data[512:],
    }[how]


def checked(header: bytes) -> bytes:
    """A header with the checksum that it should have."""
    total = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    return header[:148] + b"%06o\0 " % total + header[156:]


@pytest.mark.parametrize(
    "how",
    ["empty", "in a header", "in the data", "before a header", "damaged header", "compressed",
     "negative size"],
)  # fmt: skip
def test_a_broken_tar_is_an_error_that_names_it(tmp_path: Path, how: str) -> None:
    good = write_tar(tmp_path / "0.tar", dict(MIXED)).read_bytes()
    (tmp_path / "1.tar").write_bytes(broken(good, how))
    message = rf"{tmp_path}/1\.tar is not a whole tar: .* after byte \d+\..*Copy or make it again"
    with pytest.raises(ValueError, match=message) as error:
        listed(tmp_path)
    assert ("is to be unpacked first" in str(error.value)) == (
        how in ("empty", "compressed", "negative size")
    )


# --- one tar after another ------------------------------------------------------------------------


def test_the_case_of_concatenated_tars(cases: Path) -> None:
    found = listed(cases / "tars" / "cat_a_b.tar")
    assert sorted(found.path.tolist()) == [f"{name}/{k}.jpg" for name in "ab" for k in range(8)]
    assert all(data.startswith(b"\xff\xd8") for data in read(found).values())


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("n_zeros", [512, 1024, 10_240, 300_032])
def test_concatenated_tars_are_read_to_the_end(tmp_path: Path, kind: int, n_zeros: int) -> None:
    long = f"{'a' * 90}/{'b' * 90}"
    parts = [dict(MIXED[:9]), {f"ant/{long}.jpg": photo(50)}, dict(MIXED[9:]), {}]
    data = b""
    for k, part in enumerate(parts):
        tar = write_tar(tmp_path / f"{k}.tar", part, format=kind).read_bytes()
        data += tar.rstrip(b"\0")
        data += bytes(-len(data) % 512 + n_zeros)
        (tmp_path / f"{k}.tar").unlink()
    (tmp_path / "all.tar").write_bytes(data)
    assert read(listed(tmp_path / "all.tar")) == dict(MIXED) | parts[1]


@pytest.mark.parametrize("n_bytes", [1, 511])
def test_a_few_bytes_after_the_end_are_told(tmp_path: Path, n_bytes: int) -> None:
    path = write_tar(tmp_path / "0.tar", dict(MIXED))
    path.write_bytes(path.read_bytes() + b"\n" * n_bytes)
    found = listed(path)
    assert read(found) == dict(MIXED)
    ((place, reason),) = found.left_out
    assert place.startswith("0.tar/byte ")
    assert reason == "after the end of the tar"


@pytest.mark.parametrize("between", [b"\n", b"x" * 512, b"x" * 700])
def test_what_cannot_be_read_after_the_end_is_refused(tmp_path: Path, between: bytes) -> None:
    """Such as with ``hdfs dfs -getmerge -nl``, which puts a newline between."""
    one = write_tar(tmp_path / "0.tar", dict(MIXED[:9])).read_bytes()
    two = write_tar(tmp_path / "1.tar", dict(MIXED[9:])).read_bytes()
    (tmp_path / "1.tar").unlink()
    (tmp_path / "0.tar").write_bytes(one + between + two)
    with pytest.raises(ValueError, match=rf"after its end, .* no tar begins at byte {len(one)}\."):
        listed(tmp_path)


def test_a_second_tar_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "0.tar", dict(MIXED[:9])).read_bytes()
    two = write_tar(tmp_path / "1.tar", dict(MIXED[9:])).read_bytes()
    (tmp_path / "1.tar").unlink()
    for n_bytes in (512, 700, 1024, 1536, 2048, 5000):
        (tmp_path / "0.tar").write_bytes(one + two[:n_bytes])
        with pytest.raises(ValueError, match="not a whole tar"):
            listed(tmp_path)


def test_a_tar_that_changed_since_it_was_listed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", dict(MIXED))
    found = listed(tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(OSError, match=r"0\.tar has \d+ of \d+ bytes at \d+\. It was changed since"):
        read(found)


def test_two_images_of_one_path_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", dict(MIXED))
    write_tar(tmp_path / "1.tar", {"ant/0.jpg": photo(9), "ant/99.jpg": photo(9)})
    with pytest.raises(ValueError, match=r"2 images have the path ant/0\.jpg \(0\.tar, 1\.tar in "):
        listed(tmp_path)


# --- order ---------------------------------------------------------------------------------------


def test_sorted_tars_are_read_as_a_folder_would_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = dict(sorted(MIXED))
    for path, data in files.items():
        (tmp_path / "folder" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / path).write_bytes(data)
    write_tar(tmp_path / "tars" / "0.tar", files)
    with caplog.at_level("WARNING", "dtl.images"):
        found = listed(tmp_path / "tars", seed=3)
    assert "not in random order" in caplog.text
    assert "`pack` writes tars" in caplog.text
    folder = listed(tmp_path / "folder", seed=3)
    assert found.path.tolist() == folder.path.tolist()
    assert found.fingerprint == folder.fingerprint
    assert read(found) == read(folder) == files


@pytest.mark.parametrize("n_classes", [2, 19, 257])
def test_random_order_is_told_from_sorted_order(n_classes: int) -> None:
    rng = np.random.default_rng(0)
    column = rng.integers(0, n_classes, 5000)
    assert not tars.is_clumped(column)
    assert tars.is_clumped(np.sort(column))
    by_tens = column[np.lexsort((rng.random(5000), column // 10))]
    assert tars.is_clumped(by_tens) == (n_classes > 10)


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [False, True])
def test_any_filesystem(tmp_path: Path, memory: bool) -> None:
    url = f"memory://{tmp_path.name}" if memory else str(tmp_path)
    local = write_tar(tmp_path / "local" / "0.tar", dict(MIXED))
    storage.write_bytes(f"{url}/tars/0.tar", local.read_bytes())
    try:
        for source in (f"{url}/tars", f"{url}/tars/0.tar"):
            assert read(listed(source)) == dict(MIXED)
    finally:
        storage.remove(url)


def test_is_image_is_asked_of_members_without_an_extension(tmp_path: Path) -> None:
    assert formats.begins_like_image(photo(0)[: formats.N_MAGIC_BYTES])
    files = dict(MIXED) | {"ant/photo": photo(3), "ant/text": b"abc"}
    found = listed(write_tar(tmp_path / "0.tar", files))
    assert "ant/photo" in found.path.tolist()
    assert found.left_out == (("0.tar/ant/text", "not an image"),)
