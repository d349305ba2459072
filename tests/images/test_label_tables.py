"""Labels from a table: the same list as from folders, and messages for what is wrong with one."""

from __future__ import annotations

import gzip
import json
import logging
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

from dtl import storage
from dtl.config import ImagesConfig, PackConfig, SplitConfig
from dtl.config.errors import UserError
from dtl.images import packing
from dtl.images.labels import read_table
from dtl.images.listing import find_images, list_images
from dtl.images.split import assign_splits
from dtl.images.values import NO_SPLIT, TEST, TRAIN, UNLABELLED, VALIDATION, ImageList

CLASS_OF = {f"{name}/{k}.jpg": name for k in range(8) for name in ("ant", "bee", "cat")}


def plant(folder: Path, paths: Any) -> Path:
    for k, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(bytes(k))
    return folder


def write(file: Path, rows: Any, header: str = "path,label") -> Path:
    file.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", "utf-8")
    return file


def listing(images: Path, table: Path | None = None, **options: str) -> ImageList:
    labels = {} if table is None else {"labels": str(table)}
    return list_images(ImagesConfig(url=str(images), **labels, **options), 0)


def classes(images: ImageList) -> dict[str, str]:
    names = [images.class_names[k] for k in images.label]
    return dict(zip(images.path.tolist(), names, strict=True))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return plant(tmp_path / "photos", CLASS_OF)


def write_csv(file: Path, rows: dict[str, str]) -> None:
    write(file, rows.items())


def write_gz(file: Path, rows: dict[str, str]) -> None:
    lines = [f"{path}\t{name}\textra" for path, name in rows.items()]
    file.write_bytes(gzip.compress("\n".join(["path\tlabel\tnote", *lines]).encode()))


def write_windows(file: Path, rows: dict[str, str]) -> None:
    lines = [f'"{path}";"{name}"'.replace("/", "\\") for path, name in rows.items()]
    file.write_bytes("\r\n".join(['"path";"label"', *lines, "", ";"]).encode("utf-8-sig"))


def write_jsonl(file: Path, rows: dict[str, str]) -> None:
    lines = [json.dumps({"label": name, "path": path}) for path, name in rows.items()]
    file.write_text("\n".join([*lines, "", ""]))


def write_parquet(file: Path, rows: dict[str, str]) -> None:
    labels = pa.array(rows.values()).dictionary_encode()
    pq.write_table(pa.table({"box": [[1]] * len(rows), "label": labels, "path": [*rows]}), file)


@pytest.mark.parametrize(
    ("name", "write_"),
    [("a.csv", write_csv), ("a.tsv.gz", write_gz), ("A.CSV", write_windows),
     ("a.jsonl", write_jsonl), ("a.parquet", write_parquet)],
)  # fmt: skip
def test_the_same_labels_give_the_list_of_the_folders(
    photos: Path, tmp_path: Path, name: str, write_: Any
) -> None:
    of_folders = listing(photos)
    write_(tmp_path / name, dict(reversed(CLASS_OF.items())))
    of_table = listing(photos, tmp_path / name)
    assert of_table.fingerprint == of_folders.fingerprint
    assert of_table.path.tolist() == of_folders.path.tolist()
    assert (of_table.root, of_table.left_out) == (of_folders.root, of_folders.left_out)
    np.testing.assert_array_equal(of_table.modified, of_folders.modified)


@pytest.mark.parametrize("top", ["", "archive/", "train/", "archive/train/"])
def test_a_correction_keeps_paths_order_and_splits(tmp_path: Path, top: str) -> None:
    photos = plant(tmp_path / "photos", [*(top + path for path in CLASS_OF), "readme.txt"])
    before = listing(photos)
    for above in ("", top):  # rows are relative to `images.url`, or as the list has them
        rows = {above + path: name for path, name in CLASS_OF.items()}
        if not above and top.endswith("train/"):
            rows = {f"train/{path}": name for path, name in rows.items()}
        file = write(tmp_path / "labels.csv", rows.items())
        assert listing(photos, file).fingerprint == before.fingerprint
        corrected = dict(rows, **{next(iter(rows)): "bee"})
        after = listing(photos, write(file, corrected.items()))
        assert after.path.tolist() == before.path.tolist()
        assert after.root == before.root
        np.testing.assert_array_equal(after.given_split, before.given_split)
        assert (after.label != before.label).sum() == 1


def test_folders_of_other_kinds_mean_nothing(tmp_path: Path) -> None:
    days = [f"2026/{month}/{k}.jpg" for month in ("10", "11") for k in range(4)]
    photos = plant(tmp_path / "photos", days)
    rows = [(path, "ab"[k % 2]) for k, path in enumerate(days)]
    listed = listing(photos, write(tmp_path / "t.csv", rows))
    assert classes(listed) == dict(rows)
    assert listed.root == str(photos)
    # Folders that look like no classes are no reason to refuse them, either.
    parts = plant(tmp_path / "parts", [f"{part}_set/{k}.jpg" for part in "xy" for k in range(2)])
    rows = [("x_set/0.jpg", "a"), ("y_set/1.jpg", "b")]
    assert classes(listing(parts, write(tmp_path / "t.csv", rows))) == dict(rows)


def test_splits(photos: Path, tmp_path: Path) -> None:
    words = ["train", "Val", "test", "dev", "validation", "", "testing"]
    paths = [f"{name}/{k}.jpg" for name in ("ant", "bee") for k in range(len(words))]
    rows = [(path, path[:3], words[k % len(words)]) for k, path in enumerate(paths)]
    listed = listing(photos, write(tmp_path / "t.csv", rows, "path,label,split"))
    given = dict(zip(listed.path.tolist(), listed.given_split.tolist(), strict=True))
    expected = [TRAIN, VALIDATION, TEST, VALIDATION, VALIDATION, NO_SPLIT, TEST]
    assert [given[path] for path in paths] == 2 * expected
    with pytest.raises(UserError, match="needs train/"):
        assign_splits(listed, SplitConfig(method="folders"), 0)
    rows = [row for row in rows if row[2]]
    listed = listing(photos, write(tmp_path / "t.csv", rows, "path,label,split"))
    np.testing.assert_array_equal(assign_splits(listed, SplitConfig(), 0), listed.given_split)


def test_ids_without_extension_and_other_columns(photos: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "train.csv", [(p[:-4], "1", n) for p, n in CLASS_OF.items()], "id,n,b")
    options = {"path_column": "id", "label_column": "b"}
    assert listing(photos, file, **options).fingerprint == listing(photos).fingerprint
    plant(photos, ["ant/0.png"])
    with pytest.raises(
        UserError, match=r"ant/0 stands for 2 images: ant/0\.jpg, ant/0\.png\. Give"
    ):
        listing(photos, file, **options)
    rows = [(f"x{k}.0", name) for k, name in enumerate("ab")]
    dots = plant(tmp_path / "dots", [f"{path}.jpg" for path, _ in rows])
    assert len(listing(dots, write(file, rows))) == 2
    ids = tmp_path / "ids.parquet"
    pq.write_table(pa.table({"path": [5, 6], "label": [1, 0]}), ids)
    assert classes(listing(plant(tmp_path / "numbers", ["5.jpg", "6.png"]), ids)) == {
        "5.jpg": "1", "6.png": "0",
    }  # fmt: skip
    # A picture of a picture's name is not that picture.
    rows = [("1.jpg", "a"), ("2.jpg", "b"), ("3.jpg", "b")]
    listed = listing(plant(tmp_path / "x", ["1.jpg", "2.jpg", "3.jpg.png"]), write(file, rows))
    assert listed.left_out == (("3.jpg.png", "not in the table of labels"),)


def test_forms_of_paths(tmp_path: Path) -> None:
    composed = unicodedata.normalize("NFC", "é/1.jpg")
    paths = [composed, unicodedata.normalize("NFD", "é/2.jpg"), *(f"a b/{k}.jpg" for k in range(6))]
    photos = plant(tmp_path / "photos", paths)
    given = [
        unicodedata.normalize("NFD", "é/1.jpg"), unicodedata.normalize("NFC", "é/2.jpg"),
        "./a b/0.jpg", "a b\\1.jpg", f"{photos}/a b/2.jpg", f"file://{photos}/a b/3.jpg",
        "a b//x/../4.jpg", ".\\a b\\.\\5.jpg",
    ]  # fmt: skip
    rows = [(path, "xy"[k % 2]) for k, path in enumerate(given)]
    listed = listing(photos, write(tmp_path / "t.csv", rows))
    assert classes(listed) == {path: "xy"[k % 2] for k, path in enumerate(paths)}


def test_rows_and_files_without_the_other(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*CLASS_OF.items(), *((f"gone/{k}.jpg", "ant") for k in range(5))]
    rows[0] = ("ant/0.jpg", "")
    plant(photos, ["new/1.jpg"])
    with caplog.at_level(logging.INFO, "dtl"):
        listed = listing(photos, write(tmp_path / "t.csv", [*rows, *rows[:3]]))
    assert listed.left_out == (
        ("ant/0.jpg", "without a label in the table of labels"),
        ("new/1.jpg", "not in the table of labels"),
    )
    assert "1 not in the table of labels: new/1.jpg" in caplog.text
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    gone = "gone/0.jpg, gone/1.jpg, gone/2.jpg, ..."
    assert warned == [f"5 of 29 rows of {tmp_path}/t.csv have no image: {gone}"]
    assert len(listed) == 23


@pytest.mark.parametrize(
    "labels", [[3, 10, None, 3], [3.0, 10.0, None, 3.0], ["3", " 10", "", "3"]]
)
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_numbers_as_labels(tmp_path: Path, labels: list[Any], name: str) -> None:
    paths = [f"{k}.jpg" for k in range(4)]
    photos = plant(tmp_path / "photos", paths)
    file = tmp_path / name
    if name.endswith("csv"):
        write(file, [(p, "" if n is None else str(n)) for p, n in zip(paths, labels, strict=True)])
    elif name.endswith("jsonl"):
        rows = [{"path": p, "label": n} for p, n in zip(paths, labels, strict=True)]
        file.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.table({"path": paths, "label": labels}), file)
    listed = listing(photos, file)
    assert listed.class_names == ("10", "3")  # sorted as texts, like the names of folders
    assert classes(listed) == {"0.jpg": "3", "1.jpg": "10", "3.jpg": "3"}


def test_versions_are_no_numbers(tmp_path: Path) -> None:
    photos = plant(tmp_path / "photos", ["1.jpg", "2.jpg", "3.jpg"])
    rows = [("1.jpg", "3.0"), ("2.jpg", "3.1"), ("3.jpg", "3")]
    assert listing(photos, write(tmp_path / "t.csv", rows)).class_names == ("3", "3.0", "3.1")


# --- tars ----------------------------------------------------------------------------------------


def test_tars_that_are_packed_with_a_table(tmp_path: Path, threads: Client) -> None:
    paths = [f"{place}/{k}.jpg" for place in ("x/1", "x/2", "y") for k in range(20)]
    photos = plant(tmp_path / "photos", [*paths, "z/0.jpg"])
    rows = [(p, "ab"[k % 2], ("train", "test", "")[k % 3]) for k, p in enumerate(paths)]
    rows = [row for row in rows if not row[0].startswith("y")]
    file = write(tmp_path / "t.csv", rows, "path,label,split")
    files = listing(photos, file)
    packing.pack(str(tmp_path / "tars"), files, PackConfig(), threads)
    # They know their labels, and the user's own table is as good.
    for table in (None, file):
        packed = listing(tmp_path / "tars", table)
        assert packed.fingerprint == files.fingerprint
        assert packed.left_out == ()
        assert (np.diff(packed.tar) >= 0).all()
    packing.pack(str(tmp_path / "again"), packed, PackConfig(), threads)
    assert listing(tmp_path / "again").fingerprint == files.fingerprint
    assert len(find_images(str(tmp_path / "tars")).paths) == len(rows)


def test_tars_of_folders_that_only_an_option_takes_for_classes(
    tmp_path: Path, threads: Client
) -> None:
    photos = plant(tmp_path / "photos", [f"{p}_set/{k}.jpg" for p in ("a", "train") for k in "12"])
    listed = listing(photos, classes="top")
    packing.pack(str(tmp_path / "tars"), listed, PackConfig(), threads)
    assert packing.folders_give_labels(listed)
    assert listing(tmp_path / "tars", classes="top").fingerprint == listed.fingerprint
    splits = plant(tmp_path / "splits", ["train/a/1.jpg", "train/b/2.jpg", "test/c/3.jpg"])
    listed = listing(splits, classes="top")
    assert listed.class_names == ("test", "train")
    packing.pack(str(tmp_path / "table"), listed, PackConfig(), threads)
    assert listing(tmp_path / "table").fingerprint == listed.fingerprint


def test_tars_of_folders(photos: Path, tmp_path: Path, threads: Client) -> None:
    folders = listing(photos)
    packing.pack(str(tmp_path / "tars"), folders, PackConfig(), threads)
    assert not (tmp_path / "tars" / "_dtl_labels.csv").exists()
    (tar,) = (tmp_path / "tars").glob("*.tar")
    file = write(tmp_path / "t.csv", CLASS_OF.items())
    for url in (tar.parent, tar):
        assert listing(url, file).fingerprint == folders.fingerprint
    swapped = [
        (path, {"ant": "bee", "bee": "ant"}.get(name, name)) for path, name in CLASS_OF.items()
    ]
    other = listing(tar.parent, write(file, swapped))
    assert other.path.tolist() == folders.path.tolist()
    assert classes(other) == dict(swapped)
    rows = [(f"{tar.parent}/{path}", name) for path, name in CLASS_OF.items()]
    assert listing(tar, write(file, rows)).fingerprint == folders.fingerprint


# --- bad input -----------------------------------------------------------------------------------


TWO = "path,label\nant/0.jpg,ant\nbee/0.jpg,bee\n"
BAD = {
    "empty": ("t.csv", b"", r"t\.csv: it is empty\. Mend the table, or check `images\.labels`"),
    "blank": ("t.csv", b"\n\n", "it is empty"),
    "empty lines": ("t.jsonl", b"\n", "it is empty"),
    "header": ("t.csv", b"path,label\n", "it has no rows"),
    "no header": ("t.csv", b"ant/0.jpg,ant\nbee/0.jpg,bee\n",
        "no column 'path', and begins with the columns 'ant/0.jpg', 'ant'. Name .* `images.path_c"),
    "no label": ("t.csv", b"path;class\n", "no column 'label', .* 'path', 'class'.*label_column"),
    "no key": ("t.jsonl", b'{"path": "a"}\n', "no column 'label', and begins with .* 'path'. Name"),
    "twice": ("t.csv", b"path,label,label\na,b,c\n", "2 columns 'label'"),
    "two labels": ("t.csv", f"{TWO}./ant/0.jpg,cat\n".encode(),
        r"line 4: \./ant/0\.jpg is given twice, as 'ant' and as 'cat'"),
    "two forms": ("t.csv", f"{TWO}ant/0,cat\n".encode(),
        r"ant/0\.jpg is given twice, as 'ant' and, as ant/0, as 'cat'"),
    "two splits": ("t.csv", b"path,label,split\na,b,test\na,b,train\n",
        "line 3: a is given twice, as 'b' in test and as 'b' in train"),
    "split": ("t.csv", b"path,label,split\nant/0.jpg,ant,fold1\n",
        "line 2: the split 'fold1' is none of train, validation, test"),
    "UTF-16": ("t.csv", TWO.encode("utf-16"), "UTF-16, or no text. Save it as UTF-8"),
    "UTF-16 lines": ("t.jsonl", TWO.encode("utf-16-le"), "UTF-16, or no text"),
    "Latin-1": ("t.csv", f"{TWO}é/0.jpg,é\n".encode("latin-1"),
        "byte 39, in line 4, is none of UTF-8. Save it as UTF-8, and not as Latin-1"),
    "commas": ("t.csv", f"{TWO}ant/1.jpg,ant, or bee\n".encode(),
        "line 4 has 3 values, and the header has 2. Put values with ',' in them in quotes"),
    "quotes": ("t.csv", f'{TWO}"ant/1.jpg,ant\n'.encode(), "line 4: unexpected end of data"),
    "no JSON": ("t.jsonl", b'{"path": "a", "label": 1}\n{"path": "b"\n', "line 2, column 13: Exp"),
    "a JSON list": ("t.jsonl", b"[1]\n", "line 1: each line must be a JSON o"),
    "no path": ("t.jsonl", b'{"path": "a", "label": 1}\n{"label": 1}\n', "line 2: it has no path"),
    "a list": ("t.jsonl", b'{"path": "a", "label": [1, 2]}\n',
        r"line 1: the label \[1, 2\] is neither a text nor a whole number"),
    "a fraction": ("t.jsonl", b'{"path": "a", "label": 0.5}\n', "the label 0.5 is neither"),
    "outside": ("t.csv", f"{TWO}ant/../../1.jpg,ant\n".encode(),
        r"line 4: the path ant/\.\./\.\./1\.jpg leads out of the folder of the images"),
    "elsewhere": ("t.csv", f"{TWO}/home/me/1.jpg,ant\n".encode(), "path /home/me/1.jpg leads out"),
    "a URL": ("t.csv", f"{TWO}s3://photos/1.jpg,ant\n".encode(), "photos/1.jpg leads out"),
    "damaged": ("t.parquet", b"PAR1 and more PAR1", r"t\.parquet is damaged: "),
    "gz": ("t.csv.gz", TWO.encode(), r"t\.csv\.gz is damaged: .*gzip"),
    "ending": ("t.xlsx", b"", r"must end in \.csv, \.tsv, \.jsonl, \.parquet"),
    "no file": ("t.csv", b"path,label\nx/0.jpg,a\ny/0.jpg,b\n",
        r"t\.csv has an image below .* first row is x/0\.jpg, the first image ant/0\.jpg"),
    "one class": ("t.csv", b"path,label\nant/0.jpg,ant\nbee/0.jpg,ant\n",
        "Only one class, 'ant', .* or a table with more classes"),
    "unlabelled": ("t.csv", b"path,label\nant/0.jpg,\n", "has no labels for the images below"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_tables(photos: Path, tmp_path: Path, case: str) -> None:
    name, data, message = BAD[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        listing(photos, tmp_path / name)


def test_a_damaged_table_is_refused_before_the_images_are_listed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path\n")
    with pytest.raises(UserError, match="no column 'label'"):
        listing(tmp_path / "no such folder", tmp_path / "t.csv")


def test_lists_in_parquet_and_other_columns_asked_for(photos: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a"], "label": [["x"]]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"row 1: the label \['x'\] is neither"):
        listing(photos, tmp_path / "t.parquet")
    file = write(tmp_path / "t.csv", CLASS_OF.items())
    with pytest.raises(UserError, match=r"no column 'set', .*`images\.split_column`"):
        listing(photos, file, split_column="set")


def test_a_table_that_is_not_there(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"No such file: .*/t\.csv\. Check `images\.labels`"
    ):
        listing(photos, tmp_path / "t.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="is a folder, and no file"):
        listing(photos, tmp_path / "folder.csv")


def test_names_that_differ_in_their_composition(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD")]
    photos = plant(tmp_path / "photos", [*forms, "b.jpg"])
    rows = [(forms[0], "a"), ("b.jpg", "b")]
    with pytest.raises(UserError, match=r"stands for 2 images: .* composes them"):
        listing(photos, write(tmp_path / "t.csv", rows))


def test_options_that_contradict(tmp_path: Path) -> None:
    config = ImagesConfig(url=str(tmp_path), labels="t.csv")
    with pytest.raises(UserError, match=r"images\.classes = top .* Leave one out"):
        replace(config, classes="top")
    with pytest.raises(UserError, match="three columns"):
        replace(config, label_column="path")


def test_any_url(photos: Path, tmp_path: Path) -> None:
    write(tmp_path / "t.csv", CLASS_OF.items())
    url = "memory://tables-of-labels/t.csv"
    storage.write_bytes(url, (tmp_path / "t.csv").read_bytes())
    listed = list_images(ImagesConfig(url=str(photos), labels=url), 0)
    storage.remove("memory://tables-of-labels")
    assert listed.fingerprint == listing(photos).fingerprint
    with pytest.raises(UserError, match="lacks its password"):
        read_table(ImagesConfig(url=str(photos), labels="ftp://me:***@host/t.csv"))


# --- images without a label ----------------------------------------------------------------------


def test_images_without_a_label_are_kept_if_wanted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = plant(tmp_path / "photos", CLASS_OF)
    labels = {**CLASS_OF, "ant/1.jpg": "", "bee/2.jpg": None}
    rows = [(path, name) for path, name in labels.items() if name is not None]
    table = write(tmp_path / "labels.csv", rows)
    config = ImagesConfig(url=str(folder), labels=str(table), unlabelled="keep")
    caplog.set_level(logging.INFO)
    kept, every = list_images(config, 0), list_images(ImagesConfig(url=str(folder)), 0)
    assert "22 images of 3 classes, and 2 without a label below" in caplog.text
    # The same rows, whatever is labelled: so that a label that comes later moves none.
    assert kept.path.tolist() == every.path.tolist()
    unlabelled = [path in ("ant/1.jpg", "bee/2.jpg") for path in kept.path]
    assert (kept.label[unlabelled] == UNLABELLED).all()
    np.testing.assert_array_equal(kept.label[~np.array(unlabelled)],
                                  every.label[~np.array(unlabelled)])  # fmt: skip
    assert (kept.given_split[unlabelled] == NO_SPLIT).all()
    assert kept.fingerprint != every.fingerprint
    left = list_images(replace(config, unlabelled="leave_out"), 0)
    assert len(left) == 22
    split = assign_splits(kept, SplitConfig(), 0)
    assert (split[unlabelled] == NO_SPLIT).all()
    np.testing.assert_array_equal(
        split[~np.array(unlabelled)], assign_splits(left, SplitConfig(), 0)
    )


def test_images_in_no_class_folder_are_kept_if_wanted(tmp_path: Path) -> None:
    folder = plant(tmp_path / "photos", [*CLASS_OF, "new1.jpg", "new2.jpg"])
    assert len(list_images(ImagesConfig(url=str(folder)), 0)) == len(CLASS_OF)
    kept = list_images(ImagesConfig(url=str(folder), unlabelled="keep"), 0)
    assert len(kept) == len(CLASS_OF) + 2
    assert sorted(kept.path[kept.label == UNLABELLED].tolist()) == ["new1.jpg", "new2.jpg"]
    assert kept.class_names == ("ant", "bee", "cat")


def test_unlabelled_images_alone_are_refused(tmp_path: Path) -> None:
    folder = plant(tmp_path / "photos", CLASS_OF)
    table = write(tmp_path / "labels.csv", [(path, "") for path in CLASS_OF])
    config = ImagesConfig(url=str(folder), labels=str(table), unlabelled="keep")
    with pytest.raises(UserError, match="has no labels for the images"):
        list_images(config, 0)
    flat = plant(tmp_path / "flat", ["1.jpg", "2.jpg"])
    with pytest.raises(UserError, match="No images in class folders"):
        list_images(ImagesConfig(url=str(flat), unlabelled="keep"), 0)


def test_packed_images_without_a_label_stay_without_one(tmp_path: Path, threads: Client) -> None:
    folder = plant(tmp_path / "photos", CLASS_OF)
    labels = CLASS_OF | {"ant/1.jpg": ""}
    table = write(tmp_path / "labels.csv", labels.items())
    config = ImagesConfig(url=str(folder), labels=str(table), unlabelled="keep")
    listed = list_images(config, 0)
    packing.pack(str(tmp_path / "tars"), listed, PackConfig(), threads)
    packed = list_images(ImagesConfig(url=str(tmp_path / "tars"), unlabelled="keep"), 0)
    assert packed.description == listed.description
    left = list_images(ImagesConfig(url=str(tmp_path / "tars")), 0)
    assert len(left) == len(listed) - 1
