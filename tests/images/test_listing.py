"""Which files of a source are images of which class."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dtl import storage
from dtl.config import ImagesConfig, SplitConfig
from dtl.features.splitting import split_images
from dtl.features.store import FeatureStore
from dtl.images.left_out import describe_empty_folders, describe_left_out
from dtl.images.listing import find_images, list_images
from dtl.images.split import assign_splits
from dtl.images.tars import locate_listed
from dtl.images.values import ImageList

DATA = Path(os.environ.get("DTL_DATA", Path(__file__).parents[2] / "../shared/data"))
NAMES = DATA / "caltech256_all_30607_files.txt"
STRAYS = {
    "198.spider/RENAME2": b"mv 198_0001.jpg 198_0002.jpg\n",
    "056.dog/greg": b"",
    "001.ak47/Thumbs.db": bytes.fromhex("d0cf11e0a1b11ae1") + bytes(504),
    "002.american-flag/._x.jpg": b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ",
    ".git/photo.jpg": b"",
    "readme.txt": b"Caltech-256",
    "cover.jpg": b"",
}


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "JPEG")
    return buffer.getvalue()


def plant(url: str, files: dict[str, bytes] | list[str]) -> str:
    """Files of the given contents, or empty ones of the given names."""
    files = files if isinstance(files, dict) else dict.fromkeys(files, b"")
    fs, root = storage.filesystem(url)
    for path, data in files.items():
        fs.pipe_file(f"{root}/{path}", data)
    return url


def listing(url: Path | str, seed: int = 0) -> ImageList:
    return list_images(ImagesConfig(url=str(url)), seed)


def rows(images: ImageList) -> list[tuple[str, str, int]]:
    return sorted(
        (path, images.class_names[label], int(split))
        for path, label, split in zip(
            images.path.tolist(), images.label, images.given_split, strict=True
        )
    )


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder in memory."""
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    storage.remove(url)


@pytest.fixture(scope="module")
def caltech_names() -> list[str]:
    if not NAMES.exists():
        pytest.skip(f"no {NAMES}: set DTL_DATA to the folder of the development data")
    return NAMES.read_text().split()


@pytest.fixture(scope="module")
def caltech(caltech_names: list[str]) -> ImageList:
    """The names of all of Caltech-256, and what lies beside them in its archive."""
    url = f"memory://{uuid.uuid4().hex}"
    plant(url, caltech_names)
    plant(url, STRAYS | {"003.backpack/photo": jpeg()})
    try:
        return listing(url)
    finally:
        # Removing them by fsspec takes minutes: it looks through all names for each.
        fs, root = storage.filesystem(url)
        for path in [path for path in fs.store if path.startswith(root)]:
            del fs.store[path]


def test_names_with_other_lines_in_them_stay_in_theirs() -> None:
    hostile = "a\n99 images of 3 classes\x1b[2J"
    shown = r"a\n99 images of 3 classes\x1b[2J"
    assert describe_left_out([(hostile, "hidden file")]).count("\n") == 1
    assert shown in describe_left_out([(hostile, "hidden file")])
    assert shown in describe_empty_folders([(hostile, "hidden file")])


def test_caltech(caltech: ImageList, caltech_names: list[str]) -> None:
    assert len(caltech) == 30_608
    assert set(caltech.path.tolist()) == {*caltech_names, "003.backpack/photo"}
    assert len(caltech.class_names) == 257
    assert (caltech.class_names[0], caltech.class_names[256]) == ("001.ak47", "257.clutter")
    for path, label in zip(caltech.path.tolist(), caltech.label.tolist(), strict=True):
        assert int(path[:3]) == label + 1
    assert caltech.label.dtype == np.int32
    assert (caltech.given_split == -1).all()
    assert caltech.left_out == (
        (".git", "hidden folder"),
        ("001.ak47/Thumbs.db", "hidden file"),
        ("002.american-flag/._x.jpg", "hidden file"),
        ("056.dog/greg", "not an image"),
        ("198.spider/RENAME2", "not an image"),
        ("cover.jpg", "in no class folder"),
        ("readme.txt", "not an image"),
    )


def test_caltech_rows_are_shuffled(caltech: ImageList) -> None:
    # Every chunk of 256 rows is to be a fair sample: 140 or so classes of the 257.
    for start in range(0, 30_000, 5000):
        assert len(np.unique(caltech.label[start : start + 256])) > 120
    assert caltech.path.tolist() != sorted(caltech.path.tolist())


def test_caltech_has_a_split(caltech: ImageList) -> None:
    assign_splits(caltech, SplitConfig(), 0)
    assign_splits(caltech, SplitConfig(method="random", validation=5000, test=6000), 0)
    assign_splits(caltech, SplitConfig(train_per_class=60), 0)
    with pytest.raises(ValueError, match=r"Class 082\.galaxy has 81 .* leaves too few"):
        assign_splits(caltech, SplitConfig(train_per_class=80), 0)
    with pytest.raises(ValueError, match="needs train/, validation/ or test/"):
        assign_splits(caltech, SplitConfig(method="folders"), 0)


SMALL = [f"{name}/{k}.jpg" for name in ("ant", "bee", "cat") for k in range(20)]


def test_the_same_list_from_anywhere(memory: str, tmp_path: Path) -> None:
    one = listing(plant(memory, SMALL))
    other = listing(plant(str(tmp_path / "elsewhere"), SMALL[::-1]))
    assert other.path.tolist() == one.path.tolist()
    np.testing.assert_array_equal(other.label, one.label)
    assert other.fingerprint == one.fingerprint
    assert (one.root, other.root) == (memory, str(tmp_path / "elsewhere"))


def test_the_seed_orders(memory: str) -> None:
    plant(memory, SMALL)
    one, other = listing(memory, 0), listing(memory, 1)
    assert rows(other) == rows(one)
    assert other.path.tolist() != one.path.tolist()
    assert other.fingerprint != one.fingerprint
    assert listing(memory, 1).fingerprint == other.fingerprint


def test_the_fingerprint_knows_sizes_and_names(memory: str) -> None:
    first = listing(plant(memory, SMALL))
    grown = listing(plant(memory, {"ant/0.jpg": b"1"}))
    assert rows(grown) == rows(first)
    assert grown.size_bytes[grown.path == "ant/0.jpg"].tolist() == [1]
    more = listing(plant(memory, {"ant/99.jpg": b""}))
    assert len({first.fingerprint, grown.fingerprint, more.fingerprint}) == 3


def test_strays_do_not_change_the_list(memory: str) -> None:
    first = listing(plant(memory, SMALL))
    strays = {f"ant/{name.split('/')[-1]}": data for name, data in STRAYS.items() if "/" in name}
    del strays["ant/photo.jpg"]
    again = listing(plant(memory, strays))
    assert again.fingerprint == first.fingerprint
    assert len(again.left_out) == 4


@pytest.mark.parametrize("validation", ["valid", "validation", "val", "Val"])
def test_folders_of_splits(memory: str, validation: str) -> None:
    images = listing(
        plant(
            memory,
            ["train/ant/1.jpg", "train/bee/2.jpg", f"{validation}/ant/3.jpg", "test/bee/4.jpg",
             "train/loose.jpg", "5.jpg"],
        )
    )  # fmt: skip
    assert rows(images) == sorted(
        [
            ("train/ant/1.jpg", "ant", 0),
            ("train/bee/2.jpg", "bee", 0),
            (f"{validation}/ant/3.jpg", "ant", 1),
            ("test/bee/4.jpg", "bee", 2),
        ]
    )
    reason = "in no class folder"
    assert images.left_out == (("5.jpg", reason), ("train/loose.jpg", reason))


def test_flat_folders_of_splits_with_caltech_names(memory: str) -> None:
    files = ["train/003_0001.jpg", "train/257_0001.jpg", "valid/003_0002.jpg", "test/257_0002.jpg"]
    assert rows(listing(plant(memory, files))) == [
        ("test/257_0002.jpg", "257", 2),
        ("train/003_0001.jpg", "003", 0),
        ("train/257_0001.jpg", "257", 0),
        ("valid/003_0002.jpg", "003", 1),
    ]


def test_an_image_without_an_extension(memory: str) -> None:
    images = listing(plant(memory, {"ant/one": jpeg(), "bee/two.JPG": b"", "bee/three": b"text"}))
    assert rows(images) == [("ant/one", "ant", -1), ("bee/two.JPG", "bee", -1)]
    assert images.left_out == (("bee/three", "not an image"),)


def test_links(tmp_path: Path) -> None:
    plant(str(tmp_path / "elsewhere"), {"bees/1.jpg": jpeg()})
    plant(str(tmp_path / "photos"), {"ant/1.jpg": jpeg()})
    (tmp_path / "photos/bee").symlink_to("../elsewhere/bees")
    (tmp_path / "photos/ant/nowhere").symlink_to("gone")
    images = listing(tmp_path / "photos")
    assert rows(images) == [("ant/1.jpg", "ant", -1), ("bee/1.jpg", "bee", -1)]
    assert images.left_out == (("ant/nowhere", "a link to nowhere"),)


def heic() -> bytes:
    return b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500)


@pytest.mark.parametrize("composed_too", [False, True])
def test_accents_as_macos_writes_them(memory: str, composed_too: bool) -> None:
    """A name that is decomposed in one place and composed in another is one class."""
    composed, decomposed = "caf\xe9", "cafe\u0301"
    test = composed if composed_too else decomposed
    plant(memory, [f"train/{decomposed}/1.jpg", "train/bar/2.jpg", f"test/{test}/3.jpg"])
    images = listing(memory)
    assert images.class_names == ("bar", composed if composed_too else decomposed)
    assert sorted(images.path.tolist()) == sorted(
        [f"train/{decomposed}/1.jpg", "train/bar/2.jpg", f"test/{test}/3.jpg"]
    )
    assert sorted(images.label.tolist()) == [0, 1, 1]


def test_a_folder_without_an_image_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {"ant/1.jpg": jpeg(), "bee/2.jpg": jpeg(), "cat/3.heic": heic(), "cat/4": heic(),
             "cat/notes.txt": b"", "dog/a/.hidden": b""}  # fmt: skip
    plant(str(tmp_path), files)
    (tmp_path / "elk" / "within").mkdir(parents=True)
    (tmp_path / "ant" / "empty").mkdir()
    with caplog.at_level("INFO", "dtl"):
        images = listing(tmp_path)
    heic_reason = "HEIC, which is not read: convert it to JPEG, for example with heif-convert"
    assert images.empty_folders == (("cat", heic_reason), ("elk", "an empty folder"))
    assert dict(images.left_out) == {
        "cat/3.heic": heic_reason, "cat/4": heic_reason, "cat/notes.txt": "not an image",
        "dog/a/.hidden": "hidden file",
    }  # fmt: skip
    said, warned = caplog.messages
    assert said == (
        f"2 images of 2 classes below {tmp_path}; 4 other files left out:\n"
        f"  2 {heic_reason}: cat/3.heic, cat/4\n"
        "  1 hidden file: dog/a/.hidden\n"
        "  1 not an image: cat/notes.txt"
    )
    assert warned == (
        f"Folders without an image are no classes: cat ({heic_reason}), elk (an empty folder)."
    )
    del files["cat/3.heic"], files["cat/4"]
    plant(f"{tmp_path}2", files)
    assert listing(f"{tmp_path}2").fingerprint == images.fingerprint


def test_a_split_without_an_image_of_a_class_is_named(tmp_path: Path) -> None:
    photos = dict.fromkeys(["x/train/ant/1.jpg", "x/train/bee/2.jpg", "x/test/bee/4.jpg"], b"")
    plant(str(tmp_path), photos | {"x/test/ant/3": heic(), "readme.txt": b""})
    images = listing(tmp_path)
    assert [folder for folder, _ in images.empty_folders] == ["test/ant"]
    assert images.root == f"{tmp_path}/x"


def test_many_files_that_are_left_out(memory: str, caplog: pytest.LogCaptureFixture) -> None:
    plant(memory, {**dict.fromkeys(SMALL, b""), **{f"ant/{k:02d}.xml": b"" for k in range(20)}})
    with caplog.at_level("INFO", "dtl"):
        listing(memory)
    assert caplog.messages[0].endswith(
        "; 20 other files left out:\n  20 not an image: ant/00.xml, ant/01.xml, ant/02.xml, ..."
    )


@pytest.mark.parametrize("name", ["one.jpg", "photo"])
def test_one_image_for_predictions(tmp_path: Path, memory: str, name: str) -> None:
    for url in (str(tmp_path), memory):
        plant(url, {name: jpeg(), "other.jpg": b""})
        found = find_images(f"{url}/{name}")
        assert (found.root, found.paths, found.sizes) == (url, [name], [len(jpeg())])
        assert [storage.read_file(file) for file in found.files()] == [jpeg()]
        with pytest.raises(NotADirectoryError, match=r"Not a folder: .*Check `images\.url`"):
            listing(f"{url}/{name}")


def test_one_image_anywhere(root: str) -> None:
    plant(root, {"x/one.jpg": jpeg(), "x/two": jpeg(), "x/three.txt": b""})
    for name in ("one.jpg", "two"):
        found = find_images(f"{root}/x/{name}")
        assert (found.paths, [storage.read_file(file) for file in found.files()]) == (
            [name], [jpeg()],
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"three\.txt is not an image"):
        find_images(f"{root}/x/three.txt")


def test_one_file_that_is_no_image(tmp_path: Path) -> None:
    plant(str(tmp_path), {"notes.txt": b"", "notes": b"text", "x.heic": heic()})
    for name, reason in [("notes.txt", "not an image"), ("notes", "not an"), ("x.heic", "HEIC, ")]:
        with pytest.raises(ValueError, match=rf"/{name} is {reason}.*Give an image, a folder, or"):
            find_images(str(tmp_path / name))


def test_names_that_are_odd(tmp_path: Path) -> None:
    """As `names/make.sh` makes them; each is read, or left out with its reason."""
    root = os.fsencode(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "01.jpg").write_bytes(jpeg())
    (tmp_path / "cat" / "IMG::1.jpg").write_bytes(jpeg())
    with open(root + b"/cat/caf\xe9.jpg", "wb") as file:
        file.write(jpeg())
    os.mkfifo(tmp_path / "cat" / "pipe")
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    (tmp_path / "cat" / "self").symlink_to("self")
    (tmp_path / "cat" / "self.jpg").symlink_to("self.jpg")
    images = listing(tmp_path)
    assert sorted(images.path.tolist()) == ["cat/01.jpg", "cat/IMG::1.jpg", "dog/01.jpg"]
    assert [storage.read_file(file) for file in locate_listed(images)] == [jpeg()] * 3
    assert dict(images.left_out) == {
        r"cat/caf\xe9.jpg": "its name is not UTF-8", "cat/pipe": "a named pipe",
        "cat/pipe.jpg": "a named pipe", "cat/self": "a link to itself",
        "cat/self.jpg": "a link to itself",
    }  # fmt: skip


def test_no_url() -> None:
    with pytest.raises(ValueError, match=r"`images\.url`"):
        listing("")


def test_no_such_folder(tmp_path: Path, memory: str) -> None:
    for url in (tmp_path / "none", f"{memory}/none"):
        with pytest.raises(
            FileNotFoundError, match=r"No such folder: .*/none\. Check `images\.url`\."
        ):
            listing(url)


def test_not_a_folder(tmp_path: Path) -> None:
    plant(str(tmp_path), {"photo.jpg": jpeg()})
    with pytest.raises(NotADirectoryError, match=r"Not a folder: .*/photo\.jpg\."):
        listing(tmp_path / "photo.jpg")


def test_unknown_scheme() -> None:
    with pytest.raises(ValueError, match=r"Unknown scheme hfds:// in 'hfds://x'\. Known: file, hd"):
        listing("hfds://x")


@pytest.mark.parametrize(
    ("files", "n_others"), [([], 0), (["a/notes.txt", "b/x.csv"], 2), (["1.jpg", "2.jpg"], 2)]
)
def test_no_images(tmp_path: Path, files: list[str], n_others: int) -> None:
    plant(str(tmp_path), files)
    with pytest.raises(
        ValueError, match=rf"No images in class folders below .* \({n_others} other files\)\. Exp"
    ):
        listing(tmp_path)


def test_one_class_only(memory: str) -> None:
    plant(memory, ["ant/1.jpg", "ant/2.jpg"])
    with pytest.raises(ValueError, match=r"Only one class, 'ant', below memory://.* needs two: gi"):
        listing(memory)


def test_split_of_a_finished_store(memory: str, caplog: pytest.LogCaptureFixture) -> None:
    images = listing(plant(memory, SMALL))
    url = f"{memory}-store"
    store = FeatureStore.create(
        url, images, {"fc2": 1}, dtype="float32", chunk_images=64, attrs={"settings": {}}
    )
    # ant/0 and ant/1 are the same file, cat/0 cannot be read.
    path = images.path.tolist()
    content = np.arange(len(images), dtype=np.uint64)
    content[path.index("ant/1.jpg")] = content[path.index("ant/0.jpg")]
    error = ["damaged" if name == "cat/0.jpg" else "" for name in path]
    store.write_chunk(0, {"fc2": np.zeros((60, 1), np.float32)}, content, error)
    with caplog.at_level("INFO", "dtl"):
        split_images(store, SplitConfig(), 0)
    split = store.read("split")
    assert split[path.index("ant/1.jpg")] == split[path.index("ant/0.jpg")] >= 0
    assert split[path.index("cat/0.jpg")] == -1
    assert (split == -1).sum() == 1
    assert "1 images repeat another's bytes (0 of them in another class)" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", "dtl"):
        split_images(store, SplitConfig(), 0)  # which is there already
        assert not caplog.messages
        split_images(store, SplitConfig(duplicates="drop"), 0)
    assert caplog.messages[-1].endswith("dropped")
    assert (store.read("split") == -1).sum() == 2
    split_images(store, SplitConfig(), 1)
    assert (store.read("split") != split).any()
    storage.remove(url)
