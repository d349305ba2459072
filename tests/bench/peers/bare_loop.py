"""A loop of one engine over photographs: what a script without any pipeline does.

``python bare_loop.py ENGINE IMAGES OUT WEIGHTS PRECISION [NETWORK]``, where ENGINE is tensorflow,
torch, onnxruntime or openvino, and NETWORK a file for the last two. Photographs are decoded by
threads, ahead of the network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from network import BATCH, SIZE, fill_up, make_keras, make_torch, tell_loaded
from PIL import Image

Compute = Callable[[np.ndarray], Any]


def decode(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        image.draft(None, SIZE)
        return np.asarray(image.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR))


def make(engine: str, weights: str, precision: str, network: str) -> Compute:
    if engine == "tensorflow":
        compute: Compute = make_keras(weights, precision).predict_on_batch
        return compute
    if engine == "torch":
        return make_torch(weights, precision)
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        session = onnxruntime.InferenceSession(network, options)
        (name,) = [given.name for given in session.get_inputs()]
        return lambda pixels: session.run(None, {name: pixels})[0]
    import openvino

    hints = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}
    settings = {"INFERENCE_PRECISION_HINT": hints[precision], "INFERENCE_NUM_THREADS": 2}
    compiled = openvino.Core().compile_model(network, "CPU", settings)
    return lambda pixels: compiled(pixels)[0]


def main(
    engine: str, images: str, out: str, weights: str, precision: str, network: str = ""
) -> None:
    paths = sorted(Path(images).glob("**/*.jpg"))
    compute = make(engine, weights, precision, network)
    tell_loaded()
    features = np.zeros((len(paths), 512), np.float32)
    with ThreadPoolExecutor(2) as pool:
        decoded = pool.map(decode, paths)
        for start in range(0, len(paths), BATCH):
            batch = [next(decoded) for _ in paths[start : start + BATCH]]
            features[start : start + BATCH] = np.asarray(compute(fill_up(batch)))[: len(batch)]
    np.save(out, features)


if __name__ == "__main__":
    main(*sys.argv[1:])
