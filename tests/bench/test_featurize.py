"""Featurize against a bare Keras loop, in one run: `make bench`.

The loop has the same images already decoded in memory, the same precision and the same batch, so
what it is faster by is what reading, decoding, storing and Dask cost. The two take turns, for the
machines are shared; the ratio is of the medians.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
from distributed import Client

from dtl import config
from dtl.cluster import connection
from dtl.features import featurization
from dtl.features.values import ExtractionSpec
from dtl.images import listing
from dtl.images.decoding import formats

N_IMAGES = 1024
N_TURNS = 3


def _bare_loop(root: str, paths: list[str], batch_images: int, precision: str) -> float:
    """Images/s of Keras alone, on a worker; the decoding is not counted."""
    import keras

    arrays = np.stack([formats.decode((Path(root) / p).read_bytes(), (224, 224)) for p in paths])
    policy = precision if precision == "float32" else f"mixed_{precision}"
    keras.config.set_dtype_policy(policy)
    whole = keras.applications.VGG16(weights=None)
    keras.config.set_dtype_policy("float32")
    model = keras.Model(whole.inputs, whole.get_layer("fc2").output)
    batches = [
        keras.applications.vgg16.preprocess_input(arrays[i : i + batch_images].astype(np.float32))
        for i in range(0, len(arrays), batch_images)
    ]
    model.predict_on_batch(batches[0])
    started = time.perf_counter()
    for batch in batches:
        model.predict_on_batch(batch)
    return len(arrays) / (time.perf_counter() - started)


def test_featurize_is_as_fast_as_a_bare_keras_loop(data: Path, tmp_path: Path) -> None:
    few = tmp_path / "photographs"
    names = sorted(p.relative_to(data / "caltech256") for p in (data / "caltech256").glob("*/*"))
    for name in names[:: len(names) // N_IMAGES][:N_IMAGES]:
        (few / name).parent.mkdir(parents=True, exist_ok=True)
        (few / name).symlink_to(data / "caltech256" / name)
    c = config.build({"images": {"url": str(few)}, "features": {"weights": "random"}})
    listed = listing.list_images(c.images, c.seed)
    paths = [str(p) for p in listed.path]
    spec = ExtractionSpec(c.features, c.images, c.seed)
    ours, bare = [], []
    with connection.connect(c.cluster) as client:
        warm_up = listing.list_images(c.images, c.seed)
        for turn in range(N_TURNS):
            url = str(tmp_path / f"{turn}.zarr")
            # The network is loaded, as after the first seconds of a long run.
            featurization.extraction.prepare(client, spec)
            started = time.perf_counter()
            store = featurization.featurize(url, warm_up, spec, client)
            ours.append(len(paths) / (time.perf_counter() - started))
            precision = store.fingerprint["precision"]
            bare.append(_on_the_worker(client, listed.root, paths, 16, precision))
            print(f"turn {turn}: featurize {ours[-1]:.2f}, bare loop {bare[-1]:.2f} images/s")
    ratio = statistics.median(ours) / statistics.median(bare)
    print(f"{precision}: featurize / bare loop = {ratio:.3f}")
    assert ratio >= 0.95


def _on_the_worker(
    client: Client, root: str, paths: list[str], batch_images: int, precision: str
) -> float:
    """In the same process, with the same threads."""
    loop = client.submit(_bare_loop, root, paths, batch_images, precision, pure=False)
    return float(loop.result())
