"""Reading of images: in order, ahead of their use, with a reason where one cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dtl.config import ImagesConfig
from dtl.images import formats
from dtl.images.reading import ReadImage, open_images
from dtl.storage import Extent


def read(*files: str | Extent, config: ImagesConfig | None = None) -> list[ReadImage]:
    with open_images(files, (30, 20), config or ImagesConfig(), n_ahead=2) as images:
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
        np.testing.assert_array_equal(image.pixels, expected, strict=True)


def test_a_file_that_is_gone_or_no_image(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_bytes(b"2 4 6 8")
    (tmp_path / "large.png").write_bytes(b"")
    gone, text, empty = read(*(str(tmp_path / name) for name in ("gone", "text.jpg", "large.png")))
    assert gone == (0, "the file is gone", None)
    assert text.error.startswith("not an image that Pillow reads")
    assert text.content_hash == formats.hash_content(b"2 4 6 8")
    assert (empty.error, empty.pixels) == ("empty file", None)


def test_a_file_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(url: str, most_bytes: int | None) -> bytes:
        raise PermissionError(13, "Permission denied", url)

    monkeypatch.setattr("dtl.storage.ranges.read_bytes", forbid)  # root may read everything
    assert read("/a.jpg") == [(0, "no permission to read", None)]


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
