"""The pictures of a report: found wherever the photographs lie now."""

from __future__ import annotations

import io
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers import jpeg

from dtl import storage
from dtl.config import ImagesConfig
from dtl.features.store import FeatureStore
from dtl.images import listing
from dtl.images.decoding import formats
from dtl.pipeline.pictures import read_pictures

IMAGES = {
    f"{name}/{k}.jpg": jpeg(np.full((9, 9, 3), 90 * k + 20, np.uint8))
    for name in ("ant", "bee")
    for k in range(3)
}
MISTAKE = "bee/2.jpg"
ROOT = "memory://me:secret@host/photos"  # to fsspec, a folder of that name


def write_tars(url: str) -> None:
    """Two tars, of which each has images of both classes."""
    for tar in range(2):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for path, data in [*IMAGES.items()][tar::2]:
                info = tarfile.TarInfo(path)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        storage.write_bytes(f"{url}/{tar}.tar", buffer.getvalue())


def write_folders(url: str) -> None:
    for path, data in IMAGES.items():
        storage.write_bytes(f"{url}/{path}", data)


def list_into_store(url: str, folder: Path) -> FeatureStore:
    images = listing.list_images(ImagesConfig(url=url), 0)
    attrs = {"settings": {}, "root": images.root}
    return FeatureStore.create(
        str(folder / "features.zarr"), images, {"fc2": 4}, dtype="float32", chunk_images=2,
        attrs=attrs,
    )  # fmt: skip


def check_pictures(url: str, store: FeatureStore, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = read_pictures(url, store, [MISTAKE], 1000, side=256)
    assert found == {MISTAKE: formats.thumbnail(IMAGES[MISTAKE], 256)}, caplog.text
    assert not caplog.records


@pytest.mark.parametrize("write", [write_tars, write_folders])
@pytest.mark.parametrize("inside", ["", "/all"])
def test_pictures_where_the_url_has_a_password(
    write: object, inside: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The store has the URL without it."""
    assert callable(write)
    write(ROOT + inside)
    store = list_into_store(ROOT, tmp_path)
    assert "secret" not in str(store.attrs)
    check_pictures(ROOT, store, caplog)
    storage.remove(ROOT)


@pytest.mark.parametrize("write", [write_tars, write_folders])
def test_pictures_of_photographs_that_moved(
    write: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(write)
    write(str(tmp_path / "photos"))
    store = list_into_store(str(tmp_path / "photos"), tmp_path)
    (tmp_path / "photos").rename(tmp_path / "moved")
    check_pictures(str(tmp_path / "moved"), store, caplog)


def test_pictures_of_one_tar(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tars(str(tmp_path / "photos"))
    store = list_into_store(str(tmp_path / "photos" / "0.tar"), tmp_path)
    mistake = str(store.read("path")[0])
    for place in ("photos", "moved"):
        found = read_pictures(str(tmp_path / place / "0.tar"), store, [mistake], 1000, side=256)
        assert found == {mistake: formats.thumbnail(IMAGES[mistake], 256)}, caplog.text
        if place == "photos":
            (tmp_path / "photos").rename(tmp_path / "moved")
