"""The bag of labelled images: on workers that are processes, from folders and from tars."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, LocalCluster

from dtl.config import ImagesConfig, PackConfig
from dtl.images import bags, listing, packing
from dtl.images.bags import LabelledImage
from dtl.images.decoding import formats
from dtl.images.values import ImageList

SIZE = (20, 30)


def listed(folder: Path) -> ImageList:
    return listing.list_images(ImagesConfig(url=str(folder)), 0)


def check_rows(rows: list[LabelledImage], images: ImageList, folder: Path, resize: str) -> None:
    assert [(path, label) for path, label, _ in rows] == [
        (str(path), int(label)) for path, label in zip(images.path, images.label, strict=True)
    ]
    for path, _, pixels in rows:
        expected = formats.decode((folder / path).read_bytes(), SIZE, resize=resize)
        np.testing.assert_array_equal(pixels, expected, strict=True)


@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_on_worker_processes(pictures: Path, tmp_path: Path, resize: str) -> None:
    config, images = ImagesConfig(resize=resize), listed(pictures)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        bag = bags.make_bag(images, SIZE, config, partition_images=7)
        assert bag.npartitions == 4
        check_rows(bag.compute(), images, pictures, resize)
        packing.pack(str(tmp_path / "tars"), images, PackConfig(), client)
        packed = listed(tmp_path / "tars")
        assert packed.tar_names
        check_rows(bags.make_bag(packed, SIZE, config).compute(), packed, pictures, resize)


def test_unreadable_images_are_left_out_or_marked(pictures: Path) -> None:
    (pictures / "red" / "broken.jpg").write_bytes(b"no picture")
    (pictures / "red" / "gone.jpg").write_bytes(b"")
    images = listed(pictures)
    (pictures / "red" / "gone.jpg").unlink()
    make = functools.partial(bags.make_bag, images, SIZE, partition_images=5)
    left = make().map(lambda row: row[0]).compute(scheduler="threads")
    marked = make(keep_unreadable=True).compute(scheduler="threads")
    unreadable = {"red/broken.jpg", "red/gone.jpg"}
    assert left == [path for path in images.path.tolist() if path not in unreadable]
    assert len(marked) == len(images) == 26
    assert {path for path, _, pixels in marked if pixels is None} == unreadable


def test_a_failure_of_the_storage_is_an_error(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(url: str, most_bytes: int | None) -> bytes:
        raise OSError("Connection reset by peer")

    monkeypatch.setattr("dtl.storage.ranges.read_bytes", fail)
    with pytest.raises(OSError, match="Connection reset by peer"):
        bags.make_bag(listed(pictures), SIZE).compute(scheduler="threads")
