"""Images unlike all training images: how far their nearest ones are, and from where on that tells.

Sun, Ming, Zhu, Li (2022), "Out-of-distribution detection with deep nearest neighbors": the distance
to the k-th nearest training image, of a sample of these, tells images of no known class as well as
methods that learn to. The threshold is split conformal: of images like the training images a set
share lies above it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dtl.cluster.spread import Session
from dtl.config.errors import UserError
from dtl.features.store import FeatureStore
from dtl.head import blas, npz
from dtl.head.scaling import NORMALISATIONS, Scaling
from dtl.images.values import TRAIN, VALIDATION
from dtl.neighbours.search import fit_scaling, scale_to_unit

K = 5
"""Which nearest image counts: one alone may be a near-twin, or mislabelled."""

SHARE = 0.05
"""Share of images like the training images that lie above the threshold."""

REFERENCE_BYTES = 32 << 20
MOST_HELD_OUT = 20_000
_LEAST_HELD_OUT = 100
"""Held-out images that a threshold needs; with fewer, training images are held out in turn."""


@dataclass(frozen=True, eq=False)
class Novelty:
    """How unlike the training images an image is.

    Parameters
    ----------
    scaling : Scaling
        Of features, before rows get unit length.
    reference : (m, n_features) float32
        Unit rows of training images, or of an even sample of them.
    k : int
        The score is the distance to the k-th nearest of them, 1 - cosine.
    threshold : float
        Scores above it are of images unlike the training images.
    share : float
        Share of images like them that has such scores, too, as far as it was measured.
    n_held_out : int
        Images that the threshold follows from.
    provenance : dict
        What it follows from: ``features``, ``split``, ``layer``, ``k``, and the share wanted.
    """

    scaling: Scaling
    reference: NDArray[np.float32]
    k: int
    threshold: float
    share: float
    n_held_out: int
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def score(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the scores (n,) of features (n, n_features): 0 alike, 1 unrelated, 2 opposite."""
        return self._score_unit(scale_to_unit(features, self.scaling, "rows"))

    def is_unlike(self, score: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which scores are of images unlike the training images."""
        return score > np.float32(self.threshold)

    def _score_unit(self, unit: NDArray[np.float32]) -> NDArray[np.float32]:
        with blas.one_blas_thread():
            cosine = unit @ self.reference.T
        kth: NDArray[np.float32] = np.partition(cosine, -self.k, axis=1)[:, -self.k]
        return 1 - kth

    def score_reference(self) -> NDArray[np.float32]:
        """Return the score of each reference image among the others."""
        scores = [np.empty(0, np.float32)]
        for start in range(0, len(self.reference), 1024):
            with blas.one_blas_thread():
                cosine = self.reference[start : start + 1024] @ self.reference.T
            rows = np.arange(len(cosine))
            cosine[rows, start + rows] = -np.inf
            scores.append(1 - np.partition(cosine, -self.k, axis=1)[:, -self.k])
        return np.concatenate(scores)

    def to_bytes(self) -> bytes:
        """Return the content of an ``.npz`` file."""
        arrays = {
            "reference": self.reference, "mean": self.scaling.mean, "scale": self.scaling.scale,
        }  # fmt: skip
        meta = {name: getattr(self, name) for name in _NUMBERS} | {
            "normalize": self.scaling.normalize, "provenance": dict(self.provenance)
        }  # fmt: skip
        return npz.to_npz(arrays, meta)

    @classmethod
    def from_bytes(cls, data: bytes) -> Novelty:
        """Read what `to_bytes` wrote; other or damaged bytes are a `UserError`."""
        with npz.reading("novelty"):
            arrays, meta = npz.from_npz(data)
            reference, mean, scale = (arrays[name] for name in ("reference", "mean", "scale"))
            numbers = {name: kind(meta[name]) for name, kind in _NUMBERS.items()}
            finite = all(np.isfinite(array).all() for array in (reference, mean, scale))
            if (
                reference.ndim != 2
                or {mean.shape, scale.shape} != {reference.shape[1:]}
                or not 1 <= numbers["k"] <= len(reference)
                or (meta["normalize"] not in NORMALISATIONS)
                or not (finite and (scale > 0).all())
                or not isinstance(meta["provenance"], dict)
            ):
                raise ValueError("its arrays do not fit each other")
            scaling = Scaling(meta["normalize"], mean, scale)
            return cls(scaling, reference, provenance=meta["provenance"], **numbers)


_NUMBERS: Mapping[str, Callable[[Any], Any]] = {
    "k": int, "threshold": float, "share": float, "n_held_out": int
}  # fmt: skip


def describe(store: FeatureStore, layer: str, share: float = SHARE, k: int = K) -> dict[str, Any]:
    """Return what novelty follows from, as JSON has it."""
    return {
        "features": store.fingerprint, "split": store.split_fingerprint, "layer": layer,
        "share": share, "k": k,
    }  # fmt: skip


def fit_novelty(
    store: FeatureStore, layer: str, client: Client, *, share: float = SHARE, k: int = K
) -> Novelty | None:
    """Measure what is usual: training images as the reference, held-out ones for the threshold.

    Held out are validation images. Where they are too few for a threshold, it is of training
    images, each among the others.

    Returns
    -------
    Novelty or None
        None without training images enough: k + 1.

    Raises
    ------
    UserError
        If a feature is not finite.
    """
    usable, split = store.read_usable(), store.read_split()
    train = usable & (split == TRAIN)
    if train.sum() <= k:
        return None
    scaling = fit_scaling(store, layer, client, train)
    most = max(k + 1, REFERENCE_BYTES // (4 * store.n_features(layer)))
    session = Session(client)
    reference = session.result(
        session.map_reduce(
            _read_unit, store.n_chunks, store, layer,
            session.submit_value(take_evenly(train, most), "reference-rows"),
            session.submit_value(scaling, "scaling"), merge=_join, name="reference",
        )
    )  # fmt: skip
    made_from = describe(store, layer, share, k)
    found = Novelty(scaling, reference, k, math.inf, share, 0, made_from)
    held_out = usable & (split == VALIDATION)
    if held_out.sum() >= _LEAST_HELD_OUT:
        scores = session.result(
            session.map_reduce(
                _score_chunk, store.n_chunks, store, layer,
                session.submit_value(take_evenly(held_out, MOST_HELD_OUT), "held-out-rows"),
                session.submit_value(found, "novelty"), merge=_join, name="novelty-scores",
            )
        )  # fmt: skip
    else:
        scores = found.score_reference()
    threshold, reached = find_threshold(scores, share)
    return replace(found, threshold=threshold, share=reached, n_held_out=len(scores))


def find_threshold(scores: NDArray[np.floating], share: float) -> tuple[float, float]:
    """Return a score that at most a share of further ones of the same kind will exceed.

    Split conformal: the further one is as likely to have any rank among all. Of too few scores it
    is the largest, and the share that this makes.

    Returns
    -------
    threshold, share : float

    Examples
    --------
    >>> find_threshold(np.arange(99.0), 0.05)
    (94.0, 0.05)
    >>> find_threshold(np.arange(9.0), 0.05)
    (8.0, 0.1)
    """
    n = len(scores)
    if not 0 < share < 1 or not n:
        raise UserError(f"Expected a share between 0 and 1, and scores. Received: {share}, {n}.")
    rank = min(math.ceil((n + 1) * (1 - share) - 1e-9), n)
    return float(np.sort(scores)[rank - 1]), max(share, 1 / (n + 1))


def take_evenly(rows: NDArray[np.bool_], most: int) -> NDArray[np.bool_]:
    """Return at most so many of the rows (n,), with equal distances.

    The order of a store's rows is random, so they are a fair sample of them.

    Examples
    --------
    >>> take_evenly(np.array([1, 1, 1, 0, 1], bool), 2)
    array([ True, False,  True, False, False])
    """
    numbers, taken = np.flatnonzero(rows), np.zeros_like(rows)
    n = min(most, len(numbers))
    taken[numbers[np.arange(n) * len(numbers) // max(n, 1)]] = True
    return taken


def _join(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate(list(parts))


def _read_unit(
    chunk: int, store: FeatureStore, layer: str, rows: NDArray[np.bool_], scaling: Scaling
) -> NDArray[np.float32]:
    chosen = rows[store.rows(chunk)]
    if not chosen.any():
        return np.empty((0, store.n_features(layer)), np.float32)
    what = f"rows of chunk {chunk} of {store.url}"
    return scale_to_unit(store.read(layer, chunk)[chosen], scaling, what)


def _score_chunk(
    chunk: int, store: FeatureStore, layer: str, rows: NDArray[np.bool_], novelty: Novelty
) -> NDArray[np.float32]:
    return novelty._score_unit(_read_unit(chunk, store, layer, rows, novelty.scaling))
