"""What views, pooling and unit length bring on the real photographs: `make bench`.

Every part against one standardised view, at the optimum (scikit-learn's), over ten seeded splits
of 60 % to train on. A view costs some two minutes of two processors at a size of 224; they are kept
in the folder that `DTL_BENCH_VIEWS` names, if it does.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.linear_model import LogisticRegression

from dtl.config import ImagesConfig
from dtl.features.network import architecture, keras_network
from dtl.features.network.quiet_keras import keras
from dtl.features.values import NetworkSpec
from dtl.head.scaling import Moments, scale_rows
from dtl.images import listing, tars
from dtl.images.decoding.reading import open_images

LAYERS = ("block5_pool",)
BATCH = 16
SIZES = (160, 224, 320)
N_SPLITS = 10

Views = dict[tuple[int, bool, str], NDArray[np.float32]]
"""Features of all photographs by size, whether mirrored, and pooling."""

ROWS = {
    "one view, standardise": ("standardise", "avg", (224,), False, False),
    "l2": ("l2", "avg", (224,), False, False),
    "sqrt-l2": ("sqrt-l2", "avg", (224,), False, False),
    "standardise, avg,max, 224,320": ("standardise", "avg,max", (224, 320), False, False),
    "sqrt-l2, avg,max": ("sqrt-l2", "avg,max", (224,), False, False),
    "sqrt-l2, mirror": ("sqrt-l2", "avg", (224,), True, False),
    "sqrt-l2, 320": ("sqrt-l2", "avg", (320,), False, False),
    "sqrt-l2, 224,320": ("sqrt-l2", "avg", (224, 320), False, False),
    "sqrt-l2, 224,320 stacked": ("sqrt-l2", "avg", (224, 320), False, True),
    "sqrt-l2, 160,224,320": ("sqrt-l2", "avg", (160, 224, 320), False, False),
    "recipe: sqrt-l2, avg,max, 224,320": ("sqrt-l2", "avg,max", (224, 320), False, False),
    "recipe, mirror": ("sqrt-l2", "avg,max", (224, 320), True, False),
    "recipe, mirror, stacked": ("sqrt-l2", "avg,max", (224, 320), True, True),
    "recipe, 160,224,320": ("sqrt-l2", "avg,max", (160, 224, 320), False, False),
}
"""``train.normalize``, ``features.pooling``, sizes, mirror and stack of each line of the table."""


@pytest.mark.timeout(4 * 3600)
def test_the_recipe_beats_one_standardised_view(data: Path, tmp_path: Path) -> None:
    images = listing.list_images(ImagesConfig(url=str(data / "caltech256")), 0)
    folder = Path(os.environ.get("DTL_BENCH_VIEWS", tmp_path))
    views = make_views(tars.locate_listed(images), data / "vgg16_imagenet_conv.npz", folder)
    accuracy = {}
    for name, (normalize, *how) in ROWS.items():
        rows = combine(views, *how)
        accuracy[name] = np.array(
            [score(rows, images.label, k, normalize) for k in range(N_SPLITS)]
        )
        gain, half = find_interval(accuracy[name] - accuracy["one view, standardise"])
        line = f"{name:36} {accuracy[name].mean():6.2f} {gain:+6.2f} ± {half:.2f}"
        if "sqrt-l2" in accuracy:
            line += "; over sqrt-l2 alone {:+6.2f} ± {:.2f}".format(
                *find_interval(accuracy[name] - accuracy["sqrt-l2"])
            )
        print(line, flush=True)
        if name.startswith("recipe"):
            assert gain - half > 0


def find_interval(gain: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean, and half of its 95 % interval (Student's t)."""
    half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
    return float(gain.mean()), float(half)


def make_views(files: list[str], weights: Path, folder: Path) -> Views:
    """Compute both poolings of every view, as `dtl featurize` does; keep them in a folder."""
    precision = keras_network.list_precisions()[0]
    spec = NetworkSpec(layers=LAYERS, weights=str(weights), precision=precision)
    missing = [size for size in SIZES if not (folder / f"{size}m.npz").exists()]
    if missing:
        network = keras_network.Network(spec)
        with keras_network._dtype_policy(precision):
            maxima = architecture.cut(network.model, LAYERS, "max")
        network.model = keras.Model(network.model.inputs, [*network.model.outputs, maxima.output])
        network.spec = replace(spec, layers=("avg", "max"))  # the names of the outputs
        network._on_pixels.clear()
        for size in missing:
            found: dict[str, list[dict[str, NDArray[np.float32]]]] = {"": [], "m": []}
            with open_images(files, [(size, size)], ImagesConfig(), n_ahead=3 * BATCH) as opened:
                for start in range(0, len(files), BATCH):
                    pixels = [next(opened).pixels[0] for _ in files[start : start + BATCH]]
                    batch = np.zeros((BATCH, size, size, 3), np.uint8)
                    batch[: len(pixels)] = pixels
                    found[""].append(network.compute(batch))
                    found["m"].append(network.compute(np.ascontiguousarray(batch[:, :, ::-1])))
            for suffix, parts in found.items():
                rows = {p: np.concatenate([part[p] for part in parts]) for p in ("avg", "max")}
                kept = {way: values[: len(files)] for way, values in rows.items()}
                np.savez(folder / f"{size}{suffix}.npz", **kept)
    return {
        (size, suffix == "m", pooling): np.load(folder / f"{size}{suffix}.npz")[pooling]
        for size in SIZES
        for suffix in ("", "m")
        for pooling in ("avg", "max")
    }


def combine(
    views: Views, pooling: str, sizes: tuple[int, ...], mirror: bool, stack: bool
) -> NDArray[np.float32]:
    """Combine views as `dtl.features.views` and `architecture.cut` say, in NumPy."""

    def pool(size: int, mirrored: bool) -> NDArray[np.float32]:
        if pooling == "avg":
            return views[size, mirrored, "avg"]
        pooled = [views[size, mirrored, way] for way in ("avg", "max")]
        return np.hstack([rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in pooled])

    of_sizes = [(pool(s, False) + pool(s, True)) / 2 if mirror else pool(s, False) for s in sizes]
    return np.hstack(of_sizes) if stack else sum(of_sizes) / np.float32(len(sizes))


def score(rows: NDArray[np.float32], label: NDArray[np.int64], seed: int, normalize: str) -> float:
    """Train on 60 % of each class, drawn by the seed; return the percentage right of the rest."""
    rng, train = np.random.default_rng(seed), np.zeros(len(label), bool)
    for k in np.unique(label):
        of_class = rng.permutation(np.flatnonzero(label == k))
        train[of_class[: round(0.6 * len(of_class))]] = True
    scaled = scale_rows(rows, normalize)
    moments = Moments.of(scaled[train])
    scale = moments.scale() if normalize == "standardise" else moments.common_scale()
    scaled = ((scaled - moments.mean) / scale).astype(np.float32)
    model = LogisticRegression(C=1 / (0.01 * train.sum()), max_iter=1000)  # `train.l2` = 0.01
    return 100 * float(model.fit(scaled[train], label[train]).score(scaled[~train], label[~train]))
