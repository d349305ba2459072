"""A classifier as ONNX, from Keras' model; no other module imports the packages of ONNX."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from dtl.config.errors import UserError
from dtl.features.network.classifiers.formats import About
from dtl.features.network.classifiers.keras_classifier import name_outputs

_MOST_BYTES = (1 << 31) - (1 << 20)
"""A file holds one message of Protocol Buffers, which has less than 2 GiB."""


def write(model: Any, path: Path, about: About) -> None:
    """Write Keras' model as ONNX; what it says of itself are its ``metadata_props``."""
    n_bytes = 4 * model.count_params()
    if n_bytes > _MOST_BYTES:
        raise UserError(
            f"The network has {n_bytes / 2**30:.1f} GiB of weights, and an ONNX file holds less "
            "than 2. Choose another format."
        )
    with warnings.catch_warnings():  # Keras' own use of NumPy
        warnings.simplefilter("ignore", FutureWarning)
        name_outputs(model).export(str(path), format="onnx", verbose=False)
    written = onnx.load(path)
    # What tf2onnx computed beforehand, such as means to subtract, it leaves among the inputs.
    unused = [each for each in written.graph.input if each.name not in about.inputs]
    for each in unused:
        written.graph.input.remove(each)
    onnx.helper.set_model_props(written, about.to_texts())
    onnx.checker.check_model(written)
    onnx.save(written, path)


def load(path: Path) -> Callable[[Mapping[str, NDArray[np.uint8]]], NDArray[np.float32]]:
    """Return a function from images (n, height, width, 3) by input to probabilities."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.float32]:
        floats = {name: each.astype(np.float32) for name, each in images.items()}
        probabilities: NDArray[np.float32] = session.run(["probabilities"], floats)[0]
        return probabilities

    return run
