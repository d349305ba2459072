"""The values that stages exchange."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
NO_SPLIT = -1
"""The split of a row that takes no part: skipped, dropped as a duplicate, or left over."""

PENDING, DONE, SKIPPED = range(3)
"""The `status` of a row of the feature store."""


WEIGHTS = ("hidden_kernel", "hidden_bias", "kernel", "bias")
"""What a head has learnt, from the features on; the first two where it has a hidden layer."""

KERNELS = ("hidden_kernel", "kernel")
"""Those of `WEIGHTS` that the penalty is on, and that changes and distances are told of."""


class Extent(NamedTuple):
    """A part of a file: an image in a tar."""

    url: str
    offset: int
    n_bytes: int


@dataclass(frozen=True, eq=False)
class ImageList:
    """The labelled images of one source, in the order of the feature store's rows.

    Parameters
    ----------
    root : str
        fsspec URL that `path` is relative to.
    path : (n_images,) StringDType
        Where a file's class folder is, too: of an image in a tar, its path if it were unpacked.
    label : (n_images,) int32
        Index into `class_names`.
    given_split : (n_images,) int8
        Index into `SPLITS` where the source's folders say so, else -1.
    size_bytes : (n_images,) int64
    class_names : tuple of str
    left_out : tuple of (path, reason)
        Files of the source that are no images of a class.
    shards : tuple of str
        Tars that images lie in, relative to `root`.
    shard : (n_images,) int32
        Index into `shards`, -1 for a file of its own. Empty where there are no shards.
    offset : (n_images,) int64
        Of the image's bytes in its tar. Empty where there are no shards.
    """

    root: str
    path: NDArray[Any]
    label: NDArray[np.int32]
    given_split: NDArray[np.int8]
    size_bytes: NDArray[np.int64]
    class_names: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    shards: tuple[str, ...] = ()
    shard: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    offset: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.path)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all but the place: a copy elsewhere, or in tars, is the same list."""
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for column in (self.label, self.given_split, self.size_bytes):
            digest.update(np.ascontiguousarray(column).tobytes())
        for path in self.path:
            digest.update(path.encode() + b"\0")
        return digest.hexdigest()

    @property
    def description(self) -> str:
        """Its size and its fingerprint, as settings hold them."""
        return f"{len(self)} of {len(self.class_names)} classes, SHA-256 {self.fingerprint}"


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


@dataclass(frozen=True, eq=False)
class Head:
    """A softmax layer on standardised features, or on hidden units of them.

    ``logits = (features - mean) / scale @ kernel + bias``, or ``units @ kernel + bias`` with
    ``units = max(0, (features - mean) / scale @ hidden_kernel + hidden_bias)``.

    Parameters
    ----------
    kernel : (n_features or n_units, n_classes) float32
    bias : (n_classes,) float32
    mean, scale : (n_features,) float32
        Of the training rows; `scale` is 1 for a constant feature.
    class_names : tuple of str
    provenance : dict
        What it was trained on and how, as JSON's types.
    hidden_kernel : (n_features, n_units) float32, optional
    hidden_bias : (n_units,) float32, optional
    """

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    class_names: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    hidden_kernel: NDArray[np.float32] | None = None
    hidden_bias: NDArray[np.float32] | None = None

    @property
    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Those of `WEIGHTS` that it has, by name."""
        found = {name: getattr(self, name) for name in WEIGHTS}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def layers(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Kernel and bias of each layer, from the features on."""
        weights = list(self.weights.values())
        return list(zip(weights[::2], weights[1::2], strict=True))

    @property
    def n_units(self) -> int:
        """Hidden units; 0 without a hidden layer."""
        return 0 if self.hidden_bias is None else len(self.hidden_bias)

    def logits(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Scores (n, n_classes) of features (n, n_features) as they are stored."""
        outputs: NDArray[Any] = (features.astype(np.float32) - self.mean) / self.scale
        *hidden, (kernel, bias) = self.layers
        for hidden_kernel, hidden_bias in hidden:
            outputs = np.maximum(outputs @ hidden_kernel + hidden_bias, 0)
        logits: NDArray[np.float32] = outputs @ kernel + bias
        return logits

    def folded(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Kernel and bias of each layer, of which the first takes features as they are.

        Examples
        --------
        >>> one = np.ones(1, "f4")
        >>> Head(kernel=np.full((1, 1), 6, "f4"), bias=one, mean=3 * one, scale=2 * one,
        ...      class_names=("a",)).folded()
        [(array([[3.]], dtype=float32), array([-8.], dtype=float32))]
        """
        (kernel, bias), *others = self.layers
        wide: NDArray[np.float64] = kernel.astype(np.float64) / self.scale[:, None]
        shifted = bias - self.mean.astype(np.float64) @ wide
        return [(wide.astype(np.float32), shifted.astype(np.float32)), *others]

    def to_bytes(self) -> bytes:
        """The bytes of an .npz file, without pickles; the same head gives the same bytes."""
        buffer = io.BytesIO()
        meta = json.dumps(
            {"class_names": self.class_names, "provenance": self.provenance}, sort_keys=True
        )
        np.savez(
            buffer,
            **self.weights,  # type: ignore[arg-type]
            mean=self.mean,
            scale=self.scale,
            meta=np.frombuffer(meta.encode(), np.uint8),
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Head:
        """Read what `to_bytes` wrote.

        Raises
        ------
        ValueError
            For other or damaged bytes.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                meta = json.loads(arrays["meta"].tobytes())
                return cls(
                    **{name: arrays[name] for name in WEIGHTS if name in arrays},
                    mean=arrays["mean"],
                    scale=arrays["scale"],
                    class_names=tuple(meta["class_names"]),
                    provenance=meta["provenance"],
                )
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"Not a head that dtl wrote: {error}.") from error

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its numbers, class names and provenance."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


@dataclass(frozen=True)
class Mistake:
    """One wrong prediction, and how sure the head was of it."""

    path: str
    split: str
    true: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class SplitScores:
    """How well one split was classified.

    Parameters
    ----------
    n_images : int
    accuracy, top5, log_loss, mean_precision, mean_recall, mean_f1 : float
        The means are over the classes that the split has (macro); log loss in nats.
    classes : dict
        By class name: ``{"n_images", "precision", "recall", "f1"}``.
    confusion : tuple of (true label, predicted label, n_images)
        The entries that are not zero, sorted.
    """

    n_images: int
    accuracy: float
    top5: float
    log_loss: float
    mean_precision: float
    mean_recall: float
    mean_f1: float
    classes: Mapping[str, Mapping[str, float]]
    confusion: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Evaluation:
    """The scores of a head on every split, and its most confident mistakes."""

    scores: Mapping[str, SplitScores]
    mistakes: tuple[Mistake, ...]
    class_names: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """What one round of training did: a row of history.parquet.

    Parameters
    ----------
    round, epoch : int, float
        Counted from 1; passes over the training rows at the round's end.
    loss : float
        Mean cross-entropy of the round's batches, over shards weighted by their rows (nats).
    shard_loss : tuple of float
        The same for each shard; NaN for a shard without training rows.
    learning_rate : float
        At the round's first step.
    update_ratio : float
        Norm of the round's change of the kernel over the norm of the kernel; here and below, with
        a hidden layer, of both kernels together.
    spread : float
        Root mean square distance of the replicas from their average, over the average's norm.
    step_s, average_s, wait_s : float
        Seconds in local steps (of the slowest task), in averaging, and the rest.
    train_accuracy, validation_accuracy, validation_loss, train_loss : float
        Of all rows, with the parameters at the round's end. NaN in rounds without validation.
    kernel_norm : float
        Of the kernel at the round's end; with `train_loss` it gives the objective.
    """

    round: int
    epoch: float
    loss: float
    shard_loss: tuple[float, ...]
    learning_rate: float
    update_ratio: float
    spread: float
    step_s: float
    average_s: float
    wait_s: float
    train_accuracy: float = float("nan")
    validation_accuracy: float = float("nan")
    validation_loss: float = float("nan")
    train_loss: float = float("nan")
    kernel_norm: float = float("nan")


@dataclass(frozen=True)
class Contender:
    """One way of training in a comparison, and what came of it.

    Parameters
    ----------
    name : str
    n_shards, averaging_frequency : int
        0 where that means nothing.
    accuracy, log_loss : dict of split name to float
    objective : float
        Mean cross-entropy of the training rows and penalty, nats.
    objective_gap : float
        How far that is above the optimum's, as a share of it; below 0 by rounding alone.
    kernel_distance : float
        Norm of the difference to the optimum's kernel, over that one's norm.
    seconds : float
        From the store to the head.
    bytes_moved : int
        Parameters, means and gradients that tasks gave to others, or features to the driver.
    curve : tuple of (seconds, objective)
        On the way; only the end where the way is not known.
    """

    name: str
    n_shards: int
    averaging_frequency: int
    accuracy: Mapping[str, float]
    log_loss: Mapping[str, float]
    objective: float
    objective_gap: float
    kernel_distance: float
    seconds: float
    bytes_moved: int
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Comparison:
    """Ways of training on the same features, the exact optimum first."""

    contenders: tuple[Contender, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rung:
    """How good a trial was after so many passes over the training rows."""

    epoch: float
    train_accuracy: float
    train_loss: float
    validation_accuracy: float
    validation_loss: float


@dataclass(frozen=True)
class Trial:
    """One choice of training's options, and how it did.

    Parameters
    ----------
    learning_rate, l2, dropout, averaging_frequency
        As `TrainConfig` has them.
    rungs : tuple of Rung
        At each cut that it came to, with finite scores.
    diverged : bool
        Before the next cut.
    """

    learning_rate: float
    l2: float
    dropout: float
    averaging_frequency: int
    rungs: tuple[Rung, ...] = ()
    diverged: bool = False


@dataclass(frozen=True)
class Tuning:
    """Trials of training's options, the best first.

    Parameters
    ----------
    trials : tuple of Trial
        Those that were dropped at the same cut, by what they had there; diverged ones last.
    cuts : tuple of float
        Epochs after which trials were compared; the last is the whole training.
    metric : {"validation_loss", "validation_accuracy"}
        By which.
    hints : tuple of str
        What whoever takes the best trial should know.
    provenance : dict
        All that it follows from.
    """

    trials: tuple[Trial, ...]
    cuts: tuple[float, ...]
    metric: str
    hints: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)


def differences(asked: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """What differs between two settings, one text each.

    Examples
    --------
    >>> differences({"layer": "fc2", "seed": 0}, {"layer": "fc1", "seed": 0})
    ["layer: asked for 'fc2', stored 'fc1'"]
    >>> differences({"train": {"l2": 0.0}}, {"train": {"l2": 0.1}})
    ['train.l2: asked for 0.0, stored 0.1']
    """
    asked, stored = _flat(asked), _flat(stored)
    return [
        f"{name}: asked for {asked.get(name)!r}, stored {stored.get(name)!r}"
        for name in sorted({*asked, *stored})
        if asked.get(name) != stored.get(name)
    ]


def check_same(
    asked: Mapping[str, Any], stored: Mapping[str, Any], what: str, advice: str = ""
) -> None:
    """Refuse settings that differ: `what` says of what, `advice` what to do.

    Raises
    ------
    ValueError
        Naming each difference.

    Examples
    --------
    >>> check_same({"seed": 0}, {"seed": 1}, "The split is another", "Give --seed as it was.")
    Traceback (most recent call last):
        ...
    ValueError: The split is another:
      seed: asked for 0, stored 1
    Give --seed as it was.
    """
    if found := differences(asked, stored):
        raise ValueError("\n  ".join([f"{what}:", *found]) + f"\n{advice}" * bool(advice))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat
