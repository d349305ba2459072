"""The network as it is asked for, and as it is described."""

from __future__ import annotations

from dataclasses import dataclass

PENDING, DONE, SKIPPED = range(3)
"""The `status` of a row of the feature store."""


@dataclass(frozen=True)
class BackboneSpec:
    """What determines a network's outputs.

    Parameters
    ----------
    network : str
        Name of a model function in `keras.applications`.
    layers : tuple of str
        Layers whose outputs are the features.
    pooling : {"avg", "max", "flatten"}
        For outputs with positions, (height, width, channels).
    weights : str
        ``imagenet``, ``random``, or a URL.
    seed : int
        Of random weights.
    preprocess : {"network", "dl4j"}
    precision : {"float32", "bfloat16", "float16"}
        Of the computation; the weights stay float32.
    """

    network: str = "VGG16"
    layers: tuple[str, ...] = ("fc2",)
    pooling: str = "avg"
    weights: str = "imagenet"
    seed: int = 0
    preprocess: str = "network"
    precision: str = "float32"


@dataclass(frozen=True)
class Layer:
    """One row of a network's summary."""

    name: str
    kind: str
    output_shape: tuple[int | None, ...]
    n_parameters: int


@dataclass(frozen=True)
class Description:
    """What is known of a cut network without its weights.

    Parameters
    ----------
    input_size : (height, width)
    n_features : dict of layer name to int
    layers : tuple of Layer
        The whole network's, in its order.
    used : frozenset of str
        The layers that the features need.
    weights_bytes : int
        Memory of the used layers' float32 weights.
    """

    input_size: tuple[int, int]
    n_features: dict[str, int]
    layers: tuple[Layer, ...]
    used: frozenset[str]
    weights_bytes: int
