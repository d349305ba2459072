"""The first stage: the image files of a source, and the class of each."""

from __future__ import annotations

import errno
import functools
import logging
import operator
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dtl import storage
from dtl.config import ImagesConfig
from dtl.config.errors import UserError
from dtl.config.text import printable
from dtl.images import formats, recognition, split, tars
from dtl.images.layout import Layout, Tree, check_classes, find_layout, find_top
from dtl.images.values import ImageList
from dtl.storage import Extent
from dtl.storage.ledger import IMAGES, read_json

log = logging.getLogger(__name__)

_SNIFFERS = 16
"""Threads that look into tars and files without an image extension; they wait for the storage."""
_N_EXAMPLES = 3
_MOST_FOLDERS = 10
_NO_CLASS = "in no class folder"


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
        if len(rows) < len(self.paths):
            inside = set(rows)
            for row, path in enumerate(self.paths):
                if row not in inside:
                    self.left_out.append((path, _NO_CLASS))
            self._take(rows)
        self.paths = [path.removeprefix(prefix) for path in self.paths]
        return True

    def _take(self, rows: Sequence[int]) -> None:
        for name in ("paths", "sizes", "modified", "tar", "offset"):
            column = getattr(self, name)
            setattr(self, name, [column[row] for row in rows])

    def files(self) -> list[str | Extent]:
        """Return where the bytes of the images are."""
        return tars.locate(self.root, self.paths, self.tar_names, self.tar, self.offset, self.sizes)


def list_images(config: ImagesConfig, seed: int, *, keep_order: bool = True) -> ImageList:
    """List the labelled images of a source, in a seeded random order.

    Names and sizes are read, the headers of tars, and the content of files without an image
    extension that begin like one. `dtl.images.layout` finds what the folders mean. Names of classes
    that differ only in how Unicode composes them are one class.

    Images that all lie in tars keep the tars' order, unless that is not random: so they can be read
    from start to end. Without `keep_order`, they get the order they had in folders.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder.
    UserError
        If there is no image, or only one class; if folders look like splits or parts of a data set
        rather than classes; if a tar is damaged, or two images have one path.
    """
    found = _find_below(_locate(config.url))
    top, layout = _read_layout(found, config)
    places = [layout.read(path) for path in found.paths]
    named = np.array([name is not None for _, name in places], bool)
    for path, ok in zip(found.paths, named, strict=True):
        if not ok:
            found.left_out.append((path, _NO_CLASS))
    class_names, index = _number_classes({name for _, name in places if name is not None})
    _check_number(class_names, config.url, found.left_out)
    path_column = np.array(found.paths, np.dtypes.StringDType())[named]
    label = np.array([index[c] for _, c in places if c is not None], np.int32)
    given_split = np.array([s for s, c in places if c is not None], np.int8)
    tar = np.array(found.tar, np.int32)[named]
    in_order = keep_order and bool((tar >= 0).all())
    if in_order and not _is_sorted(label, given_split, config.url):
        order = np.arange(len(tar))
    else:
        # Ties in the hash are broken by the path, so that the order is the same on any machine.
        order = np.lexsort(
            (path_column.astype(object).argsort().argsort(),
             split.hash_keys(path_column, seed, "order"))
        )  # fmt: skip
    in_tars = order if found.tar_names else order[:0]
    log.info(
        "%d images of %d classes below %s; %s",
        len(order), len(class_names), config.url, describe_left_out(found.left_out),
    )  # fmt: skip
    empty_folders = _find_empty_folders(found, top, layout)
    if empty_folders:
        log.warning("%s", describe_empty_folders(empty_folders))
    return ImageList(
        root=found.root,
        path=path_column[order],
        label=label[order],
        given_split=given_split[order],
        size_bytes=np.array(found.sizes, np.int64)[named][order],
        modified=np.array(found.modified, np.int64)[named][order],
        class_names=class_names,
        left_out=tuple(sorted(found.left_out)),
        empty_folders=empty_folders,
        tar_names=tuple(found.tar_names),
        tar=tar[in_tars],
        offset=np.array(found.offset, np.int64)[named][in_tars],
    )


# --- classes -------------------------------------------------------------------------------------


def _read_layout(found: ImageFiles, config: ImagesConfig) -> tuple[str, Layout]:
    """Find out what the folders mean; return also the sole top folder that is gone through."""
    if config.classes == "top":
        return "", Layout()
    tree = Tree(path.rpartition("/")[0] for path in found.paths)
    top = find_top(tree)
    if top and found.enter(top):
        tree = Tree(path.rpartition("/")[0] for path in found.paths)
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


def _number_classes(names: set[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    r"""Return the class names in order, and the label of each name that was found.

    A name keeps the form that it has on disk. Where it has several (macOS decomposes accents), the
    class gets the composed one.

    Examples
    --------
    >>> _number_classes({"dog", "cafe\u0301", "caf\xe9"})[0]
    ('café', 'dog')
    """
    forms: dict[str, set[str]] = {}
    for name in names:
        forms.setdefault(unicodedata.normalize("NFC", name), set()).add(name)
    chosen = {
        (min(alike) if len(alike) == 1 else composed): alike for composed, alike in forms.items()
    }
    class_names = tuple(sorted(chosen))
    return class_names, {name: k for k, first in enumerate(class_names) for name in chosen[first]}


def _check_number(
    class_names: tuple[str, ...], url: str, left_out: Sequence[tuple[str, str]]
) -> None:
    if not class_names:
        raise UserError(
            f"No images in class folders below {url} ({len(left_out)} other files). Expected "
            "CLASS/photo.jpg, or train/CLASS/photo.jpg beside validation/ and test/; in tars, too, "
            f"or KEY.jpg with its class in KEY.cls or KEY.json.{_list_reasons(left_out)}"
        )
    if len(class_names) == 1:
        raise UserError(
            f"Only one class, {class_names[0]!r}, below {url}. A classifier needs two: give the "
            f"folder above the class folders.{_list_reasons(left_out)}"
        )


def _is_sorted(label: NDArray[np.int32], given_split: NDArray[np.int8], url: str) -> bool:
    if not tars.is_clumped(label) and not tars.is_clumped(given_split):
        return False
    log.warning(
        "The images in the tars of %s are not in random order, so they are read in another order "
        "than they lie in, which is slow. `pack` writes tars that are read from start to end.",
        url,
    )
    return True


def _find_empty_folders(found: ImageFiles, top: str, layout: Layout) -> tuple[tuple[str, str], ...]:
    """Return the folders that would be classes, if they had an image, and why they have none."""
    if not found.others:
        return ()
    compose = functools.partial(unicodedata.normalize, "NFC")
    held = set(map(compose, {layout.find_class_folder(path) for path in found.paths}))
    above = f"{top}/" if top else ""
    reasons: dict[str, Counter[str]] = {}
    for folder, counts in found.others.items():
        if not f"{folder}/".startswith(above):
            continue
        name = compose(layout.find_class_folder(f"{folder}/".removeprefix(above)))
        if name and name not in held:
            reasons[name] = reasons.get(name, Counter()) + counts
    return tuple((name, reasons[name].most_common(1)[0][0]) for name in sorted(reasons))


# --- what is said --------------------------------------------------------------------------------


def describe_left_out(left_out: Sequence[tuple[str, str]]) -> str:
    """Say how many files are left out, and for each reason how many and the first ones.

    Examples
    --------
    >>> print(describe_left_out([("b", "too big"), ("c.txt", "not an image"), ("a", "too big")]))
    3 other files left out:
      2 too big: a, b
      1 not an image: c.txt
    """
    reasons = _list_reasons(left_out)
    return f"{len(left_out)} other files left out{':' if reasons else ''}{reasons}"


def _list_reasons(left_out: Sequence[tuple[str, str]]) -> str:
    paths: dict[str, list[str]] = {}
    for path, reason in left_out:
        paths.setdefault(reason, []).append(path)
    lines = [
        f"\n  {len(some)} {reason}: {', '.join(map(printable, sorted(some)[:_N_EXAMPLES]))}"
        + (", ..." if len(some) > _N_EXAMPLES else "")
        for reason, some in sorted(paths.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return "".join(lines)


def describe_empty_folders(empty_folders: Sequence[tuple[str, str]]) -> str:
    """Say which folders are no classes because no image is in them.

    Examples
    --------
    >>> describe_empty_folders([("cat", "hidden file")])
    'Folders without an image are no classes: cat (hidden file).'
    """
    some = empty_folders[:_MOST_FOLDERS]
    shown = ", ".join(f"{printable(name)} ({reason})" for name, reason in some)
    n_more = len(empty_folders) - len(some)
    return (
        f"Folders without an image are no classes: {shown}{f' and {n_more} more' * bool(n_more)}."
    )


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
    if not named and (reason := recognition.judge_name(name) or _judge(root, n_bytes)):
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
    with ThreadPoolExecutor(_SNIFFERS) as pool:
        reasons = pool.map(lambda file: _judge(storage.join(root, file.path), file.n_bytes), unsure)
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


def _judge(url: str, n_bytes: int) -> str:
    """Return why a file is no image, as its content says; empty if it is one."""
    try:
        start = storage.read_start(url, formats.N_MAGIC_BYTES)
        if not recognition.may_be_image(start):  # most are not, and so need no second request
            return recognition.NO_IMAGE
        with storage.Ranges(url) as file:
            return recognition.judge_content(file.window().at, n_bytes)
    except (FileNotFoundError, PermissionError):
        return "cannot be read"
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return "cannot be read: its disk fails"


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
