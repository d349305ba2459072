"""Reading of images: in order, ahead of their use, with a reason where one cannot be used."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import jpeg
from PIL import Image

from dtl import storage
from dtl.config import ImagesConfig
from dtl.images.decoding import formats
from dtl.images.decoding.reading import ReadImage, describe_costliest, open_images, pause_decoding
from dtl.storage import Extent


def read(*files: str | Extent, config: ImagesConfig | None = None) -> list[ReadImage]:
    with open_images(files, [(30, 20)], config or ImagesConfig(), n_ahead=2) as images:
        return list(images)


@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_pixels_and_hashes_in_order(pictures: Path, resize: str) -> None:
    files = sorted(pictures.glob("*/*.jpg"))
    images = read(*map(str, files), config=ImagesConfig(resize=resize))
    assert len(images) == len(files) == 24
    for file, image in zip(files, images, strict=True):
        assert image.content_hash == formats.hash_content(file.read_bytes())
        assert image.error == ""
        expected = formats.decode(file.read_bytes(), (30, 20), resize=resize)
        np.testing.assert_array_equal(image.pixels[0], expected, strict=True)


def test_a_pause_holds_up_decoding_alone(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(next(pictures.glob("*/*.jpg")))
    was_read, read_bytes = threading.Event(), storage.ranges.read_bytes

    def read_and_tell(url: str, most_bytes: int | None) -> bytes:
        data = read_bytes(url, most_bytes)
        was_read.set()
        return data

    monkeypatch.setattr("dtl.storage.ranges.read_bytes", read_and_tell)
    decoded = threading.Event()
    decode = formats.decode_sizes
    monkeypatch.setattr(
        formats, "decode_sizes", lambda *a, **k: (decoded.set(), decode(*a, **k))[1]
    )
    with contextlib.ExitStack() as stack:
        with pause_decoding():
            opened = open_images([file], [(30, 20)], ImagesConfig(), n_ahead=1)
            images = stack.enter_context(opened)
            assert was_read.wait(60)
            time.sleep(0.05)
            assert not decoded.is_set()
        assert next(images).error == ""
        assert decoded.is_set()


def test_a_file_that_is_gone_or_no_image(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_bytes(b"2 4 6 8")
    (tmp_path / "large.png").write_bytes(b"")
    gone, text, empty = read(*(str(tmp_path / name) for name in ("gone", "text.jpg", "large.png")))
    assert gone[:3] == (0, "the file is gone", ())
    assert text.error.startswith("not an image that Pillow reads")
    assert text.content_hash == formats.hash_content(b"2 4 6 8")
    assert (empty.error, empty.pixels) == ("empty file", ())


def test_a_file_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(url: str, most_bytes: int | None) -> bytes:
        raise PermissionError(13, "Permission denied", url)

    monkeypatch.setattr("dtl.storage.ranges.read_bytes", forbid)  # root may read everything
    assert [image[:3] for image in read("/a.jpg")] == [(0, "no permission to read", ())]


def test_a_failure_of_the_storage_names_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(url: str, most_bytes: int | None) -> bytes:
        raise OSError("Connection reset by peer")

    monkeypatch.setattr("dtl.storage.ranges.read_bytes", fail)
    with pytest.raises(OSError, match="Connection reset by peer") as caught:
        read("hdfs://name/a.jpg")
    assert caught.value.__notes__ == ["while reading hdfs://name/a.jpg"]
    tar = tmp_path / "0.tar"
    tar.write_bytes(b"short")
    with pytest.raises(OSError, match="It was changed since it was listed") as caught:
        read(Extent(str(tar), 512, 99))
    assert caught.value.__notes__ == [f"while reading {tar} from byte 512"]


def broken(*names: str) -> Callable[[str, int | None], bytes]:
    """Reads files, but for some, whose disk is broken."""
    real = storage.read_bytes

    def read_bytes(url: str, most_bytes: int | None = None) -> bytes:
        if url.rsplit("/", 1)[-1] in names:
            raise OSError(errno.EIO, "Input/output error", url)
        return real(url, most_bytes)

    return read_bytes


def test_a_file_on_a_bad_sector_is_an_image_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, pictures: Path
) -> None:
    monkeypatch.setattr("dtl.storage.ranges.read_bytes", broken("3.jpg"))
    files = sorted(map(str, pictures.glob("*/*.jpg")))
    images = read(*files)
    for file, image in zip(files, images, strict=True):
        if file.endswith("/3.jpg"):
            assert image[:3] == (0, "input/output error, each time it was read", ())
        else:
            assert len(image.pixels) == 1


def test_a_disk_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    names = [f"{n}.jpg" for n in range(8)]
    monkeypatch.setattr("dtl.storage.ranges.read_bytes", broken(*names))
    with pytest.raises(OSError, match="Input/output error") as caught:
        read(*map(str, pictures.glob("*/*.jpg")))
    assert "while reading" in caught.value.__notes__[0]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.ENOTCONN])
def test_errors_of_the_system_are_no_images_fault(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(url: str, most_bytes: int | None) -> bytes:
        raise OSError(number, os.strerror(number), url)

    monkeypatch.setattr("dtl.storage.ranges.read_bytes", fail)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        read("/a.jpg")


def test_a_bad_sector_in_a_tar_costs_only_its_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pixels = np.full((8, 8, 3), 77, np.uint8)
    image = jpeg(pixels)
    extents = [Extent(str(tmp_path / "0.tar"), k * len(image), len(image)) for k in range(5)]
    (tmp_path / "0.tar").write_bytes(5 * image)
    real, bad = storage.Ranges.read, extents[2].offset + 10

    def read_range(self: storage.Ranges, offset: int, n_bytes: int) -> bytes:
        if offset <= bad < offset + n_bytes:
            raise OSError(errno.EIO, "Input/output error")
        return real(self, offset, n_bytes)

    monkeypatch.setattr(storage.Ranges, "read", read_range)
    errors = [image.error for image in read(*extents)]
    assert errors == ["", "", "input/output error, each time it was read", "", ""]


def test_no_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    def decode(*_: object, **__: object) -> np.ndarray:
        raise MemoryError("No memory to decode an image.")

    monkeypatch.setattr("dtl.images.decoding.formats.decode_sizes", decode)
    file = str(next(pictures.glob("*/*.jpg")))
    with pytest.raises(MemoryError) as caught:
        read(file)
    assert caught.value.__notes__ == [f"while reading {file}"]


def test_a_huge_sparse_file_is_not_read(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse.jpg"
    with sparse.open("wb") as file:
        file.truncate(60 << 30)
    began = time.monotonic()
    (image,) = read(str(sparse))
    assert image[:3] == (0, "more than 826 MiB, too many for images.max_pixels", ())
    (image,) = read(Extent(str(sparse), 1 << 30, 50 << 30))
    assert image.error == "more than 826 MiB, too many for images.max_pixels"
    assert time.monotonic() - began < 60


def test_a_large_file_is_read(tmp_path: Path) -> None:
    """One that has to wait for memory."""
    pixels = np.full((4000, 3000, 3), 90, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.bmp")
    assert (tmp_path / "large.bmp").stat().st_size > 32 << 20
    (image,) = read(str(tmp_path / "large.bmp"))
    assert len(image.pixels) == 1
    assert (image.pixels[0] == 90).all()


def test_the_costliest_images_are_named(tmp_path: Path, cases: Path, pictures: Path) -> None:
    costly = cases / "files" / "costly-webp-9984-40-bytes.webp"
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    (tmp_path / "0.tar").write_bytes(bytes(512) + costly.read_bytes())
    inside = Extent(str(tmp_path / "0.tar"), 512, 40)
    places = [str(path) for path in pictures.glob("*/*.jpg")]
    places += [str(tmp_path / name) for name in ("large.png", "broken.jpg", "gone.jpg")]
    lines = describe_costliest([*places, str(costly), inside]).splitlines()
    assert len(lines) == 6
    assert lines[0] == "Its costliest images:"
    large = "9984 x 9984 pixels, about 2281 MiB to decode"
    assert lines[1:3] == [f"  {costly}: {large}", f"  {inside.url} from byte 512: {large}"]
    assert lines[3] == f"  {tmp_path / 'large.png'}: 9000 x 9000 pixels, about 1235 MiB to decode"
    assert "40 x 40 pixels" in lines[4]
    assert describe_costliest([str(tmp_path / "gone.jpg")]) == "None of its images is known."


def test_what_has_become_of_a_file_since_it_was_listed(tmp_path: Path, pictures: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    good = str(next(pictures.glob("*/*.jpg")))
    names = ("pipe.jpg", "folder.jpg", "loop.jpg")
    *odd, last = read(*(str(tmp_path / name) for name in names), good)
    assert all(image.error and not image.pixels for image in odd), odd
    assert "regular file" in odd[0].error
    assert len(last.pixels) == 1
