from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np

from dtl.checking import relabel
from dtl.checking.values import DUPLICATE, LABEL, Issue
from dtl.config import ImagesConfig
from dtl.features.values import REMOVED
from dtl.images.labels import read_table
from dtl.images.values import ImageList

PATHS = ["ant/1.jpg", "ant/a, b.jpg", 'bee/"2".jpg', "bee/é.jpg", "bee/gone.jpg"]
IMAGES = ImageList(
    root="/photos",
    path=np.array(PATHS, np.dtypes.StringDType()),
    label=np.array([0, 0, 1, 1, REMOVED], np.int32),
    given_split=np.full(5, -1, np.int8),
    size_bytes=np.ones(5, np.int64),
    class_names=("ant", "bee"),
)
ISSUES = [
    Issue(PATHS[3], LABEL, 0.9, given="bee", suggested="ant"),
    Issue(PATHS[1], LABEL, 0.7, given="ant", suggested="bee"),
    Issue(PATHS[0], DUPLICATE, 0.99, partner=PATHS[2]),
]


def read(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


def test_a_row_for_each_image_that_is_there_the_surest_errors_first() -> None:
    rows = read(relabel.make_table(IMAGES, ISSUES, ImagesConfig()))
    assert [row["path"] for row in rows] == [PATHS[3], PATHS[1], PATHS[0], PATHS[2]]
    assert [row["label"] for row in rows] == ["bee", "ant", "ant", "bee"]
    assert [row["suggested"] for row in rows] == ["ant", "bee", "", ""]
    assert rows[2]["issues"] == "duplicate"
    assert rows[2]["partner"] == PATHS[2]
    assert "split" not in rows[0]


def test_the_table_is_read_as_the_labels_that_are_there(tmp_path: Path) -> None:
    given = replace(IMAGES, given_split=np.array([0, 2, -1, 1, 0], np.int8))
    names = {"path_column": "file", "label_column": "breed", "split_column": "part"}
    for images, columns in ((IMAGES, {}), (given, {}), (given, names)):
        config = ImagesConfig(url="/photos", labels=str(tmp_path / "relabel.csv"), **columns)
        (tmp_path / "relabel.csv").write_bytes(relabel.make_table(images, ISSUES, config))
        table = read_table(config)
        expected = {
            path: (int(split), name)
            for path, split, name in zip(
                images.path, images.given_split, images.label_names(), strict=True
            )
            if name
        }
        assert table.places == expected
        assert table.has_splits == bool((images.given_split >= 0).any())


def test_an_edited_table_is_told_from_one_as_it_was_made() -> None:
    data = relabel.make_table(IMAGES, ISSUES, ImagesConfig())
    assert not relabel.is_edited(data, ImagesConfig())
    assert relabel.is_edited(data.replace(b"bee,bee,ant", b"ant,bee,ant"), ImagesConfig())
    assert relabel.is_edited(data.replace(b",bee,bee,", b",,bee,"), ImagesConfig())
    assert relabel.is_edited(b"path,label\na.jpg,ant\n", ImagesConfig())
    assert relabel.is_edited(b"\xff", ImagesConfig())
