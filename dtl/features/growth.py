"""Longer lists: a store takes in the images that are new, and keeps the features that it has.

Rows never move. An image that is new becomes a row after the old ones. The row of one that is gone,
or has changed, stays as `REMOVED`, and a changed one gets a new row, too. What the store becomes is
written to a file of its own first. Whoever is interrupted then goes on from there, so that no kill
leaves columns of which one is longer than another.
"""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dtl import storage
from dtl.config import ImagesConfig
from dtl.config.errors import DifferentSettingsError, UserError
from dtl.config.secrets import hide, hide_options
from dtl.config.text import printable
from dtl.features.arrays import DamagedError
from dtl.features.columns import GROWING, PLAN, list_columns
from dtl.features.store import FeatureStore
from dtl.features.values import PENDING, REMOVED
from dtl.images import tars
from dtl.images.values import NO_SPLIT, ImageList
from dtl.storage import Extent
from dtl.storage.ledger import read_parsed

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

_FILES_PER_TASK = 512
_MOST_NAMED = 10
_MOST_LEFT_OUT = 20
"""How many files that are no images the store names for each reason."""
_MOST_EMPTY = 1000
"""How many folders without an image the store names."""
_COLUMNS = ("path", "label", "given_split", "size_bytes", "modified")


@dataclass(frozen=True, eq=False)
class Change:
    """What another list changes of a store.

    Parameters
    ----------
    row_of : (n_listed,) int
        The row that each listed image has in the store; -1 for those that get a new one.
    n_new, n_changed, n_removed, n_relabelled : int
        Images. A changed one is none of the new ones, nor of the removed ones.
    """

    row_of: NDArray[np.int64]
    n_new: int
    n_changed: int
    n_removed: int
    n_relabelled: int

    def __str__(self) -> str:
        counts = {"new": self.n_new, "changed": self.n_changed, "removed": self.n_removed}
        n_as_before = int((self.row_of >= 0).sum())
        said = ", ".join(f"{n:,} {what}" for what, n in counts.items())
        moved = f" ({self.n_relabelled:,} of them in another class)" if self.n_relabelled else ""
        return f"{said}, {n_as_before:,} as before{moved}"


def take_in(
    store: FeatureStore,
    listed: ImageList,
    attrs: Mapping[str, Any],
    config: ImagesConfig,
    start_client: Callable[[], Client],
) -> FeatureStore:
    """Give a store the rows of a list, if it has others; new rows are pending then.

    An image has changed if its size has; if only its time has, its bytes decide. Classes are those
    of the list.

    Parameters
    ----------
    attrs : dict
        Attributes of the store that follow from the list.
    start_client : callable
        Gives the client, if files have to be read.

    Raises
    ------
    DifferentSettingsError
        If no image of the store is in the list.
    """
    if store.is_growing:
        _finish(store)
    before = store.images()
    change = _compare(
        store, before, listed, lambda rows: _hash_files(listed, rows, config, start_client())
    )
    images = _arrange(before, listed, change.row_of)
    made = _describe(store, listed, images, change, attrs)
    columns = [(getattr(before, name), getattr(images, name)) for name in _COLUMNS]
    if made["settings"] == store.fingerprint and all(np.array_equal(a, b) for a, b in columns):
        return store
    if not (change.row_of >= 0).any():
        raise DifferentSettingsError(
            f"{store.url} holds features of {store.n_present} images, none of which is among the "
            f"{len(listed)} below {listed.root}. Check `images.url`, choose another `out`, or set "
            "`overwrite` to replace them."
        )
    _tell_classes(before, images)
    log.info("images: %s", change)
    n_added = len(images) - len(before)
    split = np.r_[store.read("split"), np.full(n_added, NO_SPLIT, np.int8)].astype(np.int8)
    storage.write_bytes(_plan_url(store), _to_bytes(images, split, hide_options(made)))
    store.arrays.group.attrs.update({"dtl": GROWING})
    _finish(store)
    return FeatureStore.open(store.url)


def arrange(store: FeatureStore, listed: ImageList) -> ImageList:
    """Return a list in the order of a store's rows, which are of the same images.

    Raises
    ------
    UserError
        If the columns of a store that has grown are damaged: nothing else tells its rows' order.
    """
    if "grown" not in store.fingerprint:
        return listed
    try:
        before = store.images()
    except DamagedError as error:
        raise UserError(
            f"{error} But it has grown, list by list, so that its rows' order cannot be made "
            "again. Put back a copy of that file, or compute into another `out`."
        ) from error
    return _arrange(before, listed, _find_rows(before, listed))


def list_runs(store: FeatureStore, chunk: int) -> list[NDArray[np.intp]]:
    """Return the rows of a chunk, from its first on, that came with one list, list by list.

    They are computed together, so that their bits do not depend on what came later.
    """
    rows = store.rows(chunk)
    ends = [end for end in store.generations if rows.start < end < rows.stop]
    return np.split(np.arange(rows.stop - rows.start), np.array(ends, np.intp) - rows.start)


def has_been(store: FeatureStore, fingerprint: Mapping[str, Any]) -> bool:
    """Return whether a store had a fingerprint before it grew, and so has its rows, and more."""
    of_images, of_others = _part(fingerprint)
    same = of_others == _part(store.fingerprint)[1]
    return same and of_images in store.attrs.get("earlier", ())


def without_list(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a fingerprint says of how features are made, whichever images they are of."""
    return _part(fingerprint)[1]


def _part(fingerprint: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part what a fingerprint says of the images and their order from the rest."""
    names = [name for name in ("images", "grown") if name in fingerprint]
    of_others = {name: value for name, value in fingerprint.items() if name not in names}
    return {name: fingerprint[name] for name in names}, of_others


def _find_rows(before: ImageList, listed: ImageList) -> NDArray[np.int64]:
    there = np.flatnonzero(before.label != REMOVED)
    row_of_path = dict(zip(before.path[there].tolist(), there.tolist(), strict=True))
    found = (row_of_path.get(path, -1) for path in listed.path.tolist())
    return np.fromiter(found, np.int64, len(listed))


def _compare(
    store: FeatureStore,
    before: ImageList,
    listed: ImageList,
    hash_files: Callable[[NDArray[np.intp]], NDArray[np.uint64]],
) -> Change:
    row_of = _find_rows(before, listed)
    known = np.flatnonzero(row_of >= 0)
    rows = row_of[known]
    computed = store.read("status")[rows] != PENDING
    other_size = computed & (before.size_bytes[rows] != listed.size_bytes[known])
    times = before.modified[rows], listed.modified[known]
    other_time = computed & (times[0] != times[1]) & (times[0] != 0) & (times[1] != 0)
    changed, unsure = other_size, other_time & ~other_size
    if unsure.any():
        log.info("%d files have another time of change; their bytes are compared", unsure.sum())
        found = hash_files(known[unsure])
        stored = store.read("content_hash")[rows[unsure]]
        changed[unsure] = (found != stored) | (found == 0)
    n_there = int((before.label != REMOVED).sum())
    relabelled = before.label_names()[rows] != listed.label_names()[known]
    row_of[known[changed]] = -1
    return Change(
        row_of,
        n_new=len(listed) - len(known),
        n_changed=int(changed.sum()),
        n_removed=n_there - len(known),
        n_relabelled=int((relabelled & ~changed).sum()),
    )


def _hash_files(
    listed: ImageList, rows: NDArray[np.intp], config: ImagesConfig, client: Client
) -> NDArray[np.uint64]:
    """Hash files on the workers, as `content_hash` is; 0 where one cannot be read."""
    from dtl.cluster.chunks import map_chunks

    hashes = np.zeros(len(rows), np.uint64)
    tasks = [
        (start, tars.locate_listed(listed, rows[start : start + _FILES_PER_TASK]))
        for start in range(0, len(rows), _FILES_PER_TASK)
    ]
    for start, found in map_chunks(client, _hash_some, tasks, config=config):
        hashes[start : start + len(found)] = found
    return hashes


def _hash_some(
    task: tuple[int, list[str | Extent]], *, config: ImagesConfig
) -> tuple[int, NDArray[np.uint64]]:
    from dtl.images.decoding.reading import open_images

    start, files = task
    with open_images(files, (), config, n_ahead=16) as images:
        return start, np.array([image.content_hash for image in images], np.uint64)


def _arrange(before: ImageList, listed: ImageList, row_of: NDArray[np.int64]) -> ImageList:
    """Return the list in the order of the rows, with those that are gone."""
    kept, added = np.flatnonzero(row_of >= 0), np.flatnonzero(row_of < 0)

    def column(name: str, gone: Any = None) -> NDArray[Any]:
        new: NDArray[Any] = getattr(listed, name)
        if gone is None:
            old = getattr(before, name).copy()
        else:
            old = np.full(len(before), gone, new.dtype)
        old[row_of[kept]] = new[kept]
        return np.concatenate([old, new[added]])

    names = [name for name in _COLUMNS if name != "label"]
    columns: dict[str, Any] = {name: column(name) for name in names}
    columns["label"] = column("label", REMOVED)
    if listed.tar_names:
        columns |= {"tar": column("tar", -1), "offset": column("offset", 0)}
    return replace(listed, **columns)


def _describe(
    store: FeatureStore,
    listed: ImageList,
    images: ImageList,
    change: Change,
    attrs: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the attributes that the store gets."""
    generations = list(store.generations)
    if len(images) > generations[-1]:
        generations.append(len(images))
    settings = dict(store.fingerprint) | {"images": listed.description}
    # In another order than a list's, rows lie in other chunks, and heads differ.
    settings.pop("grown", None)
    if not np.array_equal(change.row_of, np.arange(len(images))) or len(generations) > 1:
        settings["grown"] = f"{len(images)} rows of {len(generations)} lists"
    made = dict(attrs) | {"settings": settings, "class_names": list(listed.class_names)}
    if listed.tar_names:
        made["shards"] = list(listed.tar_names)
    if len(generations) > 1:
        made["generations"] = generations
    if "grown" in settings and settings != store.fingerprint:
        of_images, _ = _part(store.fingerprint)
        made["earlier"] = [*store.attrs.get("earlier", ()), of_images]
    of_list = {"left_out", "n_left_out", "left_out_counts", "empty_folders", "shards", "root"}
    kept = {name: value for name, value in store.attrs.items() if name not in of_list - made.keys()}
    return kept | made  # in the order that they had


def _tell_classes(before: ImageList, images: ImageList) -> None:
    """Log which classes are new, and which have lost their last image."""
    old, new = ({*i.label_names()[i.label >= 0].tolist()} for i in (before, images))
    for what, names in (("Classes that are new", new - old), ("Classes that are gone", old - new)):
        if names:
            shown = ", ".join(map(printable, sorted(names)[:_MOST_NAMED]))
            more = ", ..." if len(names) > _MOST_NAMED else ""
            log.warning("%s: %d, %s%s", what, len(names), shown, more)


def describe_left_out(listed: ImageList) -> dict[str, Any]:
    """Return the attributes of a store for what is no image of a class: some names, all counts."""
    counts: Counter[str] = Counter()
    named = []
    for path, reason in listed.left_out:
        counts[reason] += 1
        if counts[reason] <= _MOST_LEFT_OUT:
            named.append([path, reason])
    attrs: dict[str, Any] = {"n_left_out": len(listed.left_out), "left_out": named}
    if len(named) < len(listed.left_out):
        attrs["left_out_counts"] = dict(counts)
    if listed.empty_folders:
        attrs["empty_folders"] = [list(pair) for pair in listed.empty_folders[:_MOST_EMPTY]]
    return attrs


# --- the plan ------------------------------------------------------------------------------------


def _to_bytes(images: ImageList, split: NDArray[np.int8], attrs: Mapping[str, Any]) -> bytes:
    columns: dict[str, Any] = {name: getattr(images, name) for name in _COLUMNS}
    columns |= {"path": images.path.tolist(), "split": split}
    if images.tar_names:
        columns |= {"tar": images.tar, "offset": images.offset}
    meta = {
        "attrs": attrs, "class_names": images.class_names, "tar_names": images.tar_names,
        "root": hide(images.root),
    }  # fmt: skip
    table = pa.table(columns).replace_schema_metadata({"dtl": json.dumps(meta)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _from_bytes(data: bytes) -> tuple[ImageList, NDArray[np.int8], dict[str, Any]]:
    table = pq.read_table(pa.BufferReader(data))
    meta = json.loads(table.schema.metadata[b"dtl"])
    columns = {name: table[name].to_numpy() for name in table.column_names if name != "path"}
    split = columns.pop("split")
    images = ImageList(
        root=meta["root"],
        path=np.array(table["path"].to_pylist(), np.dtypes.StringDType()),
        class_names=tuple(meta["class_names"]),
        tar_names=tuple(meta["tar_names"]),
        **columns,
    )
    return images, split, meta["attrs"]


def _finish(store: FeatureStore) -> None:
    """Make a store what its plan says; without a plan, it is that already."""
    advice = f"Put back a copy of {store.url}, or compute into another `out`."
    plan, attrs = read_parsed(_plan_url(store), _from_bytes, advice), store.arrays.group.attrs
    if plan is not None:
        images, split, made = plan
        for name in store.arrays.list_names():
            if name != PLAN:
                store.arrays.extend(name, len(images))
        store.write_columns(images, list_columns(images) | {"split": split})
        attrs.put(made | {"dtl": GROWING})
        storage.remove(_plan_url(store))
    attrs.update({"dtl": "features"})
    store.reopen()


def _plan_url(store: FeatureStore) -> str:
    return storage.join(store.url, PLAN)
