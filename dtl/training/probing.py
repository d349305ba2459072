"""What features are worth: nearest neighbours beside heads, of all training images and of few.

The protocol of the papers on representations: from each class, 1, 2, 5, ... training images are
drawn, ten times; a head is fitted to them alone, and the same test images are classified by the
head and by their nearest drawn images. Larger draws hold the smaller ones.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dtl.cluster.chunks import map_chunks
from dtl.cluster.progress import track
from dtl.config import to_fingerprint
from dtl.config.errors import UserError
from dtl.evaluation import scoring
from dtl.evaluation.metrics import find_interval
from dtl.features.store import FeatureStore
from dtl.head import blas
from dtl.head.fitting import fit_softmax
from dtl.head.scaling import NORMALISATIONS, Moments, Scaling, scale_rows
from dtl.head.softmax import Params
from dtl.images.values import SPLITS, TEST, TRAIN, VALIDATION
from dtl.neighbours.search import find_neighbours, fit_scaling, scale_to_unit
from dtl.neighbours.voting import vote
from dtl.training import trainer
from dtl.training.spec import TrainingSpec
from dtl.training.values import Probe, Probed

log = logging.getLogger(__name__)

HEAD = "L-BFGS"


@dataclass(frozen=True)
class ProbeOptions:
    """What is probed.

    Parameters
    ----------
    layers : tuple of str
        Empty: the layer that a head would be trained on.
    normalize : tuple of str
        Of `head.scaling.NORMALISATIONS`.
    n_per_class : tuple of int
        Training images of each class, or all that there are of it.
    n_draws : int
    neighbours : tuple of int
        That vote; of fewer training images all do.
    l2s : tuple of float
        Penalties, of which the one that validates best is taken, for each number of images.
    """

    layers: tuple[str, ...] = ()
    normalize: tuple[str, ...] = NORMALISATIONS
    n_per_class: tuple[int, ...] = (1, 2, 5, 10, 30)
    n_draws: int = 10
    neighbours: tuple[int, ...] = (5, 10, 20, 50)
    l2s: tuple[float, ...] = (0.01, 0.1, 1.0)

    def __post_init__(self) -> None:
        """Refuse what cannot be probed."""
        if unknown := {*self.normalize} - {*NORMALISATIONS}:
            raise UserError(f"No such scaling: {unknown.pop()}. Use {', '.join(NORMALISATIONS)}.")
        for name in ("n_per_class", "neighbours"):
            if not all(n >= 1 for n in getattr(self, name)):
                raise UserError(f"Expected numbers from 1 on. Received: {name} = {self!r}.")
        if self.n_draws < 2:
            raise UserError(f"Error bars need at least 2 draws. Received: {self.n_draws}.")
        if not (self.l2s and self.normalize and self.neighbours) or min(self.l2s) < 0:
            raise UserError(
                "Expected at least one scaling, one number of neighbours, and one penalty, of at "
                f"least 0. Received: {self!r}."
            )


def provenance(spec: TrainingSpec, options: ProbeOptions) -> dict[str, Any]:
    """Return the fingerprint of a probe, as JSON has it."""
    store = spec.store
    plain = {k: [*v] if isinstance(v, tuple) else v for k, v in asdict(options).items()}
    return {
        "features": store.fingerprint, "weights_sha256": store.attrs["weights_sha256"],
        "split": store.split_fingerprint, "seed": spec.seed, "probe": plain,
        "layer": spec.layer, "train": to_fingerprint(spec.config),
    }  # fmt: skip


def probe(spec: TrainingSpec, options: ProbeOptions, client: Client) -> Probe:
    """Classify held-out images from few and from all training images.

    Test images are classified, or validation images where there is no test split. Penalties are
    chosen by the validation images, if these are others; else it is the first of `l2s`.

    Parameters
    ----------
    spec : TrainingSpec
        Of its options, those are read that L-BFGS has, except for `l2` and `normalize`.

    Raises
    ------
    UserError
        Without training images, or without held-out ones.

    Notes
    -----
    A task is a draw: it holds the drawn rows, and reads the held-out ones chunk by chunk. Rows are
    scaled by what the drawn ones alone say.
    """
    store = spec.store
    usable, split, label = store.read_usable(), store.read_split(), store.read("label")
    usable &= label >= 0
    scored = TEST if (usable & (split == TEST)).any() else VALIDATION
    train = usable & (split == TRAIN)
    n_held_out = int((usable & (split == scored)).sum())
    if not train.any() or not n_held_out:
        raise UserError(
            "A probe needs labelled training images, and test or validation images to classify. "
            f"Received: {train.sum()} and {n_held_out}. Set `split.test`, or label images."
        )
    chooses = scored == TEST and bool((usable & (split == VALIDATION)).any())
    l2s = options.l2s if chooses else options.l2s[:1]
    found: list[Probed] = []
    for layer in options.layers or (spec.layer,):
        for normalize in options.normalize:
            log.info("probing %s, scaled by %s", layer, normalize)
            config: Any = replace  # mypy knows no text that is one of three
            of_layer = replace(spec, layer=layer, config=config(spec.config, normalize=normalize))
            found += _probe_all(of_layer, l2s, options.neighbours, scored, usable, client)
            if options.n_per_class:
                found += _probe_draws(of_layer, l2s, options, scored, usable, client)
    return Probe(tuple(found), SPLITS[scored], provenance(spec, options))


# --- all training images -------------------------------------------------------------------------


def _probe_all(
    spec: TrainingSpec,
    l2s: Sequence[float],
    neighbours: Sequence[int],
    scored: int,
    usable: NDArray[np.bool_],
    client: Client,
) -> list[Probed]:
    store, split, label = spec.store, spec.split, spec.store.read("label")
    train, held_out = usable & (split == TRAIN), usable & (split == scored)
    layer, normalize = spec.layer, spec.config.normalize
    n = int(held_out.sum())

    def describe(method: str, n_right: int, l2: float) -> Probed:
        low, high = find_interval(n_right, n)
        return Probed(layer, normalize, method, 0, n_right / n, low, high, l2)

    best = (-1.0, 0.0, 0.0)
    for l2 in l2s:
        config = replace(spec.config, solver="lbfgs", l2=l2)
        head = trainer.train(replace(spec, config=config), client, calibrate=False).head
        scores = scoring.evaluate(store, head, client, n_mistakes=0).scores
        chosen_by = scores[SPLITS[VALIDATION]].accuracy if len(l2s) > 1 else 0.0
        if chosen_by > best[0]:
            best = (chosen_by, scores[SPLITS[scored]].accuracy, l2)
    results = [describe(HEAD, round(best[1] * n), best[2])]
    scaling = fit_scaling(store, layer, client, train, normalize)
    found = find_neighbours(
        store, layer, client, max(neighbours), rows=held_out, among=train, scaling=scaling
    )
    theirs = np.where(found.index >= 0, label[found.index], -1)
    for k in neighbours:
        voted = vote(theirs[:, :k], found.cosine[:, :k], len(store.class_names))
        n_right = int((voted == label[found.rows]).sum())
        results.append(describe(f"{k}-NN", n_right, 0.0))
    return results


# --- draws ---------------------------------------------------------------------------------------


class _Counts(NamedTuple):
    """Right answers of a draw: (n_splits, n_sizes, n_l2s) of heads, (n_sizes, n_ks) of votes."""

    heads: NDArray[np.int64]
    votes: NDArray[np.int64]


def _probe_draws(
    spec: TrainingSpec,
    l2s: Sequence[float],
    options: ProbeOptions,
    scored: int,
    usable: NDArray[np.bool_],
    client: Client,
) -> list[Probed]:
    split = np.where(usable, spec.split, -1)
    judged = (scored, VALIDATION) if len(l2s) > 1 else (scored,)
    work = _Draw(
        spec.store, spec.layer, spec.config.normalize, options.n_per_class,
        options.neighbours, tuple(l2s), judged, spec.seed,
    )  # fmt: skip
    counts: dict[int, _Counts] = {}
    with track("draws", options.n_draws, "draws") as advance:
        for draw, of_draw in map_chunks(client, _run_draw, range(options.n_draws), work=work):
            counts[draw] = of_draw
            advance(1)
    n = [int((split == k).sum()) for k in judged]
    heads = np.stack([counts[draw].heads for draw in range(options.n_draws)])
    votes = np.stack([counts[draw].votes for draw in range(options.n_draws)])
    results = []
    for size, n_per_class in enumerate(options.n_per_class):
        best = int(heads[:, -1, size].sum(axis=0).argmax()) if len(judged) > 1 else 0
        shares = heads[:, 0, size, best] / n[0]
        results.append(_summarize(work, HEAD, n_per_class, shares, l2s[best]))
        for place, k in enumerate(options.neighbours):
            shares = votes[:, size, place] / n[0]
            results.append(_summarize(work, f"{k}-NN", n_per_class, shares, 0.0))
    return results


def _summarize(
    work: _Draw, method: str, n_per_class: int, shares: NDArray[np.float64], l2: float
) -> Probed:
    mean, deviation = float(shares.mean()), float(shares.std(ddof=1))
    return Probed(
        work.layer, work.normalize, method, n_per_class, mean, mean - deviation, mean + deviation,
        l2, len(shares),
    )  # fmt: skip


@dataclass(frozen=True)
class _Draw:
    """What each draw does."""

    store: FeatureStore
    layer: str
    normalize: str
    n_per_class: tuple[int, ...]
    neighbours: tuple[int, ...]
    l2s: tuple[float, ...]
    judged: tuple[int, ...]
    seed: int


def draw_rows(
    label: NDArray[np.integer], rows: NDArray[np.bool_], most: int, seed: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw at most so many rows of each class.

    Returns
    -------
    drawn, rank : (n,) int64
        Rows, which rise, and the place of each among those of its class: the draw of fewer rows are
        those of lower rank.

    Examples
    --------
    >>> drawn, rank = draw_rows(np.array([0, 1, 1, 0, 1]), np.ones(5, bool), 2, [0])
    >>> drawn, rank
    (array([0, 2, 3, 4]), array([1, 0, 0, 1]))
    """
    order = np.random.default_rng(seed).permutation(np.flatnonzero(rows))
    order = order[np.argsort(label[order], kind="stable")]
    _, first, counts = np.unique(label[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, counts)
    drawn, rank = order[rank < most], rank[rank < most]
    by_row = np.argsort(drawn)
    return drawn[by_row], rank[by_row]


def _run_draw(draw: int, *, work: _Draw) -> tuple[int, _Counts]:
    """Draw rows, fit heads to them, and classify the held-out rows, on a worker."""
    store = work.store
    label = store.read("label")
    usable = store.read_usable() & (label >= 0)
    split = np.where(usable, store.read_split(), -1)
    n_classes = len(store.class_names)
    drawn, rank = draw_rows(label, split == TRAIN, max(work.n_per_class), [work.seed, draw])
    features = _read_rows(store, work.layer, drawn)
    known = label[drawn]
    fitted = [_fit(features[rank < n], known[rank < n], n_classes, work) for n in work.n_per_class]
    heads = np.zeros((len(work.judged), len(fitted), len(work.l2s)), np.int64)
    votes = np.zeros((len(fitted), len(work.neighbours)), np.int64)
    for chunk in range(store.n_chunks):
        of_chunk = split[store.rows(chunk)]
        if not np.isin(of_chunk, work.judged).any():
            continue
        rows, right = store.read(work.layer, chunk), label[store.rows(chunk)]
        for place, judged in enumerate(work.judged):
            x, y = rows[of_chunk == judged], right[of_chunk == judged]
            if len(x):
                for size, one in enumerate(fitted):
                    heads[place, size] += one.count_right(x, y)
                    if place == 0:
                        votes[size] += one.count_votes(x, y, work.neighbours, n_classes)
    return draw, _Counts(heads, votes)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """Heads of several penalties, and the rows that they were fitted to."""

    scaling: Scaling
    heads: list[Params]
    unit: NDArray[np.float32]
    labels: NDArray[np.int32]

    def count_right(self, x: NDArray[Any], y: NDArray[np.int32]) -> list[int]:
        scaled = self.scaling.apply(x)
        with blas.one_blas_thread():
            logits = [scaled @ head["kernel"] + head["bias"] for head in self.heads]
        return [int((found.argmax(axis=1) == y).sum()) for found in logits]

    def count_votes(
        self, x: NDArray[Any], y: NDArray[np.int32], neighbours: Sequence[int], n_classes: int
    ) -> list[int]:
        with blas.one_blas_thread():
            cosine = scale_to_unit(x, self.scaling, "rows") @ self.unit.T
        order = np.argsort(-cosine, axis=1, kind="stable")[:, : max(neighbours)]
        cosine = np.take_along_axis(cosine, order, axis=1)
        voted = (vote(self.labels[order[:, :k]], cosine[:, :k], n_classes) for k in neighbours)
        return [int((found == y).sum()) for found in voted]


def _fit(features: NDArray[Any], labels: NDArray[np.int32], n_classes: int, work: _Draw) -> _Fitted:
    scaling = Scaling.fit(Moments.of(scale_rows(features, work.normalize)), work.normalize)
    scaled = scaling.apply(features)
    heads: dict[float, Params] = {}
    last: Params | None = None
    for l2 in sorted(work.l2s, reverse=True):  # the strongest is the quickest, and starts the next
        last = heads[l2] = fit_softmax(scaled, labels, n_classes, l2, last)
    unit = scale_to_unit(features, scaling, "drawn rows")
    return _Fitted(scaling, [heads[l2] for l2 in work.l2s], unit, labels)


def _read_rows(store: FeatureStore, layer: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    features = store.read_rows(layer, rows)
    if not np.isfinite(features).all():
        raise UserError(f"Features of {store.url} must be finite. Received: NaN or infinity.")
    return features
