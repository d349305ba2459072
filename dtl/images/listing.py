"""The first stage: the image files of a source, and the class of each."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from dtl import storage
from dtl.config import ImagesConfig
from dtl.config.errors import UserError
from dtl.images import formats, split, tars
from dtl.images.values import NO_SPLIT, SPLITS, ImageList
from dtl.storage import Extent
from dtl.storage.ledger import IMAGES, read_json

log = logging.getLogger(__name__)

_SPLIT_NAMES = {
    "train": 0, "training": 0, "valid": 1, "validation": 1, "val": 1, "test": 2, "testing": 2,
}  # fmt: skip
_CALTECH_FILE = re.compile(r"(\d{3})_\d{4}")
_SNIFFERS = 16
"""Threads that look into tars and files without an image extension; they wait for the storage."""


@dataclass
class ImageFiles:
    """The image files of a source, in the order in which they were found.

    An image in a tar has the path that it would have if the tar were unpacked in its place; or
    CLASS/KEY.jpg, where its class lies beside it.
    """

    root: str  # URL that paths and tars are relative to
    paths: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # bytes
    left_out: list[tuple[str, str]] = field(default_factory=list)  # path, reason
    tar_names: list[str] = field(default_factory=list)  # of the tars that have images
    tar: list[int] = field(default_factory=list)  # as in `ImageList`, like `offset`
    offset: list[int] = field(default_factory=list)

    def add(self, path: str, n_bytes: int, tar: int = -1, offset: int = 0) -> None:
        """Add an image."""
        self.paths.append(path)
        self.sizes.append(n_bytes)
        self.tar.append(tar)
        self.offset.append(offset)

    def sort(self) -> None:
        """Sort by tar and place in it; files outside tars by path."""
        keys = list(zip(self.tar, self.offset, self.paths, strict=True))
        rows = sorted(range(len(keys)), key=keys.__getitem__)
        for name in ("paths", "sizes", "tar", "offset"):
            setattr(self, name, [getattr(self, name)[row] for row in rows])

    def files(self) -> list[str | Extent]:
        """Return where the bytes of the images are."""
        return tars.locate(self.root, self.paths, self.tar_names, self.tar, self.offset, self.sizes)


def list_images(config: ImagesConfig, seed: int, *, keep_order: bool = True) -> ImageList:
    """List the labelled images of a source, in a seeded random order.

    Names and sizes are read, the headers of tars, and the first bytes of files without an image
    extension. Images that all lie in tars keep the tars' order, unless that is not random: so they
    can be read from start to end. Without `keep_order`, they get the order they had in folders.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder.
    UserError
        If there is no image, or only one class; if a tar is damaged, or two images have one path.
    """
    found = find_images(config.url)
    paths, left_out = _strip_common_folder(found), found.left_out
    top_folders = {path.split("/")[0] for path in paths if "/" in path}
    with_splits = folders_are_splits(top_folders)
    places = [read_split_and_class(path, with_splits) for path in paths]
    named = np.array([name is not None for _, name in places], bool)
    left_out += [
        (path, "in no class folder") for path, ok in zip(paths, named, strict=True) if not ok
    ]
    class_names = tuple(sorted({name for _, name in places if name is not None}))
    _check_classes(class_names, config.url, len(left_out))
    index = {name: k for k, name in enumerate(class_names)}
    path_column = np.array(paths, np.dtypes.StringDType())[named]
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
        "%d images of %d classes below %s; %d other files left out",
        len(order), len(class_names), config.url, len(left_out),
    )  # fmt: skip
    return ImageList(
        root=found.root,
        path=path_column[order],
        label=label[order],
        given_split=given_split[order],
        size_bytes=np.array(found.sizes, np.int64)[named][order],
        class_names=class_names,
        left_out=tuple(sorted(left_out)),
        tar_names=tuple(found.tar_names),
        tar=tar[in_tars],
        offset=np.array(found.offset, np.int64)[named][in_tars],
    )


def _strip_common_folder(found: ImageFiles) -> list[str]:
    """Return the paths without the one folder above all of them, which archives have."""
    tops = {path.split("/", 1)[0] for path in found.paths}
    shallow = any(path.count("/") < 2 for path in found.paths)
    if len(tops) != 1 or not found.tar_names or folders_are_splits(tops) or shallow:
        return found.paths
    return [path.split("/", 1)[1] for path in found.paths]


def _check_classes(class_names: tuple[str, ...], url: str, n_left_out: int) -> None:
    if not class_names:
        raise UserError(
            f"No images in class folders below {url} ({n_left_out} other files). Expected "
            "CLASS/photo.jpg, or train/CLASS/photo.jpg beside validation/ and test/; in tars, too, "
            "or KEY.jpg with its class in KEY.cls or KEY.json."
        )
    if len(class_names) == 1:
        raise UserError(
            f"Only one class, {class_names[0]!r}, below {url}. A classifier needs two: give the "
            "folder above the class folders."
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


def find_images(url: str) -> ImageFiles:
    """Find the image files below a folder, or in a tar, whatever its folders mean.

    Raises as `list_images`; a folder that `pack` or `fetch` has not filled completely is a
    `UserError`, too.
    """
    if not url:
        raise UserError("No images given. Set `images.url`.")
    root = storage.absolute(url)
    if root.endswith(".tar") and storage.is_file(root):
        root, name = root.rsplit("/", 1)
        found = ImageFiles(root)
        _add_tars(found, [name])
        return found
    found = ImageFiles(root)
    unsure: list[tuple[str, int]] = []
    tar_names: list[str] = []
    try:
        for path, size, problem in storage.walk(root):
            if problem:
                found.left_out.append((path, problem))
            elif any(part.startswith(".") for part in path.split("/")):
                found.left_out.append((path, "hidden file"))
            elif formats.has_image_name(path):
                found.add(path, size)
            elif path.lower().endswith(".tar"):
                tar_names.append(path)
            elif path == IMAGES:
                _check_complete(storage.join(root, path))
            else:
                unsure.append((path, size))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise type(error)(f"{error} Check `images.url`.") from None
    with ThreadPoolExecutor(_SNIFFERS) as pool:
        starts = pool.map(lambda file: _read_start(storage.join(root, file[0])), unsure)
        for (path, size), start in zip(unsure, starts, strict=True):
            if start is not None and formats.is_image(start):
                found.add(path, size)
            else:
                reason = "cannot be read" if start is None else "not an image"
                found.left_out.append((path, reason))
    _add_tars(found, sorted(tar_names))
    return found


def _check_complete(url: str) -> None:
    if (read_json(url) or {}).get("complete") is False:
        raise UserError(
            f"{url} says that its folder is not complete: the command that fills it was "
            "interrupted. Give that command again first; it goes on where it was."
        )


def _read_start(url: str) -> bytes | None:
    try:
        return storage.read_start(url, formats.N_MAGIC_BYTES)
    except (FileNotFoundError, PermissionError):  # such as a link to nowhere
        return None


def _add_tars(found: ImageFiles, names: list[str]) -> None:
    urls = [storage.join(found.root, name) for name in names]
    with ThreadPoolExecutor(_SNIFFERS) as pool:
        for name, (rows, left_out) in zip(names, pool.map(_list_tar, urls), strict=True):
            folder = name.rpartition("/")[0]
            prefix = f"{folder}/" if folder else ""
            for path, n_bytes, offset in rows:
                found.add(prefix + path, n_bytes, len(found.tar_names), offset)
            found.left_out += [(f"{name}/{path}", reason) for path, reason in left_out]
            if rows:
                found.tar_names.append(name)
    if found.tar_names and len(set(found.paths)) < len(found.paths):
        path = next(path for path, n in Counter(found.paths).items() if n > 1)
        twins = [found.tar[row] for row, other in enumerate(found.paths) if other == path]
        places = ", ".join(found.tar_names[k] if k >= 0 else "a file" for k in twins)
        raise UserError(
            f"{len(twins)} images have the path {path} ({places} in {found.root}). Every image "
            "needs its own: remove the tars that repeat others, or number their members through."
        )


def _list_tar(url: str) -> tuple[list[tuple[str, int, int]], list[tuple[str, str]]]:
    """Return path, size and offset of the images in a tar, and the members left out."""
    images: list[tars.Member] = []
    sidecars: dict[str, list[str]] = {}
    classes: dict[str, str] = {}
    left_out: list[tuple[str, str]] = []
    try:
        with storage.Ranges(url) as file:
            window = file.window()
            for member in tars.read_members(window):
                name = member.name
                if member.problem:
                    left_out.append((name, member.problem))
                elif any(part.startswith(".") for part in name.split("/")):
                    left_out.append((name, "hidden file"))
                elif formats.has_image_name(name):
                    images.append(member)
                elif PurePosixPath(name).suffix.lower() in tars.SIDECARS:
                    key = tars.read_key(name)
                    sidecars.setdefault(key, []).append(name)
                    named = tars.read_class(window, member)
                    if named and (name.lower().endswith(".cls") or key not in classes):
                        classes[key] = named
                elif formats.is_image(window.at(member.offset, formats.N_MAGIC_BYTES)):
                    images.append(member)
                else:
                    left_out.append((name, "not an image"))
    except ValueError as error:
        raise UserError(f"{url} is {error} Copy or make it again, or remove it.") from error
    rows = []
    for name, offset, n_bytes, _ in images:
        key = tars.read_key(name)
        sidecars.pop(key, None)
        # A class beside an image becomes the folder in its path.
        path = f"{classes[key]}/{name}" if key in classes else name
        rows.append((path, n_bytes, offset))
    left_out += [(name, "not an image") for names in sidecars.values() for name in names]
    return rows, left_out


# --- the meaning of folders ----------------------------------------------------------------------


def read_split_and_class(path: str, with_splits: bool) -> tuple[int, str | None]:
    """Read the split and class of an image from its path, relative to the source.

    `with_splits` says that the first folder is a split. The class is then the second, or the number
    that begins a Caltech file name; None where the path names no class.

    Examples
    --------
    >>> read_split_and_class("003.backpack/003_0001.jpg", with_splits=False)
    (-1, '003.backpack')
    >>> read_split_and_class("valid/003_0001.jpg", with_splits=True)
    (1, '003')
    >>> read_split_and_class("loose.jpg", with_splits=False)
    (-1, None)
    """
    *folders, name = path.split("/")
    part = NO_SPLIT
    if with_splits:
        if not folders or folders[0].lower() not in _SPLIT_NAMES:
            return NO_SPLIT, None
        part = _SPLIT_NAMES[folders.pop(0).lower()]
        if not folders:
            caltech = _CALTECH_FILE.match(name)
            return part, caltech[1] if caltech else None
    return part, folders[0] if folders else None


def folders_are_splits(top_folders: Iterable[str]) -> bool:
    """Return whether a source's folders are splits rather than classes.

    Examples
    --------
    >>> folders_are_splits(["train", "val"]), folders_are_splits(["train", "plane"])
    (True, False)
    """
    names = {name.lower() for name in top_folders}
    return {SPLITS[0], "training"} & names != set() and names <= set(_SPLIT_NAMES)
