"""The first stage: which files are images of which class; and, later, which of them train."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dtl import images, split, storage
from dtl.config import ImagesConfig, SplitConfig
from dtl.types import DONE, SPLITS, ImageList

log = logging.getLogger(__name__)

_SNIFFERS = 16
"""Threads that look into files without an image extension; each waits for the storage."""


def list_images(config: ImagesConfig, seed: int) -> ImageList:
    """List the labelled images of a source, in a seeded random order.

    Reads names and sizes, and the first bytes of files whose extension is no image format's.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder.
    ValueError
        If there is no image, or only one class.
    """
    root, paths, sizes, left_out = find_images(config.url)
    tops = {path.split("/")[0] for path in paths if "/" in path}
    with_splits = images.folders_are_splits(tops)
    places = [images.split_and_class(path, with_splits) for path in paths]
    named = np.array([place[1] is not None for place in places], bool)
    left_out += [
        (path, "in no class folder") for path, ok in zip(paths, named, strict=True) if not ok
    ]
    class_names = tuple(sorted({name for _, name in places if name is not None}))
    if not class_names:
        raise ValueError(
            f"No images in class folders below {config.url} ({len(left_out)} other files). "
            "Expected CLASS/photo.jpg, or train/CLASS/photo.jpg beside validation/ and test/."
        )
    if len(class_names) == 1:
        raise ValueError(
            f"Only one class, {class_names[0]!r}, below {config.url}. A classifier needs two: give "
            "the folder above the class folders."
        )
    index = {name: k for k, name in enumerate(class_names)}
    path_column = np.array(paths, np.dtypes.StringDType())[named]
    # Ties in the hash are broken by the path, so that the order is the same on any machine.
    order = np.lexsort(
        (path_column.astype(object).argsort().argsort(),
         split.hash_keys(path_column, seed, "order"))
    )  # fmt: skip
    listed = ImageList(
        root=root,
        path=path_column[order],
        label=np.array([index[c] for _, c in places if c is not None], np.int32)[order],
        given_split=np.array([s for s, c in places if c is not None], np.int8)[order],
        size_bytes=np.array(sizes, np.int64)[named][order],
        class_names=class_names,
        left_out=tuple(sorted(left_out)),
    )
    log.info(
        "%d images of %d classes below %s; %d other files left out",
        len(listed), len(class_names), config.url, len(left_out),
    )  # fmt: skip
    return listed


def find_images(url: str) -> tuple[str, list[str], list[int], list[tuple[str, str]]]:
    """Find the image files below a folder, whatever its folders mean.

    Returns
    -------
    root : str
        The URL that the paths are relative to.
    paths, sizes : list
        Of images: relative paths, and bytes.
    left_out : list of (path, reason)

    Raises
    ------
    FileNotFoundError, NotADirectoryError, ValueError
        If there is no such folder, or none is given.
    """
    if not url:
        raise ValueError("No images given. Say --images URL.")
    root = storage.absolute(url)
    paths: list[str] = []
    sizes: list[int] = []
    left_out: list[tuple[str, str]] = []
    unsure: list[tuple[str, int]] = []
    for path, size in storage.walk(root):
        if any(part.startswith(".") for part in path.split("/")):
            left_out.append((path, "hidden file"))
        elif images.has_image_name(path):
            paths.append(path)
            sizes.append(size)
        else:
            unsure.append((path, size))
    with ThreadPoolExecutor(_SNIFFERS) as pool:
        starts = pool.map(lambda file: _start(storage.join(root, file[0])), unsure)
        for (path, size), start in zip(unsure, starts, strict=True):
            if start is None:
                left_out.append((path, "cannot be read"))
            elif images.is_image(start):
                paths.append(path)
                sizes.append(size)
            else:
                left_out.append((path, "not an image"))
    return root, paths, sizes, left_out


def _start(url: str) -> bytes | None:
    try:
        return storage.read_start(url, images.N_MAGIC_BYTES)
    except (FileNotFoundError, PermissionError):  # such as a link to nowhere
        return None


def check_split(listed: ImageList, config: SplitConfig, seed: int) -> None:
    """Refuse a split that the list cannot give, before the features are made.

    Raises
    ------
    ValueError
    """
    split.assign_splits(
        listed.path,
        listed.label,
        listed.given_split,
        np.arange(len(listed), dtype=np.uint64),
        np.ones(len(listed), bool),
        listed.class_names,
        config,
        seed,
    )


def split_images(store: storage.FeatureStore, config: SplitConfig, seed: int) -> None:
    """Say of every row of a finished store which split it is in, and store that.

    It comes after the features because the bytes of all files have then been seen: identical files
    stay together, and unreadable ones are not counted.

    Raises
    ------
    ValueError
        If the classes have too few readable images for the splits.
    """
    settings = {"method": config.method, "duplicates": config.duplicates, "seed": seed}
    for name in ("train", "validation", "test", "train_per_class"):
        settings[name] = getattr(config, name)
    if store.split_settings == settings:
        return
    label, content_hash = store.read("label"), store.read("content_hash")
    usable = store.read("status") == DONE
    rows = split.assign_splits(
        store.read("path"),
        label,
        store.read("given_split"),
        content_hash,
        usable,
        store.class_names,
        config,
        seed,
    )
    store.write_split(rows, settings)
    log.info("split: %s", ", ".join(f"{(rows == k).sum()} {name}" for k, name in enumerate(SPLITS)))
    n_duplicates, n_conflicting = split.count_duplicates(content_hash[usable], label[usable])
    if n_duplicates:
        log.info(
            "%d images repeat another's bytes (%d of them in another class): %s",
            n_duplicates,
            n_conflicting,
            "kept on one side" if config.duplicates == "together" else "dropped",
        )
