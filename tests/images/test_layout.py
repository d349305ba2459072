"""What the folders of a source mean, and which are refused rather than guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import contents
from hypothesis import given
from hypothesis import strategies as st

from dtl import storage
from dtl.config import ImagesConfig
from dtl.config.errors import UserError
from dtl.images.layout import Layout, Tree, check_classes, find_layout, find_top
from dtl.images.listing import list_images
from dtl.images.tars import END, locate_listed, make_header, make_padding
from dtl.images.values import ImageList

CLASSES = ("ant", "bee")


def listing(url: Path | str, classes: str = "auto") -> ImageList:
    return list_images(ImagesConfig(url=str(url), classes=classes), 0)  # type: ignore[arg-type]


def plant(root: Path, *folders: str, n: int = 2) -> Path:
    """Files with an image's name in each folder."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for k in range(n):
            (root / folder / f"{k}.jpg").write_bytes(f"{folder} {k}".encode())
    return root


def with_classes(*folders: str) -> list[str]:
    return [f"{folder}/{name}" for folder in folders for name in CLASSES]


def judge(*folders: str) -> Layout:
    """Read the layout of folders that hold images, as a listing does."""
    tree = Tree(folders)
    if top := find_top(tree):
        tree = Tree(folder.removeprefix(f"{top}/") for folder in folders)
    layout = find_layout(tree)
    check_classes(tree, layout, "/photos")
    return layout


# --- told, not trained ---------------------------------------------------------------------------

REFUSED = {
    "training set": with_classes("training_set/training_set", "test_set/test_set"),
    "training set, once": with_classes("training_set", "test_set"),
    "seg": with_classes("seg_train/seg_train", "seg_test/seg_test"),
    "seg and flat": [*with_classes("seg_train/seg_train", "seg_test"), "seg_pred/seg_pred"],
    "dev and eval": with_classes("train", "dev", "eval"),
    "extra": with_classes("train", "test", "extra"),
    "flat extra": [*with_classes("train", "test"), "extra"],
    "masks": with_classes("images", "masks"),
    "flat masks": ["images", "masks"],
    "labels": ["JPEGImages", "SegmentationClass"],
    "VOC": ["JPEGImages", "SegmentationClass", "SegmentationObject"],
    "annotations": ["img_dir", "ann_dir"],
    "ground truth": ["images", "ground_truth", "mask_images"],
    "years": with_classes("train2017", "val2017", "test2017"),
    "flat": ["train", "test1"],
    "CycleGAN": ["trainA", "trainB", "testA", "testB"],
    "no training folder": with_classes("val", "test"),
    "folds": with_classes("fold1", "fold2", "fold3"),
    "folds, one deeper": with_classes("part1/a", "part2/b"),
    "domains": with_classes("amazon/images", "dslr/images", "webcam/images"),
    "augmented": with_classes("raw", "augmented"),
    "a copy": ["ant", "bee", *with_classes("backup")],
    "training beside classes": ["ant", "bee", *with_classes("train")],
    "a test folder beside classes": ["ant", "bee", "test"],
    "a validation folder beside classes": ["ant", "bee", "validation-set"],
    "names of their own": ["birds_train", "birds_test"],
    "names of their own, others beside": ["birds_train", "birds_val", "readme"],
    "splits within classes": [f"{name}/{part}" for name in CLASSES for part in ("train", "test")],
    "MVTec": [f"{thing}/{part}" for thing in ("bottle", "cable", "pill")
              for part in ("train/good", "test/good", "ground_truth/broken")],
    "Tiny ImageNet": ["train/n01/images", "train/n02/images", "val/images"],
    "masks in splits": with_classes("train/images", "train/masks", "test/images", "test/masks"),
    "splits in a folder": with_classes("data/Train_Data", "data/Test_Data"),
    "hold-out": with_classes("training", "hold-out"),
}  # fmt: skip


@pytest.mark.parametrize("folders", REFUSED.values(), ids=REFUSED)
def test_folders_that_are_no_classes_are_refused(folders: list[str]) -> None:
    with pytest.raises(
        UserError, match=r"below /photos.*`images\.url`.*`images\.classes` = (top|sec)"
    ):
        judge(*folders)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("training_set test_set", r"that are called like splits \(test_set, training_set\) bel"),
        ("cat dog eval", r"Folders that are called like splits \(eval\) below"),
        ("a/x a/y b/x b/y", r"2 of 2 folders, a, b, hold folders of the same names, x, y, below "),
        ("x y a/x a/y", r"The folder a holds folders with the names of others: x, y below"),
        ("images masks", r"are called like images and masks \(images, masks\) below"),
    ],
)
def test_what_was_found_is_named(names: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        judge(*names.split())


def test_the_cases_of_layouts(cases: Path, tmp_path: Path) -> None:
    """As `layout/make.sh` makes them."""
    assert "k/training_set" in (cases / "layout" / "make.sh").read_text()
    plant(tmp_path, *with_classes("k/training_set/training_set", "k/test_set/test_set"))
    plant(tmp_path, *with_classes("i/seg_train/seg_train", "i/seg_test/seg_test"))
    plant(tmp_path, *with_classes("d/train", "d/test", "d/extra"))
    for name in "kid":
        with pytest.raises(UserError, match=r"are called like splits .* below .*/[kid]\."):
            listing(tmp_path / name)


# --- trained as before ---------------------------------------------------------------------------

CLASSES_ON_TOP = {
    "COCO": ["train", "plane", "car", "traffic light"],
    "two": ["train", "plane"],
    "trains": ["bullet_train", "freight train", "steam-train"],
    "Places": ["train_interior", "train_station", "test_tube", "kitchen", "bedroom"],
    "valid": ["valid", "invalid"],
    "face masks": ["with_mask", "without_mask", "mask_weared_incorrect"],
    "a mask": ["mask", "no mask"],
    "Caltech": ["001.ak47", "056.dog", "056.dog/greg", "257.clutter"],
    "folders of images": ["ant/images", "bee/images", "cat/images"],
    "each twice": ["ant/ant", "bee/bee"],
    "thumbs": ["ant", "ant/thumbs", "bee", "bee/thumbs", "cat"],
    "kinds": ["animal/dog", "animal/cat", "vehicle/car", "vehicle/bus"],
    "one word in common": ["animal/dog", "animal/other", "vehicle/car", "vehicle/other"],
    "numbers": ["0", "1", "2"],
}


@pytest.mark.parametrize("folders", CLASSES_ON_TOP.values(), ids=CLASSES_ON_TOP)
def test_class_folders_stay_classes(folders: list[str]) -> None:
    assert judge(*folders) == Layout()


@pytest.mark.parametrize(
    "folders",
    [
        with_classes("train", "val", "test"),
        with_classes("Training", "Testing"),
        ["train/train", "train/plane", "test/train", "test/plane"],
        ["train/ant", "train/bee", "test/ant"],
        ["train", "valid", "test"],
    ],
)
def test_splits_stay_splits(folders: list[str]) -> None:
    assert judge(*folders) == Layout(with_splits=True)


_WORDS = st.text("abdgkmoquwz", min_size=2, max_size=6)


@given(st.lists(_WORDS, min_size=2, max_size=9, unique=True), st.integers(0, 9))
def test_any_flat_folders_of_other_names_are_classes(names: list[str], more: int) -> None:
    # No word of a split can be spelt with these letters.
    assert judge(*names) == Layout()
    train = [*names, "train"][-more - 1 :]
    if len(train) > 1:
        assert judge(*train) == Layout()


@given(
    st.lists(_WORDS, min_size=2, max_size=9, unique=True),
    st.lists(_WORDS, min_size=2, max_size=5, unique=True),
)
def test_any_folders_that_all_hold_the_same_are_refused(tops: list[str], same: list[str]) -> None:
    with pytest.raises(UserError, match=r"`images\.classes` = top"):
        judge(*(f"{top}/{name}" for top in tops for name in same))


# --- folders that are gone through ---------------------------------------------------------------


@pytest.mark.parametrize("top", ["x", "x/x", "archive/photos/all", "test", "x/seg_train"])
def test_a_sole_top_folder_is_gone_through(tmp_path: Path, top: str) -> None:
    plain = listing(plant(tmp_path / "plain", *CLASSES))
    for path, data in contents(tmp_path / "plain").items():
        file = tmp_path / "nested" / top / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    nested = listing(tmp_path / "nested")
    assert nested.class_names == CLASSES
    assert nested.fingerprint == plain.fingerprint
    assert nested.root == f"{tmp_path}/nested/{top}"
    assert read(nested) == read(plain)


def read(images: ImageList) -> dict[str, bytes]:
    with storage.Reader(locate_listed(images)) as reader:
        return {str(path): reader.read(row) for row, path in enumerate(images.path)}


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    parts = (make_header(n, len(d)) + d + make_padding(len(d)) for n, d in files.items())
    path.write_bytes(b"".join(parts) + END)


def test_tars_and_files_in_one_top_folder(tmp_path: Path) -> None:
    plant(tmp_path / "x", "ant")
    write_tar(tmp_path / "x" / "0.tar", {"bee/1.jpg": b"1", "bee/2.jpg": b"2"})
    found = listing(tmp_path)
    assert (found.root, found.tar_names) == (f"{tmp_path}/x", ("0.tar",))
    assert read(found) == {
        "ant/0.jpg": b"ant 0", "ant/1.jpg": b"ant 1", "bee/1.jpg": b"1", "bee/2.jpg": b"2",
    }  # fmt: skip


def test_loose_images_beside_the_folders_are_left_out(tmp_path: Path) -> None:
    found = listing(plant(tmp_path, "", "x", *with_classes("x/photos")))
    assert (found.class_names, len(found)) == (CLASSES, 4)
    assert len(read(found)) == 4
    reason = "in no class folder"
    assert found.left_out == tuple((path, reason) for path in (
        "0.jpg", "1.jpg", "x/0.jpg", "x/1.jpg"))  # fmt: skip


def test_a_tar_above_the_top_folder(tmp_path: Path) -> None:
    plant(tmp_path / "x", "ant")
    write_tar(tmp_path / "0.tar", {"x/bee/1.jpg": b"1"})
    with pytest.raises(UserError, match="Only one class, 'x'"):
        listing(tmp_path)


@pytest.mark.parametrize(
    "folders",
    [
        with_classes("train/train", "test/test"),
        with_classes("train/train", "test"),
        with_classes("train", "test/test_set"),
        with_classes("train/photos", "test/photos"),
        with_classes("all/all/train", "all/all/val"),
    ],
)
def test_doubled_folders_of_splits_are_gone_through(tmp_path: Path, folders: list[str]) -> None:
    found = listing(plant(tmp_path, *folders))
    assert found.class_names == CLASSES
    assert (len(found), set(found.given_split.tolist())) == (
        8, {0, 1 if "val" in folders[-1] else 2}
    )  # fmt: skip


def test_one_class_in_every_split_is_no_folder_to_go_through() -> None:
    assert judge("train/ant", "test/ant") == Layout(with_splits=True)


# --- the way out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dev and eval", "masks", "folds", "a test folder beside classes"])
def test_the_folders_on_top_can_be_said_to_be_the_classes(tmp_path: Path, name: str) -> None:
    plant(tmp_path, *REFUSED[name])
    tops = tuple(sorted({folder.split("/")[0] for folder in REFUSED[name]}))
    with pytest.raises(UserError):
        listing(tmp_path)
    found = listing(tmp_path, "top")
    assert found.class_names == tops
    assert (found.given_split == -1).all()


def test_splits_as_classes(tmp_path: Path) -> None:
    plant(tmp_path, "train", "test")
    assert listing(tmp_path, "top").class_names == ("test", "train")


def test_folders_in_splits_can_be_said_to_be_the_classes(tmp_path: Path) -> None:
    plant(tmp_path, *(f"x/{part}/{name}" for part in ("train", "test") for name in ("test", "ant")))
    with pytest.raises(
        UserError, match=r"called like splits \(test\) .*`images\.classes` = second"
    ):
        listing(tmp_path)
    found = listing(tmp_path, "second")
    assert (found.class_names, set(found.given_split.tolist())) == (("ant", "test"), {0, 2})
    plant(tmp_path, "x/extra/ant")
    with pytest.raises(UserError, match=r"second needs train/ below .*Found: extra, test, train\."):
        listing(tmp_path, "second")
