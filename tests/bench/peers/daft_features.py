"""Daft: folders of photographs to features in Parquet, as a careful user writes it.

``python daft_features.py IMAGES OUT WEIGHTS PRECISION``
"""

from __future__ import annotations

import sys
from typing import Any

import daft
import numpy as np
from network import SIZE, fill_up, make_keras, tell_loaded

IMAGES, OUT, WEIGHTS, PRECISION = sys.argv[1:5]


@daft.cls(max_concurrency=1, gpus=0)
class Network:
    def __init__(self) -> None:
        self._model = make_keras(WEIGHTS, PRECISION)
        tell_loaded()

    @daft.method.batch(
        return_dtype=daft.DataType.tensor(daft.DataType.float32(), (512,)), batch_size=16
    )
    def compute(self, images: daft.Series) -> list[Any]:
        pixels = [np.asarray(image) for image in images.to_pylist()]
        features = np.asarray(self._model.predict_on_batch(fill_up(pixels)), np.float32)
        return [*features[: len(pixels)]]


if __name__ == "__main__":
    rows = daft.from_glob_path(f"{IMAGES}/**/*.jpg")
    image = daft.col("path").download(on_error="null").decode_image(mode="RGB", on_error="null")
    rows = rows.with_column("image", image).where(daft.col("image").not_null())
    rows = rows.with_column("image", daft.col("image").resize(*SIZE))
    rows = rows.with_column("features", Network().compute(daft.col("image")))
    rows.select("path", "features").write_parquet(OUT)
