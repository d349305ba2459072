"""Images to label next: those that stand for many others, or that the head is unsure of."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dtl.checking.suggested import COVERAGE, FEW_PER_CLASS, MARGIN, Suggestions
from dtl.cluster.chunks import map_chunks
from dtl.cluster.progress import track
from dtl.cluster.spread import Session
from dtl.config.errors import UserError
from dtl.features.store import FeatureStore
from dtl.head import blas
from dtl.head.model import Head
from dtl.head.scaling import Scaling
from dtl.head.softmax import log_softmax
from dtl.images import split
from dtl.images.values import UNLABELLED
from dtl.neighbours.search import fit_scaling, read_units
from dtl.neighbours.selection import select_covering

log = logging.getLogger(__name__)

_MOST_ROWS = 4096
"""Images that are compared with each other: 64 MiB of cosines on a worker."""


class _Guesses(NamedTuple):
    """The likeliest class (n,) of rows, and its margin."""

    label: NDArray[np.int32]
    margin: NDArray[np.float32]


class _Task(NamedTuple):
    candidates: NDArray[np.int64]
    labelled: NDArray[np.int64]
    weight: NDArray[np.float32] | None
    n: int

    def __repr__(self) -> str:
        return f"a choice among {len(self.candidates)} images"


def suggest(
    store: FeatureStore, layer: str, head: Head | None, n: int, seed: int, client: Client
) -> Suggestions:
    """Rank the unlabelled images of a store by what their labels would teach.

    With up to 4 labelled images per class, or without a head, images come first that are like many
    others, and not like those labelled or chosen before (`select_covering`). With more of them each
    image counts by 1 - its margin, so that what is chosen stands for images that the head is unsure
    of. At most 4,096 images are compared: a sample, or those of least margin.

    Raises
    ------
    UserError
        If no image lacks a label.
    """
    label, usable = store.read("label"), store.read_usable()
    waiting = np.flatnonzero(usable & (label == UNLABELLED))
    if not len(waiting):
        raise UserError(
            f"No image of {store.url} lacks a label. List the images once more with "
            "`images.unlabelled` = keep: those in no class folder, or without a label in the table "
            "`images.labels`, are kept then."
        )
    labelled = np.flatnonzero(usable & (label >= 0))
    path = store.read("path")
    guesses = None if head is None else _guess(store, head, waiting, client)
    few = len(labelled) < FEW_PER_CLASS * len(store.class_names)
    if guesses is None or few:
        way, weight = COVERAGE, None
        chosen = _sample(path, waiting, seed)
    else:
        way = MARGIN
        chosen = np.sort(waiting[np.argsort(guesses.margin, kind="stable")[:_MOST_ROWS]])
        weight = (1 - guesses.margin[np.searchsorted(waiting, chosen)]).astype(np.float32)
    task = _Task(chosen, _sample(path, labelled, seed), weight, min(n, len(chosen)))
    scaling = fit_scaling(store, layer, client, usable)
    with track("suggestions", 1, "choices") as advance:
        (order,) = map_chunks(client, _choose, [task], store=store, layer=layer, scaling=scaling)
        advance(1)
    rows = chosen[order].astype(np.int64)
    at = np.searchsorted(waiting, rows)
    names, margins = ("",) * len(at), (float("nan"),) * len(at)
    if head is not None and guesses is not None:
        names = tuple(head.class_names[k] for k in guesses.label[at])
        margins = tuple(guesses.margin[at].tolist())
    return Suggestions(
        way=way,
        rows=rows,
        paths=tuple(map(str, path[rows])),
        guesses=names,
        margins=margins,
        n_unlabelled=len(waiting),
        n_labelled=len(labelled),
        n_compared=len(chosen),
    )


def _sample(path: NDArray[np.object_], rows: NDArray[np.intp], seed: int) -> NDArray[np.intp]:
    """Return some of the rows, the same on any machine, in their order."""
    if len(rows) <= _MOST_ROWS:
        return rows
    return np.sort(rows[np.argsort(split.hash_keys(path[rows], seed, "suggest"))[:_MOST_ROWS]])


def _guess(store: FeatureStore, head: Head, rows: NDArray[np.intp], client: Client) -> _Guesses:
    label, margin = np.zeros(len(rows), np.int32), np.zeros(len(rows), np.float32)
    tasks, places = [], {}
    for chunk, places[chunk], within in store.by_chunk(rows):
        tasks.append((chunk, within))
    sent = Session(client).submit_value(head, "head")
    with track("margins", len(rows), "images") as advance:
        for chunk, found in map_chunks(client, _guess_chunk, tasks, store=store, head=sent):
            label[places[chunk]], margin[places[chunk]] = found
            advance(len(found.label))
    return _Guesses(label, margin)


# --- on a worker ---------------------------------------------------------------------------------


def _guess_chunk(
    task: tuple[int, NDArray[np.intp]], *, store: FeatureStore, head: Head
) -> tuple[int, _Guesses]:
    chunk, rows = task
    features = store.read(head.provenance["layer"], chunk)[rows]
    with blas.one_blas_thread():
        logits = head.logits(features).astype(np.float64)
    return chunk, measure_margin(logits)


def measure_margin(logits: NDArray[np.float64]) -> _Guesses:
    """Return the likeliest class of each row, and its probability less that of the next one.

    Examples
    --------
    >>> found = measure_margin(np.log([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))
    >>> found.label.tolist(), found.margin.round(2).tolist()
    ([0, 2], [0.20000000298023224, 0.699999988079071])
    """
    probability = np.exp(log_softmax(logits))
    top = np.partition(probability, -2, axis=1)[:, -2:]
    margin = (top[:, 1] - top[:, 0]).astype(np.float32)
    return _Guesses(probability.argmax(axis=1).astype(np.int32), margin)


def _choose(task: _Task, *, store: FeatureStore, layer: str, scaling: Scaling) -> NDArray[np.intp]:
    units = [read_units(store, layer, rows, scaling) for rows in (task.candidates, task.labelled)]
    with blas.one_blas_thread():  # the last bits of a product depend on the number of threads
        return select_covering(units[0], task.n, units[1], task.weight)
