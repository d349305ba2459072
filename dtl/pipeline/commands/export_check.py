"""The check of an exported classifier: stored images, classified by it and by the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl import storage
from dtl.config.errors import UserError
from dtl.evaluation import agreement
from dtl.features.network.classifiers.formats import About
from dtl.features.store import FeatureStore
from dtl.features.values import Network, check_weights
from dtl.features.views import Views
from dtl.head import blas
from dtl.head.model import Head
from dtl.images.decoding.reading import open_images
from dtl.pipeline.pictures import choose_rows, locate_pictures
from dtl.pipeline.run import Run
from dtl.storage import Extent

log = logging.getLogger(__name__)

N_IMAGES = 256
"""Stored images that a classifier is compared on, or all if there are fewer."""

BATCH_IMAGES = 16

_LEAST_SAME = 0.9
"""Share of the images whose class is the stored one's, whatever precision that is of."""

_JPEG = b"\xff\xd8"


@dataclass(frozen=True, eq=False)
class Sample:
    """Stored images, and the probabilities (n_images, n_classes) that the run gave them."""

    paths: list[str]
    files: list[str | Extent]
    images: dict[str, NDArray[np.uint8]]
    """(n_images, height, width, 3) by input of the classifier."""
    probability: NDArray[np.float64]
    precision: str
    """Of the computation of the stored features, and of their numbers where that is less."""

    def batches(self) -> Iterator[dict[str, NDArray[np.uint8]]]:
        """Yield its images in batches, by input."""
        for start in range(0, len(self.paths), BATCH_IMAGES):
            yield {k: each[start : start + BATCH_IMAGES] for k, each in self.images.items()}


def read_sample(run: Run, store: FeatureStore, head: Head, about: About) -> Sample:
    """Read stored images and their features, of chunks that a fixed seed draws."""
    stored_sha256, needed = store.attrs["weights_sha256"], head.provenance["weights_sha256"]
    check_weights(needed, stored_sha256, store.url)
    rows = choose_rows(store, np.flatnonzero(store.read_usable()), N_IMAGES)
    paths = [str(path) for path in store.read("path")[rows]]
    root = run.options.images.url or str(store.attrs["root"])
    places = locate_pictures(root, store, paths)
    files = [places[path] for path in paths]
    sizes = [*about.inputs.values()]
    with open_images(files, sizes, run.options.images, n_ahead=4 * BATCH_IMAGES) as opened:
        read = [*opened]
    stored_hash = store.read("content_hash")[rows]
    same = [image.content_hash == stored for image, stored in zip(read, stored_hash, strict=True)]
    kept = [k for k, image in enumerate(read) if image.pixels and same[k]]
    if not kept or len(kept) < len(rows) / 2:
        raise UserError(
            f"The classifier is to be checked on {len(rows)} images of the run, and "
            f"{len(rows) - len(kept)} of them are gone, or others, below {root}, such as "
            f"{next((p for k, p in enumerate(paths) if k not in {*kept}), 'none')}. Say where they "
            "are now (`images.url`), or export it unchecked (--unchecked)."
        )
    if len(kept) < len(rows):
        log.warning(
            "%d of %d images are gone, or others; the classifier is checked on the rest",
            len(rows) - len(kept), len(rows),
        )  # fmt: skip
    layer = head.provenance["layer"]
    features = store.read_rows(layer, rows[kept])
    by_size = [np.stack([read[k].pixels[at] for k in kept]) for at in range(len(sizes))]
    dtype, precision = store.dtype(layer).name, str(store.fingerprint["precision"])
    return Sample(
        [paths[k] for k in kept], [files[k] for k in kept],
        dict(zip(about.inputs, by_size, strict=True)), _classify(head, features),
        precision if dtype == "float32" else dtype,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Original:
    """The network that a classifier is made of, on dtl's own engine, and its precision."""

    network: Network
    precision: str


def _classify(head: Head, features: NDArray[np.float32]) -> NDArray[np.float64]:
    with blas.one_blas_thread():
        return np.exp(head.log_probabilities(head.logits(features)))


def check(
    sample: Sample, original: Original, head: Head, views: Views, writer: Any, path: Path
) -> dict[str, Any]:
    """Compare a classifier with the run; refuse one that gives other probabilities.

    Where the run computed in a lower precision, it is held to those of the same network in the
    classifier's own, and how far the run's are is told.

    Parameters
    ----------
    writer : module
        Of `dtl.features.network.classifiers`, which runs it.
    """
    classify = writer.load(path)
    found = np.concatenate([classify(batch) for batch in sample.batches()])
    wanted = {"stored": sample.probability}
    if sample.precision != original.precision:
        wanted["recomputed"] = _recompute(sample, original.network, head, views)
    *_, decisive = wanted
    result: dict[str, Any] = {
        "limit": agreement.LIMIT, "decisive": decisive, "stored_precision": sample.precision,
        "precision": original.precision,
        **{name: asdict(agreement.compare(found, each)) for name, each in wanted.items()},
    }  # fmt: skip
    _refuse(agreement.measure(found, wanted[decisive]), sample, "")
    same = result["stored"]["n_same_class"] / len(found)
    if same < _LEAST_SAME:
        raise UserError(
            f"The exported classifier is not the run's: of {len(found)} stored images only "
            f"{same:.0%} get the class that they have from the stored features, which were "
            f"computed in {sample.precision}. Nothing was written. Compute the features again."
        )
    if classify_jpeg := getattr(classify, "classify_jpeg", None):
        differences = _measure_jpegs(sample, found, classify_jpeg)
        taken = np.isfinite(differences)
        _refuse(np.where(taken, differences, 0), sample, " from the bytes of JPEG files")
        result["jpeg"] = {
            "n_images": int(taken.sum()), "n_refused": int(np.isinf(differences).sum()),
            "max_difference": float(differences[taken].max(initial=0)),
        }  # fmt: skip
    return result | {"images": _list_images(sample, found, head)}


def _refuse(differences: NDArray[np.float64], sample: Sample, how: str) -> None:
    if (worst := differences.max()) > agreement.LIMIT:
        raise UserError(
            f"The exported classifier is not the run's: on {len(differences)} stored images its "
            f"probabilities{how} differ by up to {worst:.2g} "
            f"({sample.paths[differences.argmax()]}), and {agreement.LIMIT:g} is allowed. Nothing "
            "was written. Export it in another format, or on a machine like the workers'."
        )


def _recompute(sample: Sample, network: Network, head: Head, views: Views) -> NDArray[np.float64]:
    """Compute the probabilities of the sample by dtl's own network and head."""
    layer = head.provenance["layer"]
    with network.lock:
        parts = [views.compute(network, [*batch.values()])[layer] for batch in sample.batches()]
    return _classify(head, np.concatenate(parts))


def _measure_jpegs(
    sample: Sample, found: NDArray[np.float32], classify: Callable[[bytes], NDArray[np.float32]]
) -> NDArray[np.float64]:
    """Return how far (n_images,) what it makes of the files themselves is from `found`.

    NaN for a file that is no JPEG, infinity for one that it refuses.
    """
    differences = np.full(len(found), np.nan)
    for row, file in enumerate(sample.files):
        data = storage.read_file(file)
        if not data.startswith(_JPEG):
            continue
        try:
            one = classify(data)
        except ValueError:
            differences[row] = np.inf
        else:
            differences[row] = agreement.measure(one[None], found[row : row + 1])[0]
    return differences


def _list_images(sample: Sample, found: NDArray[np.float32], head: Head) -> list[dict[str, Any]]:
    best = sample.probability.argmax(axis=1)
    rows = np.arange(len(best))
    columns = (
        sample.paths, best.tolist(), found.argmax(axis=1).tolist(),
        sample.probability[rows, best].tolist(), found[rows, best].tolist(),
        agreement.measure(found, sample.probability).tolist(),
    )  # fmt: skip
    return [
        {
            "path": path, "class": head.class_names[k], "exported_class": head.class_names[other],
            "probability": p, "exported_probability": q, "max_difference": difference,
        }
        for path, k, other, p, q, difference in zip(*columns, strict=True)
    ]  # fmt: skip


def describe(check: Mapping[str, Any] | None) -> str:
    """Say in words what was found; None: it was not checked."""
    if check is None:
        return "It was not compared with the run (--unchecked)."
    stored = check["stored"]
    text = (
        f"On {stored['n_images']} stored images its probabilities are the run's, to "
        f"{stored['max_difference']:.1e}."
    )
    if check["decisive"] != "stored":
        text = (
            f"On {stored['n_images']} stored images its probabilities are those of the network in "
            f"{check['precision']}, to {check['recomputed']['max_difference']:.1e}. The run "
            f"computed in {check['stored_precision']}: its own differ by up to "
            f"{stored['max_difference']:.1e}, and {stored['n_same_class']} images have the same "
            "class."
        )
    jpeg = check.get("jpeg", {"n_images": 0, "n_refused": 0})
    if jpeg["n_images"]:
        text += f" From {jpeg['n_images']} JPEG files they are the same, to "
        text += f"{jpeg['max_difference']:.1e}."
    if jpeg["n_refused"]:
        text += f" It refuses {jpeg['n_refused']} JPEG files that dtl reads."
    return text
