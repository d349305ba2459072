"""Ray Data: folders of photographs to features in Parquet, as a careful user writes it.

``python ray_features.py IMAGES OUT WEIGHTS PRECISION``
"""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import ray
from network import SIZE, fill_up, make_keras, tell_loaded
from PIL import Image

IMAGES, OUT, WEIGHTS, PRECISION = sys.argv[1:5]


def decode(row: dict[str, Any]) -> dict[str, Any]:
    with Image.open(io.BytesIO(row["bytes"])) as image:
        image.draft(None, SIZE)
        pixels = image.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR)
    return {"path": row["path"], "image": np.asarray(pixels)}


class Network:
    def __init__(self) -> None:
        self._model = make_keras(WEIGHTS, PRECISION)
        tell_loaded()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = [*batch["image"]]
        features = np.asarray(self._model.predict_on_batch(fill_up(images)), np.float32)
        return {"path": batch["path"], "features": features[: len(images)]}


if __name__ == "__main__":
    ray.init(
        num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": sys.path[0]}}
    )
    context = ray.data.DataContext.get_current()
    context.max_errored_blocks = -1  # go on without what cannot be read
    rows = ray.data.read_binary_files(IMAGES, include_paths=True, file_extensions=["jpg"])
    rows = rows.map(decode).map_batches(Network, batch_size=16, concurrency=1, num_cpus=1)
    rows.write_parquet(OUT)
