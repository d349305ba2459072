"""The first stage: the image files of a source, and the class of each."""

from __future__ import annotations

import functools
import logging
import operator
import posixpath
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dtl import storage
from dtl.config import ImagesConfig
from dtl.config.errors import UserError
from dtl.images import labels, split, tars
from dtl.images.decoding import formats, recognition
from dtl.images.labels import LabelTable
from dtl.images.layout import Layout, Tree, check_classes, find_layout, find_top, number_classes
from dtl.images.left_out import describe_empty_folders, describe_left_out, list_reasons, name_some
from dtl.images.values import NO_SPLIT, UNLABELLED, ImageList
from dtl.storage import Extent
from dtl.storage.ledger import IMAGES, LABELS, read_json

log = logging.getLogger(__name__)

_SNIFFERS = 16
"""Threads that look into tars and files without an image extension; they wait for the storage."""
_NO_CLASS = "in no class folder"
_NOT_IN_TABLE = "not in the table of labels"
_NO_LABEL = "without a label in the table of labels"
_NOWHERE = (NO_SPLIT, "")
"""Split and class of an image that has none, and is kept."""


@dataclass
class ImageFiles:
    """The image files of a source, in the order in which they were found.

    An image in a tar has the path that it would have if the tar were unpacked in its place; or
    CLASS/KEY.jpg, where its class lies beside it.
    """

    root: str  # URL that paths and tars are relative to
    paths: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # bytes
    modified: list[int] = field(default_factory=list)  # as in `ImageList`
    left_out: list[tuple[str, str]] = field(default_factory=list)  # path, reason
    # Folders of the files that are left out, and how many for each reason; tars as unpacked
    others: dict[str, Counter[str]] = field(default_factory=dict)
    is_packed: bool = False  # with a table of labels beside the tars
    tar_names: list[str] = field(default_factory=list)  # of the tars that have images
    tar: list[int] = field(default_factory=list)  # as in `ImageList`, like `offset`
    offset: list[int] = field(default_factory=list)

    def add(
        self, path: str, n_bytes: int, modified: int = 0, *, tar: int = -1, offset: int = 0
    ) -> None:
        """Add an image."""
        self.paths.append(path)
        self.sizes.append(n_bytes)
        self.modified.append(modified)
        self.tar.append(tar)
        self.offset.append(offset)

    def leave_out(self, path: str, reason: str, place: str | None = None) -> None:
        """Leave a file out; `place` is the path that it would have, if that is another."""
        self.left_out.append((path, reason))
        if reason not in (recognition.HIDDEN, recognition.HIDDEN_FOLDER):
            folder = (path if place is None else place).rpartition("/")[0]
            self.others.setdefault(folder, Counter())[reason] += 1

    def sort(self) -> None:
        """Sort by tar and place in it; files outside tars by path."""
        keys = list(zip(self.tar, self.offset, self.paths, strict=True))
        self._take(sorted(range(len(keys)), key=keys.__getitem__))

    def enter(self, top: str) -> bool:
        """Make paths relative to a folder, leave out files above; return whether it worked."""
        prefix = f"{top}/"
        rows = [row for row, path in enumerate(self.paths) if path.startswith(prefix)]
        if any(self.tar[row] < 0 for row in rows):
            if not all(name.startswith(prefix) for name in self.tar_names):
                return False  # a tar above the folder could not be named from there
            self.tar_names = [name.removeprefix(prefix) for name in self.tar_names]
            self.root = storage.join(self.root, top)
        self.keep(rows, lambda _: _NO_CLASS)
        self.paths = [path.removeprefix(prefix) for path in self.paths]
        return True

    def keep(self, rows: Sequence[int], judge: Callable[[int], str]) -> None:
        """Keep some of the images, and leave the others out for the reason that `judge` gives."""
        if len(rows) < len(self.paths):
            kept = set(rows)
            others = (row for row in range(len(self.paths)) if row not in kept)
            self.left_out += [(self.paths[row], judge(row)) for row in others]
            self._take(rows)

    def _take(self, rows: Sequence[int]) -> None:
        for name in ("paths", "sizes", "modified", "tar", "offset"):
            column = getattr(self, name)
            setattr(self, name, [column[row] for row in rows])

    def files(self) -> list[str | Extent]:
        """Return where the bytes of the images are."""
        return tars.locate(self.root, self.paths, self.tar_names, self.tar, self.offset, self.sizes)


def list_images(config: ImagesConfig, seed: int, *, keep_order: bool = True) -> ImageList:
    """List the images of a source, in a seeded random order.

    Names and sizes are read, the headers of tars, and the content of files without an image
    extension that begin like one. `dtl.images.layout` finds what the folders mean, or
    `dtl.images.labels` reads a table. Names of classes that differ only in how Unicode composes
    them are one class.

    Images without a label, in no class folder or in no row of the table with a class, are left out;
    or they have the label `UNLABELLED`, if ``images.unlabelled`` is ``keep``.

    Images that all lie in tars keep the tars' order, unless that is not random: so they can be read
    from start to end. Without `keep_order`, they get the order they had in folders.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder, or no such table.
    UserError
        If there is no image, or only one class; if folders look like splits or parts of a data set
        rather than classes; if a table is damaged, or is of other images; if a tar is damaged, or
        two images have one path.
    """
    root = _locate(config.url)
    table = labels.read_table(config) if config.labels else None  # before what may take long
    found = _find_below(root)
    if table is None and found.is_packed:
        beside = storage.join(found.root, LABELS)
        table = labels.read_table(ImagesConfig(url=found.root, labels=beside))
    if table is None:
        places, empty_folders = _read_folders(found, config)
    else:
        places, empty_folders = _read_labels(found, table, config.unlabelled), ()
    class_names, index = number_classes({name for _, name in places if name})
    if len(class_names) == 1:
        raise UserError(
            f"Only one class, {class_names[0]!r}, below {found.root}. A classifier needs two: give "
            "the folder above the class folders, or a table with more classes."
            f"{list_reasons(found.left_out)}"
        )
    label = np.array([index.get(name, UNLABELLED) for _, name in places], np.int32)
    given_split = np.array([split_ for split_, _ in places], np.int8)
    keep_order = keep_order and not _is_sorted(found, label, given_split, config.url)
    n_unlabelled = int((label == UNLABELLED).sum())
    log.info(
        "%d images of %d classes%s below %s; %s",
        len(label) - n_unlabelled, len(class_names),
        f", and {n_unlabelled} without a label" * bool(n_unlabelled), config.url,
        describe_left_out(found.left_out),
    )  # fmt: skip
    if empty_folders:
        log.warning("%s", describe_empty_folders(empty_folders))
    path = np.array(found.paths, np.dtypes.StringDType())
    order = np.arange(len(path)) if keep_order else split.shuffle(path, seed)
    in_tars = order if found.tar_names else order[:0]
    return ImageList(
        root=found.root,
        path=path[order],
        label=label[order],
        given_split=given_split[order],
        size_bytes=np.array(found.sizes, np.int64)[order],
        modified=np.array(found.modified, np.int64)[order],
        class_names=class_names,
        left_out=tuple(sorted(found.left_out)),
        empty_folders=empty_folders,
        tar_names=tuple(found.tar_names),
        tar=np.array(found.tar, np.int32)[in_tars],
        offset=np.array(found.offset, np.int64)[in_tars],
    )


# --- classes -------------------------------------------------------------------------------------


def _read_layout(found: ImageFiles, config: ImagesConfig) -> tuple[str, Layout]:
    """Find out what the folders mean; return also the sole top folder that is gone through."""
    if config.classes == "top":
        return "", Layout()
    tree = Tree.of(found.paths)
    top = find_top(tree)
    if top and found.enter(top):
        tree = Tree.of(found.paths)
    else:
        top = ""
    layout = find_layout(tree)
    if config.classes == "auto":
        check_classes(tree, layout, config.url)
    elif not layout.with_splits:
        raise UserError(
            f"`images.classes` = second needs train/ below {config.url}, and only validation/ and "
            f"test/ beside it. Found: {', '.join(sorted(tree.below('')))}."
        )
    return top, layout


def _read_folders(
    found: ImageFiles, config: ImagesConfig
) -> tuple[list[tuple[int, str]], tuple[tuple[str, str], ...]]:
    """Return split and class of each image, and the folders without one; leave out the others.

    An image without a class, if it is kept, has an empty one.
    """
    top, layout = _read_layout(found, config)
    places = [layout.read(path) for path in found.paths]
    rows = [row for row, (_, name) in enumerate(places) if name]
    if not rows or config.unlabelled == "leave_out":
        found.keep(rows, lambda _: _NO_CLASS)
    if not rows:
        raise UserError(
            f"No images in class folders below {config.url} ({len(found.left_out)} other files). "
            "Expected CLASS/photo.jpg, or train/CLASS/photo.jpg beside validation/ and test/; in "
            "tars, too, or KEY.jpg with its class in KEY.cls or KEY.json; or a table of classes, "
            f"`images.labels`.{list_reasons(found.left_out)}"
        )
    of_kept = places if config.unlabelled == "keep" else [places[row] for row in rows]
    kept = [(split_, name) if name else _NOWHERE for split_, name in of_kept]
    return kept, layout.find_empty(found.paths, found.others, f"{top}/" if top else "")


def _read_labels(found: ImageFiles, table: LabelTable, unlabelled: str) -> list[tuple[int, str]]:
    """Return split and class of each image that a table labels; leave out the others.

    An image without a label, if it is kept, has an empty class.

    Where most classes are those of the folders, the table corrects them: a sole top folder is gone
    through as without it, so that the images keep their paths.
    """
    paths = found.paths
    top = "" if found.is_packed else find_top(Tree.of(paths))
    every, missing = table.match(paths, top)
    if len(missing) == len(table.places):
        raise UserError(
            f"No row of {table.url} has an image below {found.root}. Give paths relative to it. "
            f"The first row is {name_some(missing[:1])}, the first image {name_some(paths[:1])}."
        )
    if missing:
        log.warning(
            "%d of %d rows of %s have no image: %s",
            len(missing), len(table.places), table.url, name_some(missing),
        )  # fmt: skip
    rows = [row for row, place in enumerate(every) if place and place[1]]
    if not rows:
        raise UserError(f"{table.url} has no labels for the images below {found.root}.")
    if unlabelled == "leave_out":
        found.keep(rows, lambda row: _NOT_IN_TABLE if every[row] is None else _NO_LABEL)
        every = [every[row] for row in rows]
    above = f"{top}/" if top and all(path.startswith(f"{top}/") for path in found.paths) else ""
    layout = find_layout(Tree.of(p.removeprefix(above) for p in paths if p.startswith(above)))
    places = [(p[0], p[1]) if p is not None and p[1] else _NOWHERE for p in every]
    folders = [layout.read(path.removeprefix(above)) for path in found.paths]
    same = sum(a[1] == b[1] != "" for a, b in zip(places, folders, strict=True))
    if above and 2 * same > len(rows):
        found.enter(top)
    if not table.has_splits:
        places = [(a[0], b[1]) if b[1] else _NOWHERE for a, b in zip(folders, places, strict=True)]
    return places


def _is_sorted(
    found: ImageFiles, label: NDArray[np.int32], given_split: NDArray[np.int8], url: str
) -> bool:
    """Return whether the images have no random order to keep; warn of tars that have another."""
    if min(found.tar) < 0:
        return True
    if not tars.is_clumped(label) and not tars.is_clumped(given_split):
        return False
    log.warning(
        "The images in the tars of %s are not in random order, so they are read in another order "
        "than they lie in, which is slow. `pack` writes tars that are read from start to end.",
        url,
    )
    return True


# --- files ---------------------------------------------------------------------------------------


def find_images(url: str) -> ImageFiles:
    """Find the image files below a folder, whatever its folders mean, or in a tar, or one image.

    Raises as `list_images`. A folder that `pack` or `fetch` has not filled completely is a
    `UserError`, too, and so is a file that is neither an image nor a tar.
    """
    root = _locate(url)
    if root.lower().endswith(".tar") or not storage.is_file(root):
        return _find_below(root)
    folder, name = root.rsplit("/", 1)
    found = ImageFiles(folder)
    n_bytes = storage.size(root)
    named = formats.has_image_name(name)
    reason = "" if named else recognition.judge_name(name) or recognition.judge_file(root, n_bytes)
    if reason:
        raise UserError(f"{url} is {reason}. Give an image, a folder, or a tar of images.")
    found.add(name, n_bytes, storage.modified(root))
    return found


def _locate(url: str) -> str:
    if not url:
        raise UserError("No images given. Set `images.url`.")
    return storage.absolute(url)


def _find_below(root: str) -> ImageFiles:
    if root.lower().endswith(".tar") and storage.is_file(root):
        root, name = root.rsplit("/", 1)
        found = ImageFiles(root)
        _add_tars(found, [storage.Found(name, 0, modified=storage.modified(root))])
        return found
    found = ImageFiles(root)
    unsure: list[storage.Found] = []
    packed: list[storage.Found] = []
    try:
        for file in storage.walk(root, _judge_folder, with_empty=True):
            path = file.path
            if file.problem == storage.EMPTY:
                found.others.setdefault(path, Counter())[file.problem] += 1
            elif file.problem:
                found.leave_out(path, file.problem)
            elif recognition.is_hidden(storage.base_name(path)):
                found.leave_out(path, recognition.HIDDEN)
            elif path == IMAGES:
                _check_complete(storage.join(root, path))
            elif path == LABELS:
                found.is_packed = True
            elif formats.has_image_name(path):
                found.add(path, file.n_bytes, file.modified)
            elif path.lower().endswith(".tar"):
                packed.append(file)
            elif reason := recognition.judge_name(path):
                found.leave_out(path, reason)
            else:
                unsure.append(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} Check `images.url`.") from None
    except NotADirectoryError as error:
        raise NotADirectoryError(
            f"{error} Check `images.url`: expected a folder of class folders, or a tar."
        ) from None
    judge = recognition.judge_file
    with ThreadPoolExecutor(_SNIFFERS) as pool:
        reasons = pool.map(lambda file: judge(storage.join(root, file.path), file.n_bytes), unsure)
        for file, reason in zip(unsure, reasons, strict=True):
            if reason:
                found.leave_out(file.path, reason)
            else:
                found.add(file.path, file.n_bytes, file.modified)
    _add_tars(found, packed)
    return found


def _judge_folder(name: str) -> str:
    return recognition.HIDDEN_FOLDER if recognition.is_hidden(name) else ""


def _check_complete(url: str) -> None:
    if (read_json(url) or {}).get("complete") is False:
        raise UserError(
            f"{url} says that its folder is not complete: the command that fills it was "
            "interrupted. Give that command again first; it goes on where it was."
        )


def _add_tars(found: ImageFiles, packed: list[storage.Found]) -> None:
    packed.sort(key=operator.attrgetter("path"))
    names = [file.path for file in packed]
    # Where all lie in one folder, that is no class.
    folders = [name.rpartition("/")[0] for name in names]
    above = posixpath.commonpath(folders) if folders and not found.paths else ""
    list_tar = functools.partial(_list_tar, found.root, above)
    with ThreadPoolExecutor(_SNIFFERS) as pool:
        listed = pool.map(list_tar, names)
        for file, folder, contents in zip(packed, folders, listed, strict=True):
            name, tar = file.path, len(found.tar_names)
            prefix = f"{folder}/" if folder else ""
            for path, n_bytes, offset in contents.images:
                found.add(prefix + path, n_bytes, file.modified, tar=tar, offset=offset)
            for path, reason, place in contents.left_out:
                found.leave_out(f"{name}/{path}", reason, prefix + place)
            if contents.images:
                found.tar_names.append(name)
    if found.tar_names and len(set(found.paths)) < len(found.paths):
        path = next(path for path, n in Counter(found.paths).items() if n > 1)
        twins = [found.tar[row] for row, other in enumerate(found.paths) if other == path]
        places = ", ".join(found.tar_names[k] if k >= 0 else "a file" for k in twins)
        raise UserError(
            f"{len(twins)} images have the path {path} ({places} in {found.root}). Every image "
            "needs its own: remove the tars that repeat others, or number their members through."
        )


def _list_tar(root: str, above: str, name: str) -> tars.Contents:
    url, folder = storage.join(root, name), name.rpartition("/")[0]
    try:
        with storage.Ranges(url) as file:
            return tars.list_contents(file.window(), folder.removeprefix(above).strip("/"))
    except ValueError as error:
        raise UserError(f"{url} is {error} Copy or make it again, or remove it.") from error
