"""Which files are photographs: by their names, and by what is in them."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dtl.config import ImagesConfig
from dtl.config.errors import UserError
from dtl.images.decoding import formats, recognition
from dtl.images.listing import find_images, list_images

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def image(kind: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def judge(data: bytes) -> str:
    return recognition.judge_content(lambda offset, n: data[offset : offset + n], len(data))


def heic(major: bytes, *others: bytes) -> bytes:
    brands = b"".join(others)
    return struct.pack(">I", 16 + len(brands)) + b"ftyp" + major + bytes(4) + brands + bytes(500)


HEIC = heic(b"heic", b"mif1", b"heic")


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "PCX", "AVIF", "QOI"]
)
def test_an_image_parses_as_one(kind: str) -> None:
    assert judge(image(kind)) == ""


@pytest.mark.parametrize(("kind", "mode"), [("PPM", "1"), ("PPM", "L"), ("XBM", "1")])
def test_images_with_little_but_text_in_them(kind: str, mode: str) -> None:
    assert judge(image(kind, mode)) == ""


def test_images_that_are_text() -> None:
    assert judge(b"P2\n# a comment\n3 2\n9\n1 2 3\n4 5 6\n") == ""
    assert judge(b"P1\n3 2\n101\n010\n") == ""
    assert judge(b"P6\n2 1\n255\nabcdef") == ""  # bytes of pixels that could be letters
    assert judge(b"P6\n2 2\n255\nabcdef") == recognition.NO_IMAGE
    assert judge(b"P5\n2 1\n65535\nabcd") == judge(b"P5\n2 1\n9\nab") == ""


TEXTS = [
    "BMW X5, photographed in Munich, 2019. Licence CC BY.",
    "BM",
    "Python script that made these photographs: crawl.py",
    "P1, the first of two parts",
    "P1 12 34 are the numbers of the first photographs",
    "P3 100 100 255 are four numbers",
    "P5 2 2 255 x",
    "P6 10 10 255 is how it begins",
    "GIF89a is a format of images",
    "GIF87a",
    "II*\0 is how a TIFF begins",
    "/* a comment in C */\nint main(void) { return 0; }",
    "#define WIDTH 7\nint main(void);\n",
    "8BPS is Photoshop's",
    "DDS textures of the game",
    "RIFF and WEBP are words",
    "icns icons are for the Mac",
    "qoif is quite OK",
    "%!PS-Adobe-3.0",
    "\n\n\n",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_text_is_no_image(text: str, encoding: str) -> None:
    for data in (text, text + "\nMünchen\n" * 100):
        assert judge(data.encode(encoding)) == recognition.NO_IMAGE


@given(st.sampled_from(TEXTS), st.text(st.characters(exclude_categories=["Cc", "Cs"])))
@settings(deadline=None)
def test_text_is_no_image_whatever_follows(text: str, more: str) -> None:
    assert judge((text + " \n" + more + " end").encode()) == recognition.NO_IMAGE


@given(st.sampled_from([b"", b"BM", b"P6", b"\xff\xd8\xff", b"II*\0"]), st.binary(max_size=600))
@settings(deadline=None)
def test_any_bytes_are_judged(start: bytes, more: bytes) -> None:
    assert isinstance(judge(start + more), str)


def test_the_cases_of_text(cases: Path, tmp_path: Path) -> None:
    for file in sorted((cases / "magic").iterdir()):
        assert judge(file.read_bytes()) == recognition.NO_IMAGE
        for k in range(2):
            (tmp_path / f"class {k}").mkdir(exist_ok=True)
            (tmp_path / f"class {k}" / file.name).write_bytes(file.read_bytes())
            (tmp_path / f"class {k}" / "photo").write_bytes(image("JPEG"))
    found = list_images(ImagesConfig(url=str(tmp_path)), 0)
    assert sorted(found.path.tolist()) == ["class 0/photo", "class 1/photo"]
    assert {reason for _, reason in found.left_out} == {recognition.NO_IMAGE}
    assert len(found.left_out) == 4


@pytest.mark.parametrize(
    "suffix", [".txt", ".csv", ".md", ".json", ".py", ".h", ".XML", ".yml", ".html", ".log", ".xls"]
)
def test_files_of_text_are_never_images(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(image("PNG"))
    found = find_images(str(tmp_path))
    assert (found.paths, found.left_out) == ([], [(f"a{suffix}", recognition.NO_IMAGE)])


@pytest.mark.parametrize(
    ("start", "expected"),
    [(HEIC, True), (heic(b"mif1", b"heic"), True), (heic(b"heix"), True), (heic(b"hevc"), True),
     (heic(b"mif1"), True), (heic(b"msf1", b"hevs"), True), (heic(b"mif1", b"avif"), False),
     (heic(b"avif", b"mif1"), False), (heic(b"isom", b"mp42"), False), (b"", False),
     (b"\0\0\0\0ftyp", False)],
)  # fmt: skip
def test_heic_is_known_by_its_brands(start: bytes, expected: bool) -> None:
    assert formats.is_heic(start) == expected
    assert (judge(start) == formats.HEIC) == expected


def test_the_case_of_heic(cases: Path) -> None:
    assert formats.is_heic((cases / "decode" / "x.heic").read_bytes())
    assert not formats.is_heic(image("AVIF"))


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "#recycle", "$RECYCLE.BIN", "$Recycle.Bin", "lost+found", "__MACOSX", "Thumbs.db",
     "thumbs.db", "System Volume Information", ".DS_Store", "desktop.ini"],
)  # fmt: skip
def test_what_systems_leave_is_hidden(tmp_path: Path, name: str) -> None:
    photo = image("JPEG")
    for folder in ("ant", "bee", f"ant/{name}", name):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(photo)
    (tmp_path / "bee" / name).write_bytes(photo)
    found = list_images(ImagesConfig(url=str(tmp_path)), 0)
    assert sorted(found.path.tolist()) == ["ant/1.jpg", "bee/1.jpg"]
    assert found.left_out == tuple(sorted([
        (f"ant/{name}", "hidden folder"), (f"bee/{name}", "hidden file"), (name, "hidden folder"),
    ]))  # fmt: skip
    assert found.empty_folders == ()


@pytest.mark.parametrize(
    "name", ["a.zip", "a.ZIP", "a.tgz", "a.tar.gz", "a.rar", "a.7z", "a.tar.xz"]
)
def test_archives_are_to_be_unpacked(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04" + bytes(100))
    found = find_images(str(tmp_path))
    assert found.left_out == [(name, "an archive: unpack it, or make a tar of its files")]
    with pytest.raises(UserError, match=rf"{name} is an archive: unpack it, or make a tar of its"):
        find_images(str(tmp_path / name))
    with pytest.raises(NotADirectoryError, match=r"Unpack it, and give that folder"):
        list_images(ImagesConfig(url=str(tmp_path / name)), 0)
