"""The meaning of a source's folders: splits, classes, or neither, which is refused.

Position gives a folder its meaning. Without checks, ``training_set/`` beside ``test_set/``, or
``images/`` beside ``masks/``, would become the classes of a training.

- A sole top folder is gone through, and so is ``train/train/`` or ``train/x/`` beside ``test/x/``.
- The top folders are splits if all of them are called train, validation or test, or nearly so.
- Otherwise they are classes, unless `check_classes` finds that they hardly can be.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from dtl.config.errors import UserError
from dtl.config.text import printable
from dtl.images.values import NO_SPLIT, SPLITS

_SPLIT_NAMES = {
    "train": 0, "training": 0, "valid": 1, "validation": 1, "val": 1, "test": 2, "testing": 2,
}  # fmt: skip
_CALTECH_FILE = re.compile(r"(\d{3})_\d{4}")

_WORDS = {
    "train": ["train", "trains", "training", "trn", "trainset", "trainingset", "trainval"],
    "validation": ["val", "valid", "validation", "validate", "valset", "dev", "devel", "devset"],
    "test": ["test", "tests", "testing", "tst", "testset", "eval", "evaluation", "evalset",
             "holdout", "heldout"],
    "extra": ["extra", "unlabeled", "unlabelled", "unsup", "pred", "predict"],
}  # fmt: skip
_KIND_OF_WORD = {word: kind for kind, words in _WORDS.items() for word in words}
"""Words that name splits, and the kind of split. Those of "extra" say nothing by themselves."""
_SPLIT_OF_KIND = {"train": 0, "validation": 1, "test": 2}
_MOST_SHOWN = 6
_FILLERS = {
    "set", "sets", "seg", "data", "dataset", "datasets", "image", "images", "img", "imgs",
    "photo", "photos", "picture", "pictures", "pic", "pics", "folder", "folders", "dir", "split",
    "splits", "part", "hr", "lr", "new", "final", "all", "raw", "cropped", "resized", "a", "b",
    "x", "y", "the", "in", "out", "hold", "held",
}  # fmt: skip
_PICTURES = {
    "image", "images", "img", "imgs", "jpegimages", "jpeg", "jpegs", "photos", "pictures", "rgb",
}  # fmt: skip
_MASKS = {
    "mask", "masks", "label", "labels", "annotation", "annotations", "annot", "anno", "ann", "gt",
    "segmentation", "segmentations", "seg", "groundtruth", "ground", "truth", "trimap", "trimaps",
}  # fmt: skip
_OF_FILES = {"dir", "dirs", "folder", "folders", "file", "files", "data", "class", "object", "png"}


# --- paths ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Meaning of the folders of a source.

    `with_splits` says that the first folder is a split. `n_passed` counts the folders that are gone
    through below such a folder.
    """

    with_splits: bool = False
    n_passed: Mapping[str, int] = field(default_factory=dict)

    def read(self, path: str) -> tuple[int, str | None]:
        """Read the split and class of an image from its path, relative to the source.

        In a split without class folders, the class is the number that begins a Caltech file name.
        It is None where the path names no class.

        Examples
        --------
        >>> Layout().read("003.backpack/003_0001.jpg"), Layout().read("loose.jpg")
        ((-1, '003.backpack'), (-1, None))
        >>> Layout(with_splits=True).read("valid/003_0001.jpg")
        (1, '003')
        """
        *folders, name = path.split("/")
        if not self.with_splits:
            return NO_SPLIT, folders[0] if folders else None
        if not folders or not is_split_name(folders[0]):
            return NO_SPLIT, None
        part = _SPLIT_NAMES[folders[0].lower()]
        if below := folders[1 + self.n_passed.get(folders[0], 0) :]:
            return part, below[0]
        caltech = _CALTECH_FILE.match(name)
        return part, caltech[1] if caltech else None

    def find_class_folder(self, path: str) -> str:
        """Return the part of an image's path that ends with the class folder, or ""."""
        *folders, _ = path.split("/")
        n_folders = 1
        if self.with_splits:
            if not folders or not is_split_name(folders[0]):
                return ""
            n_folders = 2 + self.n_passed.get(folders[0], 0)
        return "/".join(folders[:n_folders]) if len(folders) >= n_folders else ""

    def find_empty(
        self, paths: Iterable[str], others: Mapping[str, Counter[str]], above: str = ""
    ) -> tuple[tuple[str, str], ...]:
        """Return the folders that would be classes, if they had an image, and why they have none.

        Parameters
        ----------
        paths : iterable of str
            Images.
        others : mapping
            Other folders, and how many files were left out in them for each reason.
        above : str
            What the names of other folders begin with, unless they lie outside the source.
        """
        held = {compose(self.find_class_folder(path)) for path in paths} if others else set()
        reasons: dict[str, Counter[str]] = {}
        for folder, counts in others.items():
            if not f"{folder}/".startswith(above):
                continue
            name = compose(self.find_class_folder(f"{folder}/".removeprefix(above)))
            if name and name not in held:
                reasons[name] = reasons.get(name, Counter()) + counts
        return tuple((name, reasons[name].most_common(1)[0][0]) for name in sorted(reasons))


def compose(name: str) -> str:
    """Return a name as Unicode composes it; macOS decomposes accents."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def number_classes(names: Iterable[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    r"""Return the class names, sorted as texts, and the label of each name.

    A name keeps the form that it has. Where it has several (macOS decomposes accents), the class
    gets the composed one.

    Examples
    --------
    >>> number_classes({"dog", "cafe\u0301", "caf\xe9"})[0]
    ('café', 'dog')
    """
    forms: dict[str, set[str]] = {}
    for name in names:
        forms.setdefault(compose(name), set()).add(name)
    chosen = {
        (min(alike) if len(alike) == 1 else composed): alike for composed, alike in forms.items()
    }
    class_names = tuple(sorted(chosen))
    return class_names, {name: k for k, first in enumerate(class_names) for name in chosen[first]}


def folders_are_splits(top_folders: Iterable[str]) -> bool:
    """Return whether a source's folders are splits rather than classes.

    Examples
    --------
    >>> folders_are_splits(["train", "val"]), folders_are_splits(["train", "plane"])
    (True, False)
    """
    names = {name.lower() for name in top_folders}
    return {SPLITS[0], "training"} & names != set() and names <= set(_SPLIT_NAMES)


def is_split_name(folder: str) -> bool:
    """Return whether a folder of this name is a split where all folders beside it are, too."""
    return folder.lower() in _SPLIT_NAMES


def read_split(word: str) -> int | None:
    """Return the split that a word of a table names, as an index into `SPLITS`; None if none.

    Examples
    --------
    >>> [read_split(word) for word in ("Train", "val", "dev", "test", "fold1")]
    [0, 1, 1, 2, None]
    """
    return {**_SPLIT_NAMES, "dev": 1}.get(word.lower())


class Tree:
    """Folders of a source.

    Parameters
    ----------
    folders : iterable of str
        Those that hold images themselves; "" is the source.
    """

    def __init__(self, folders: Iterable[str]) -> None:
        self.holding = frozenset(folders)
        self._below: dict[str, set[str]] = {}
        for folder in self.holding:
            while folder:
                folder, _, name = folder.rpartition("/")
                self._below.setdefault(folder, set()).add(name)

    @classmethod
    def of(cls, paths: Iterable[str]) -> Tree:
        """Return the tree of the folders of some images."""
        return cls(path.rpartition("/")[0] for path in paths)

    def below(self, folder: str) -> set[str]:
        """Return the names of the folders in a folder."""
        return self._below.get(folder, set())

    def find_sole(self, folder: str = "") -> str | None:
        """Return the path of the sole folder in a folder that holds no images itself, or None."""
        names = self.below(folder)
        if folder in self.holding or len(names) != 1:
            return None
        (name,) = names
        return f"{folder}/{name}" if folder else name


def find_layout(tree: Tree) -> Layout:
    """Find out what the folders of a source mean, below its sole top folder.

    Examples
    --------
    >>> find_layout(Tree(["train/train/ant", "train/train/bee", "test/ant"]))
    Layout(with_splits=True, n_passed={'train': 1})
    """
    if not folders_are_splits(tops := tree.below("")):
        return Layout()
    return Layout(True, {top: n for top in sorted(tops) if (n := _count_passed(tree, top, tops))})


def _count_passed(tree: Tree, top: str, tops: Collection[str]) -> int:
    """Return how many folders below the folder of a split are gone through."""
    sole = {split: tree.below(split) for split in tops if split not in tree.holding}
    n_passed = 0
    if all(len(below) == 1 for below in sole.values()) and len(sole) == len(tops):
        # Such as train/photos/ beside test/photos/; but one class in all splits holds its images.
        names = {name for below in sole.values() for name in below}
        inner = [f"{split}/{name}" for split, below in sole.items() for name in below]
        if len(names) == 1 and not tree.holding.intersection(inner):
            return 1
    below = sole.get(top, set())
    others = {name for split in tops if split != top for name in tree.below(split)}
    if len(below) == 1 and not below & others:
        (name,) = below
        n_passed = int(_SPLIT_NAMES[top.lower()] == _SPLIT_OF_KIND.get(_find_kind(name)))
    return n_passed


def find_top(tree: Tree) -> str:
    """Return the path of the folder that all class folders lie in; "" for the source.

    Examples
    --------
    >>> find_top(Tree(["photos/photos/ant", "photos/photos/bee"])), find_top(Tree(["ant"]))
    ('photos/photos', '')
    """
    top = ""
    while len(names := tree.below(top)) == 1:
        (name,) = names
        inner = f"{top}/{name}" if top else name
        if not tree.below(inner) or folders_are_splits({name}):
            break
        top = inner
    return top


# --- refusals ------------------------------------------------------------------------------------


def check_classes(tree: Tree, layout: Layout, url: str) -> None:
    """Refuse folders that would be classes, but look like splits or parts of a data set.

    They do if

    - most of them hold folders of the same names;
    - one holds folders with the names of others: it is a copy, or a split;
    - one is called like a split. ``train`` is also a vehicle: it is a class if it holds images and
      no folders, and no other class is called like a split;
    - all are called like splits in part, of two kinds, or two differ only in that:
      ``birds_train`` and ``birds_test``, but not ``bullet_train`` and ``test_tube``;
    - half or more are called like images and masks.

    Raises
    ------
    UserError
        With the folders that were found, and what to do.
    """
    places: dict[str, list[str]] = {}
    for base in _find_bases(tree, layout):
        for name in tree.below(base):
            places.setdefault(name, []).append(f"{base}/{name}" if base else name)
    if len(places) < 2:
        return
    inside = _list_inside(tree, places)
    problem = (
        _find_names(inside)
        or _find_copies(inside)
        or _find_shared_folders(tree, places)
        or _find_unlearnt(tree, layout, places)
    )
    way_out = "second" if layout.with_splits else "top"
    if problem:
        raise UserError(
            f"{problem} below {url}. Such folders are parts of a data set rather than its classes. "
            "If they are splits, call them train/, validation/ and test/, with class folders in "
            "each, or give one of them as `images.url`. Move away what is no photograph of a "
            f"class. If they are the classes, set `images.classes` = {way_out}."
        )


def _find_bases(tree: Tree, layout: Layout) -> list[str]:
    """Return the folders that class folders lie in."""
    if not layout.with_splits:
        return [""]
    bases = []
    for base in sorted(tree.below("")):
        for _ in range(layout.n_passed.get(base, 0)):
            base = tree.find_sole(base) or base
        bases.append(base)
    return bases


def _list_inside(tree: Tree, places: Mapping[str, list[str]]) -> dict[str, set[str]]:
    """Return the names of the folders inside each class, wherever it lies."""
    return {name: set().union(*map(tree.below, folders)) for name, folders in places.items()}


def _find_names(inside: Mapping[str, Collection[str]]) -> str:
    kinds = {name: _find_kind(name) for name in inside}
    called = [name for name, kind in kinds.items() if kind]
    if any(kinds[name] != "extra" for name in called):
        (name, *others) = called
        vehicle = name.lower() in ("train", "trains")
        opposite = name.lower() == "valid" and "invalid" in {other.lower() for other in inside}
        if others or inside[name] or not (vehicle or opposite):
            return _call(called, "splits")
    words = {name: _read_words(name) for name in inside}
    kinds_of_words = {name: {_KIND_OF_WORD.get(word) for word in words[name]} - {None}
                      for name in inside}  # fmt: skip
    rests: dict[tuple[str, ...], list[str]] = {}
    for name in inside:
        if kinds_of_words[name]:
            rest = tuple(word for word in words[name] if word not in _KIND_OF_WORD)
            rests.setdefault(rest, []).append(name)
    groups = [*rests.values(), [*inside] if all(kinds_of_words.values()) else []]
    for group in groups:
        if len(set().union(*(kinds_of_words[name] for name in group))) > 1:
            return _call(group, "splits")
    pictures = [name for name in inside if _is_made_of(name, _PICTURES)]
    masks = [
        name
        for name in inside
        if _is_made_of(name, _MASKS | _PICTURES) and not _is_made_of(name, _PICTURES)
    ]
    if pictures and masks and 2 * len(pictures + masks) >= len(inside):
        return _call(pictures + masks, "images and masks")
    return ""


def _find_copies(inside: Mapping[str, Collection[str]]) -> str:
    for name, folders in inside.items():
        same = sorted((set(folders) & set(inside)) - {name})
        if len(same) > 1:
            return f"The folder {name} holds folders with the names of others: {_list(same)}"
    return ""


def _find_shared_folders(tree: Tree, places: Mapping[str, list[str]]) -> str:
    """Say so if most classes hold the same folders, there or below a sole folder of theirs."""
    while True:
        inside = _list_inside(tree, places)
        counts = Counter(inner for names in inside.values() for inner in names)
        shared = {inner for inner, n in counts.items() if n > 1 and 2 * n > len(inside)}
        holders = [
            name for name, names in inside.items() if 2 * len(names & shared) > len(names) > 0
        ]
        # One folder of the same name in each is no other way to see the classes.
        if len(counts) > 1 and len(holders) > 1 and 2 * len(holders) > len(inside):
            return (
                f"{len(holders)} of {len(inside)} folders, {_list(holders)}, hold folders of the "
                f"same names, {_list(sorted(shared))},"
            )
        deeper = {
            name: [tree.find_sole(folder) or folder for folder in folders]
            for name, folders in places.items()
        }
        if deeper == places:
            return ""
        places = deeper


def _find_unlearnt(tree: Tree, layout: Layout, places: Mapping[str, list[str]]) -> str:
    """Say so if a split has a folder of images where others have class folders."""
    if not layout.with_splits:
        return ""
    for name, folders in places.items():
        tops = {folder.split("/")[0] for folder in folders}
        if _is_made_of(name, _PICTURES) and not any(_SPLIT_NAMES[top.lower()] == 0 for top in tops):
            return f"The folder {folders[0]} holds images where train has class folders,"
    return ""


# --- names ---------------------------------------------------------------------------------------


def _read_words(name: str) -> list[str]:
    """Return the words of a name in small letters: of ``trainSet_2017``, train and set."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word.lower() for word in re.findall(r"[^\W\d_]+", parted)]


def _is_made_of(name: str, words: Collection[str]) -> bool:
    """Return whether a name has some of the words and, of others, only those of files."""
    found = set(_read_words(name)) - _OF_FILES
    return bool(found) and found <= set(words)


def _find_kind(name: str) -> str:
    """Return the kind of split that a folder is called like, or "".

    Examples
    --------
    >>> [_find_kind(name) for name in ("training_set", "seg_test", "val2017", "bullet_train")]
    ['train', 'test', 'validation', '']
    """
    words = _read_words(name)
    joined = _KIND_OF_WORD.get("".join(words), "")
    kinds = [kind for word in words if (kind := _KIND_OF_WORD.get(word, ""))]
    others = {word for word in words if word not in _KIND_OF_WORD} - _FILLERS
    return joined or (kinds[0] if kinds and not others else "")


def _call(names: Collection[str], like: str) -> str:
    return f"Folders that are called like {like} ({_list(names)})"


def _list(names: Collection[str]) -> str:
    shown = sorted(names)[:_MOST_SHOWN]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(map(printable, shown)) + more
