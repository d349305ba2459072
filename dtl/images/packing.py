"""Packing of many small image files into few tars: an optional stage.

One task writes one tar, which appears whole. The rows keep the shuffled order of the list, so that
a chunk of the feature store is read from one tar or two, from start to end.
"""

from __future__ import annotations

import csv
import functools
import io
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from distributed import Client

from dtl import storage
from dtl.cluster.chunks import map_chunks
from dtl.cluster.progress import track
from dtl.cluster.workers import check_shared, check_visible
from dtl.config import PackConfig
from dtl.config.errors import UserError
from dtl.images import tars
from dtl.images.layout import Tree, compose, find_layout
from dtl.images.values import SPLITS, ImageList
from dtl.storage import Extent, read_ahead
from dtl.storage.ledger import IMAGES, LABELS, Ledger

log = logging.getLogger(__name__)

_READERS = 16
"""Threads with which a task reads small files; each waits for the storage."""


class TarPlan(NamedTuple):
    """A tar to be written: names in it, sizes in bytes, and where the bytes are now."""

    url: str
    paths: list[str]
    sizes: list[int]
    files: list[str | Extent]


def pack(
    url: str, images: ImageList, config: PackConfig, client: Client, *, overwrite: bool = False
) -> None:
    """Write the listed images into tars, or the tars that are still missing.

    A list of the tars has the same rows, labels and fingerprint as that of the images. Labels that
    folders do not give lie in a table beside the tars, which `list_images` finds. All workers
    must be able to read the images and write the tars. `url` is empty, or `pack` began to fill it;
    `overwrite` replaces tars of other images or other sizes instead of refusing them.

    Raises
    ------
    UserError
        If `url` holds something else; if an image has changed since it was listed.
    OSError
        If an image cannot be read, because none may be lost. Finished tars stay.
    """
    check_shared(client, images.root, url)
    check_visible(client, images.root)
    ledger = open_ledger(url, images, config)
    ledger.claim(overwrite=overwrite)
    if not folders_give_labels(images):
        storage.write_bytes(storage.join(url, LABELS), write_table(images))
    check_visible(client, url)
    write_tars(url, images, config, functools.partial(map_chunks, client))
    ledger.finish()


def folders_give_labels(images: ImageList) -> bool:
    """Return whether classes and splits of a list are those of the folders in its paths."""
    paths = images.path.tolist()
    layout = find_layout(Tree.of(paths))
    names, splits = images.label_names().tolist(), images.given_split.tolist()
    return all(
        layout.read(compose(path)) == (split, compose(name))
        for path, name, split in zip(paths, names, splits, strict=True)
    )


def write_table(images: ImageList) -> bytes:
    """Return a table of the paths, labels and splits of a list, as CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "split"])
    names = [*SPLITS, ""]  # at NO_SPLIT
    columns = (images.path.tolist(), images.label_names().tolist(), images.given_split.tolist())
    for path, label, split in zip(*columns, strict=True):
        writer.writerow([path, label, names[split]])
    return text.getvalue().encode()


def open_ledger(url: str, images: ImageList, config: PackConfig) -> Ledger:
    """Return the ledger of a folder for the tars of a list."""
    return Ledger(url, IMAGES, {"images": images.description, "shard_mib": config.shard_mib})


def write_tars(
    url: str, images: ImageList, config: PackConfig, map_tasks: Callable[..., Iterable[int]] = map
) -> None:
    """Write the tars that are missing in a folder.

    `map_tasks` is the built-in `map`, or one on a cluster, which need not keep the order.
    """
    written = {file.path for file in storage.walk(url)}
    planned = enumerate(tars.plan_tars(images.size_bytes, config.shard_mib << 20))
    missing = [(tars.tar_name(k), rows) for k, rows in planned if tars.tar_name(k) not in written]
    plans = (plan_tar(storage.join(url, name), rows, images) for name, rows in missing)
    with track("packing", sum(len(rows) for _, rows in missing), "images") as advance:
        for n_images in map_tasks(write_tar, plans):
            advance(n_images)


def plan_tar(url: str, rows: range, images: ImageList) -> TarPlan:
    """Gather the names and places of the images of one tar."""
    taken = slice(rows.start, rows.stop)
    paths, sizes = images.path[taken].tolist(), images.size_bytes[taken].tolist()
    return TarPlan(url, paths, sizes, tars.locate_listed(images, taken))


def write_tar(plan: TarPlan) -> int:
    """Write one tar; return how many images it holds. Raises as `pack`; a note names the image."""
    n_images = len(plan.files)
    buffer = io.BytesIO()
    with storage.Reader(plan.files) as reader, ThreadPoolExecutor(_READERS) as pool:

        def read(row: int) -> bytes:
            try:
                return reader.read(row)
            except OSError as error:
                path = plan.paths[row]
                error.add_note(f"while packing {path}: mend it or remove it, then pack again")
                raise

        ahead = read_ahead(pool, read, range(n_images), 4 * _READERS)
        for path, n_bytes, data in zip(plan.paths, plan.sizes, ahead, strict=True):
            if len(data) != n_bytes:
                raise UserError(
                    f"{path} has {len(data)} bytes, and had {n_bytes} when it was listed. "
                    "Pack when nothing changes the images."
                )
            buffer.write(tars.make_header(path, n_bytes) + data + tars.make_padding(n_bytes))
    buffer.write(tars.END)
    storage.write_bytes(plan.url, buffer.getvalue())
    return n_images
