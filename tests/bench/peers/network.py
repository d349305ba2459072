"""The network that all contestants compute: VGG16's block5_pool, averaged, in a number format."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np

BATCH = 16
SIZE = (224, 224)


def read_weights(path: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernels (3, 3, n_in, n_out) and biases of the 13 convolutions, in their order."""
    with np.load(path) as file:
        arrays = [file[name] for name in sorted(file.files)]
    return [*zip(arrays[::2], arrays[1::2], strict=True)]


def make_keras(weights: str, precision: str) -> Any:
    """Keras' VGG16 of uint8 RGB images, preprocessing included."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras

    keras.config.set_dtype_policy(precision if precision == "float32" else f"mixed_{precision}")
    network = keras.applications.VGG16(
        weights=None, include_top=False, input_shape=(*SIZE, 3), pooling="avg"
    )
    convolutions = [layer for layer in network.layers if "conv" in layer.name]
    for layer, pair in zip(convolutions, read_weights(weights), strict=True):
        layer.set_weights(pair)
    pixels = keras.Input((*SIZE, 3), dtype="uint8")
    floats = keras.ops.cast(pixels, "float32")
    model = keras.Model(pixels, network(keras.applications.vgg16.preprocess_input(floats)))
    model.jit_compile = False
    model.predict_on_batch(np.zeros((BATCH, *SIZE, 3), np.uint8))
    return model


def make_torch(weights: str, precision: str) -> Any:
    """Return PyTorch's own VGG16 as a function of uint8 RGB images (n, height, width, 3)."""
    import torch
    from torch import nn

    torch.set_num_threads(2)
    layers: list[Any] = []
    n_in, pairs = 3, iter(read_weights(weights))
    for n_out, n_convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(n_convolutions):
            layer = nn.Conv2d(n_in, n_out, 3, padding=1)
            kernel, bias = next(pairs)
            layer.weight.data = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
            layer.bias.data = torch.from_numpy(bias.copy())
            layers += [layer, nn.ReLU()]
            n_in = n_out
        layers.append(nn.MaxPool2d(2))
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    model = nn.Sequential(*layers).eval().to(dtype).to(memory_format=torch.channels_last)
    means = torch.tensor([103.939, 116.779, 123.68])

    def compute(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            images = torch.from_numpy(pixels).flip(-1).float() - means
            images = (
                images.permute(0, 3, 1, 2).to(dtype).contiguous(memory_format=torch.channels_last)
            )
            return model(images).float().mean((2, 3)).numpy()

    return compute


def write_onnx(weights: str, path: str) -> None:
    """Write the network as ONNX, float32, of uint8 RGB images (n, height, width, 3)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    constants = {"order": np.array([2, 1, 0]), "spatial": np.array([2, 3])}
    constants["means"] = np.array([103.939, 116.779, 123.68], np.float32)
    nodes = [
        helper.make_node("Gather", ["pixels", "order"], ["bgr"], axis=3),
        helper.make_node("Cast", ["bgr"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["floats", "means"], ["centred"]),
        helper.make_node("Transpose", ["centred"], ["x0"], perm=[0, 3, 1, 2]),
    ]
    last, pools = "x0", {1, 3, 6, 9, 12}
    for number, (kernel, bias) in enumerate(read_weights(weights)):
        constants[f"kernel{number}"] = kernel.transpose(3, 2, 0, 1).copy()
        constants[f"bias{number}"] = bias
        inputs = [last, f"kernel{number}", f"bias{number}"]
        nodes.append(helper.make_node("Conv", inputs, [f"conv{number}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"conv{number}"], [f"relu{number}"]))
        last = f"relu{number}"
        if number in pools:
            sizes = {"kernel_shape": [2, 2], "strides": [2, 2]}
            nodes.append(helper.make_node("MaxPool", [last], [f"pool{number}"], **sizes))
            last = f"pool{number}"
    nodes.append(helper.make_node("ReduceMean", [last, "spatial"], ["features"], keepdims=0))
    graph = helper.make_graph(
        nodes, "vgg16",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", *SIZE, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 512])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(model, path)


def fill_up(images: list[np.ndarray]) -> np.ndarray:
    """A batch of always one shape."""
    batch = np.zeros((BATCH, *SIZE, 3), np.uint8)
    batch[: len(images)] = images
    return batch


def tell_loaded() -> None:
    """Say when the network was loaded; `race` reads it."""
    print(f"LOADED {time.time()}", file=sys.stderr, flush=True)
