"""The options of a run, by section, each declared once.

The TOML keys, the command line, the messages and the table of options all follow from that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from dtl.config.errors import UserError
from dtl.config.options import (
    BELOW_1,
    MEMORY,
    NAME,
    URL,
    Rule,
    Section,
    above,
    at_least,
    option,
)
from dtl.config.secrets import hide
from dtl.config.tools import CheckConfig, CompareConfig, PackConfig, TuneConfig


def _is_share(value: float | int | str) -> bool:
    if isinstance(value, str):
        return value == "rest"
    return 0 <= value < 1 if isinstance(value, float) else value >= 0


def _are_views(views: tuple[str, ...]) -> bool:
    sizes = [view for view in views if view != "mirror"]
    return len({*views}) == len(views) and all(re.fullmatch("[1-9][0-9]*", s) for s in sizes)


_SHARE = Rule(_is_share, "a fraction below 1, a whole number of images, or rest")


_ENDINGS_OF_NETWORKS = (".onnx", ".keras", ".xml")


def is_network_file(network: str) -> bool:
    """Return whether ``features.network`` is a file's URL, and no name.

    Examples
    --------
    >>> is_network_file("hdfs:///models/mine.onnx"), is_network_file("VGG16")
    (True, False)
    """
    return network.endswith(_ENDINGS_OF_NETWORKS)


# fmt: off
# Each option is a row of a table: its name, type and default; its help and rule.


@dataclass(frozen=True)
class ClusterConfig(Section):
    """Where the work runs."""

    address: str = option("local",
        "local, yarn, or a running scheduler's tcp://host:port or tls://host:port",
        Rule(lambda v: v in ("local", "yarn") or v.startswith(("tcp://", "tls://")),
             "local, yarn, tcp://host:port or tls://host:port"))
    n_workers: int = option(1,
        "processes, or containers of YARN; each loads the network", at_least(1))
    threads_per_worker: int = option(0,
        "threads of each, at least 2; 0: processors shared out, or YARN's vcores", at_least(0))
    memory_limit: str = option("auto",
        "memory of each worker, such as 6GiB; auto: memory shared out, or the container's",
        Rule(lambda value: value == "auto" or MEMORY.allows(value), f"auto, or {MEMORY.words}"))
    processes: bool = option(True, "false: workers are threads of this process")
    dashboard_address: str = option(":0",
        "where a local cluster serves Dask's dashboard; without a host, to this machine alone")


@dataclass(frozen=True)
class YarnConfig(Section):
    """Containers of YARN, with ``cluster.address = "yarn"``."""

    name: str = option("dtl", "name of the application", NAME)
    queue: str = option("default", "queue that the application is submitted to", NAME)
    node_label: str = option("", "label of the nodes to run on; empty: as the queue says")
    environment: str = option("",
        "archive of pack-environment, or a folder on every node; empty: the running Python", URL)
    worker_memory: str = option("4GiB", "memory of a worker's container", MEMORY)
    worker_vcores: int = option(2, "virtual cores of a worker's container", at_least(1))
    worker_gpus: int = option(0, "GPUs of a worker's container (yarn.io/gpu)", at_least(0))
    scheduler_memory: str = option("1GiB", "memory of the Dask scheduler's container", MEMORY)
    driver_memory: str = option("2GiB", "memory of a submitted driver's container", MEMORY)
    adaptive_max: int = option(0,
        "most workers, if their number follows the work; 0: always n_workers", at_least(0))
    env: tuple[str, ...] = option((), "environment variables of all containers, NAME=VALUE",
        Rule(lambda v: all(re.match(r"[^\W\d]\w*=", x) for x in v), "texts of the form NAME=VALUE"))
    files: tuple[str, ...] = option((), "files for each container's folder; archives are unpacked")


@dataclass(frozen=True)
class StorageConfig(Section):
    """How storage is reached."""

    hdfs_client: Literal["native", "pyarrow"] = option("native",
        "client of hdfs://; pyarrow needs libhdfs and a JVM")


@dataclass(frozen=True)
class ImagesConfig(Section):
    """Which images, and how they become arrays."""

    url: str = option("",
        "folder of class folders, of train/, validation/ and test/, or of tars; or a tar", URL)
    classes: Literal["auto", "top", "second"] = option("auto",
        "class folders; auto: refused if in doubt; top: those in url; second: those in its splits")
    labels: str = option("",
        "table of labels in place of class folders: .csv, .tsv, .jsonl or .parquet, also .gz", URL)
    path_column: str = option("path",
        "its column of paths relative to url, or of these without their extensions", NAME)
    label_column: str = option("label", "its column of classes: texts or whole numbers", NAME)
    split_column: str = option("split",
        "its column of train, validation and test, if it has one; else folders give them", NAME)
    unlabelled: Literal["leave_out", "keep"] = option("leave_out",
        "images without a label; keep: their features, for suggest, and never trained on")
    resize: Literal["stretch", "crop"] = option("stretch",
        "to the network's size: stretch, or scale the short side and crop the middle")
    max_pixels: int = option(100_000_000, "pixels above which an image is skipped", at_least(1))
    max_skipped: float = option(0.01, "fraction of unreadable images above which the run fails",
        Rule(lambda value: 0 <= value <= 1, "a fraction from 0 to 1"))

    def _conflicts(self) -> Iterator[tuple[bool, str]]:
        yield bool(self.labels) and self.classes != "auto", (
            f"images.classes = {self.classes} says which folders are classes, and images.labels = "
            f"{hide(self.labels)} gives the classes itself. Leave one out.")
        columns = (self.path_column, self.label_column, self.split_column)
        yield len({*columns}) < len(columns), (
            "images.path_column, images.label_column and images.split_column must be three columns."
            f" Received: {', '.join(columns)}.")


@dataclass(frozen=True)
class FeaturesConfig(Section):
    """Which network turns images into features, and how they are stored."""

    network: str = option("VGG16",
        "a model of keras.applications, or the URL of a .onnx, .keras or .xml file", URL)
    layers: tuple[str, ...] = option(("fc2",),
        "layers to store, computed in one pass", Rule(bool, "one layer or more"))
    pooling: Literal["avg", "max", "flatten", "avg,max"] = option("avg",
        "how a layer with positions (height, width, channels) becomes one row; avg,max: both")
    views: tuple[str, ...] = option((),
        "sizes of square pictures, and mirror to take each mirrored, too; empty: network's size",
        Rule(_are_views, "sizes in pixels, mirror, or both, each once, such as 224,320,mirror"))
    combine: Literal["average", "stack"] = option("average",
        "features of several sizes; those of a mirrored picture are always averaged")
    weights: str = option("imagenet",
        "imagenet, random, or the URL of a .h5, .weights.h5 or .npz", URL)
    preprocess: Literal["network", "dl4j"] = option("network",
        "the network's own; dl4j: BGR without subtracted means, as in Deeplearning4j")
    engine: Literal["tensorflow", "openvino"] = option("tensorflow",
        "library that computes the network; openvino (an extra) is faster, and has int8")
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8"] = option("auto",
        "number format of the network; auto: the fastest that every worker has")
    dtype: Literal["float32", "float16"] = option("float32", "number format of stored features")
    batch_images: int = option(16, "images of one pass through the network", at_least(1))
    chunk_images: int = option(256, "images of one stored chunk, the unit of work", at_least(1))

    def _conflicts(self) -> Iterator[tuple[bool, str]]:
        has_sizes = any(view != "mirror" for view in self.views)
        yield has_sizes and self.pooling == "flatten", (
            "features.pooling = flatten makes as many features as a size has positions, so "
            f"features.views = {','.join(self.views)} would not give rows of one width. Use "
            "features.pooling = avg, max or avg,max."
        )
        is_file, named = is_network_file(self.network), f"features.network = {hide(self.network)}"
        yield is_file and self.engine == "tensorflow" and not self.network.endswith(".keras"), (
            f"{named} runs on OpenVINO, and not on TensorFlow. Set `features.engine` = openvino.")
        yield is_file and self.weights != "imagenet", (
            f"{named} has its own weights. Leave `features.weights` as it is.")
        yield is_file and has_sizes, (
            f"{named} takes images of the size that it declares. Leave sizes out of "
            "`features.views`; mirror may stay.")
        yield is_file and self.preprocess != "network", (
            f"{named} has a declaration of what its input wants. Leave `features.preprocess` as it "
            "is, and declare the order of the channels there.")


@dataclass(frozen=True)
class SplitConfig(Section):
    """Which images train, which validate and which test blindly."""

    method: Literal["auto", "stratified", "random", "folders"] = option("auto",
        "auto: by train/, validation/ and test/ where they are, else stratified by class")
    train: float | int | str = option("rest",
        "training images: a fraction (0.6), a number (19607), or rest", _SHARE)
    validation: float | int | str = option(0.15,
        "validation images: a fraction (0.15), a number (5000), or rest", _SHARE)
    test: float | int | str = option(0.2,
        "test images: a fraction (0.2), a number (6000), or rest", _SHARE)
    train_per_class: int = option(0,
        "training images of every class, as in papers; 0: as split.train says", at_least(0))
    duplicates: Literal["together", "drop"] = option("together",
        "identical files: all in one split, or all but the first dropped")


@dataclass(frozen=True)
class TrainConfig(Section):
    """How a head is trained."""

    layer: str = option("", "layer to train on; empty: the first of features.layers")
    normalize: Literal["standardise", "l2", "sqrt-l2"] = option("standardise",
        "features: each to deviation 1; or rows to unit length, after signed roots for sqrt-l2")
    solver: Literal["averaging", "lbfgs"] = option("averaging",
        "averaging: local SGD; lbfgs: the exact optimum, in one pass per step")
    n_shards: int = option(0, "replicas side by side; 0: one per chunk, at most 8", at_least(0))
    epochs: float = option(40.0, "passes over the training rows", above(0))
    batch_size: int = option(0,
        "rows of one step; 0: 32, 64 or 128, if an epoch of a replica still has 16 steps",
        at_least(0))
    averaging_frequency: int = option(10, "batches between two averages", at_least(1))
    averaging_frequency_end: int = option(0,
        "the same at the end, reached geometrically; 0: as at the start", at_least(0))
    shards_per_task: int = option(0,
        "neighbouring shards that one task trains in turn; 0: up to 4, if threads stay busy",
        Rule(lambda v: v >= 0 and v & (v - 1) == 0, "0, 1, 2, 4 or another power of two"))
    aggregation_depth: int = option(2, "levels of the tree that averages", at_least(1))
    optimizer: Literal["nesterov", "adam", "rmsprop", "adadelta"] = option("nesterov",
        "optimizer of the local steps, as in Keras; each needs its own learning rate")
    learning_rate: float = option(0.02, "learning rate after any warm-up", above(0))
    schedule: Literal["cosine", "constant", "exponential", "steps"] = option("cosine",
        "learning rate over time: cosine ends at 0, exponential at a hundredth")
    learning_rate_steps: str = option("",
        "for steps: epoch:rate, such as 10:0.01,20:0.001; each rate holds from its epoch on")
    warmup_epochs: float = option(0.0, "passes in which the rate rises from 0", at_least(0))
    momentum: float = option(0.9, "momentum of nesterov; 0 is plain SGD", BELOW_1)
    l2: float = option(1e-2, "penalty l2/2 * sum(kernel ** 2)", at_least(0))
    hidden_units: int = option(0,
        "units of a hidden layer with ReLU; 0: no such layer", at_least(0))
    hidden_start: Literal["random", "network"] = option("random",
        "first weights of the hidden layer; network: of the next layer, fc2 after fc1")
    dropout: float = option(0.0, "share of the softmax layer's inputs left out of a step", BELOW_1)
    label_smoothing: float = option(0.0, "share of a label spread evenly over all classes", BELOW_1)
    class_weights: Literal["none", "balanced"] = option("none",
        "balanced: a row of a rare class counts more, as in scikit-learn")
    clip_norm: float = option(0.0, "largest norm of a gradient; 0: no limit", at_least(0))
    average_optimizer: bool = option(True,
        "average the optimizer's state too; false: reset it after every average")
    outer_momentum: float = option(0.0,
        "Nesterov momentum over the averages (BMUF, DiLoCo); 0: none", BELOW_1)
    patience: int = option(0, "worse validations in a row that end training; 0: never", at_least(0))
    stop_on: Literal["validation_loss", "validation_accuracy"] = option("validation_loss",
        "measure of a better validation: a lower loss, or a higher accuracy")
    keep: Literal["last", "best"] = option("last",
        "head that becomes head.npz: of the last round, or of the best validation")
    start_from: str = option("",
        "head.npz, or out of a run, whose head is trained further; empty: a new head", URL)
    features_in: Literal["memory", "store"] = option("memory",
        "where features stay: memory of the workers, or the store if that is too small")

    def _conflicts(self) -> Iterator[tuple[bool, str]]:
        yield self.averaging_frequency_end > self.averaging_frequency, (
            "train.averaging_frequency_end must be at most train.averaging_frequency = "
            f"{self.averaging_frequency}. Received: {self.averaging_frequency_end}."
        )
        yield self.warmup_epochs >= self.epochs, (
            f"train.warmup_epochs must be below train.epochs = {self.epochs:g}. "
            f"Received: {self.warmup_epochs:g}."
        )
        steps = self.learning_rate_steps
        yield (self.schedule == "steps") != bool(steps), (
            "train.schedule = steps and train.learning_rate_steps go together. Received: "
            f"schedule = {self.schedule}, learning_rate_steps = {steps!r}."
        )
        last = parse_steps(steps)[-1][0] if steps else 0.0
        yield last >= self.epochs, (
            f"train.learning_rate_steps has a rate for epoch {last:g}, but training ends "
            f"after train.epochs = {self.epochs:g}. Leave it out, or train longer."
        )
        from_network, exact = self.hidden_start == "network", self.solver == "lbfgs"
        yield from_network and not self.hidden_units, (
            "train.hidden_start = network needs a hidden layer, and train.hidden_units = 0. "
            "Give the number of units of the network's layer, such as 4096 for VGG16's fc2."
        )
        yield from_network and bool(self.start_from), (
            "train.hidden_start = network and train.start_from are two starts. Give one.")
        yield from_network and self.normalize != "standardise", (
            "train.hidden_start = network starts from the network's own layer, whose inputs have "
            f"not the unit length of train.normalize = {self.normalize}. Use standardise."
        )
        yield exact and self.hidden_units > 0, (
            "train.solver = lbfgs finds the one optimum of a convex problem. A head with "
            f"train.hidden_units = {self.hidden_units} has none. Use averaging."
        )
        for name in ("dropout", "label_smoothing", "class_weights"):
            yield exact and getattr(self, name) not in (0, "none"), (
                f"train.{name} is for train.solver = averaging; lbfgs minimises the plain "
                "objective. Leave it out, or change the solver."
            )


@dataclass(frozen=True)
class Config(Section):
    """A whole run."""

    out: str = option("", "folder for everything that the run makes", URL)
    seed: int = option(0, "seed of the order, the split, batches and random weights", at_least(0))
    overwrite: bool = option(False, "replace results that were made with other settings")
    exact: bool = option(False,
        "refuse features of another list of images, instead of taking in what is new")
    repair: bool = option(False,
        "read all of features.zarr; repair what is damaged")
    retry_skipped: bool = option(False,
        "try skipped images again; if one can be read now, what was trained without it goes")
    with_check: bool = option(False, "then do what `check` does, too")
    dry_run: bool = option(False, "say what would be done, and how long it takes")
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    yarn: YarnConfig = field(default_factory=YarnConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    check: CheckConfig = field(default_factory=CheckConfig)

    def _conflicts(self) -> Iterator[tuple[bool, str]]:
        n_workers, adaptive_max = self.cluster.n_workers, self.yarn.adaptive_max
        yield 0 < adaptive_max < n_workers, (
            f"`yarn.adaptive_max` must be 0, or at least `cluster.n_workers` = {n_workers}. "
            f"Received: {adaptive_max}."
        )
        yield bool(self.features.views) and self.train.hidden_start == "network", (
            "train.hidden_start = network starts from the layer that follows in the network, whose "
            f"inputs are no combined views ({','.join(self.features.views)}). Use random."
        )
        yield self.layer not in self.features.layers, (
            f"train.layer must be one of features.layers {self.features.layers}. "
            f"Received: {self.layer!r}."
        )
        from_file = is_network_file(self.features.network)
        yield from_file and self.train.hidden_start == "network", (
            "train.hidden_start = network takes a layer of a network of keras.applications, and "
            f"features.network is {hide(self.features.network)}. Use random."
        )

    @property
    def layer(self) -> str:
        """The layer whose features the head is trained on."""
        return self.train.layer or self.features.layers[0]


# fmt: on


def parse_steps(text: str) -> list[tuple[float, float]]:
    """Parse ``epoch:rate`` pairs: the growing epochs from which the learning rates hold.

    Examples
    --------
    >>> parse_steps("10:0.01, 20:0.001")
    [(10.0, 0.01), (20.0, 0.001)]
    >>> parse_steps("10=0.01")
    Traceback (most recent call last):
        ...
    dtl.config.errors.UserError: train.learning_rate_steps must be epoch:rate with commas ...
    """
    try:
        steps = [(float(epoch), float(rate)) for epoch, rate in
                 (pair.split(":") for pair in text.split(","))]  # fmt: skip
    except ValueError:
        problem = "a pair is not of two numbers"
    else:
        epochs, rates = zip(*steps, strict=True)
        if not all(0 <= epoch < math.inf for epoch in epochs):
            problem = "an epoch is below 0 or not finite"
        elif list(epochs) != sorted(set(epochs)):
            problem = "the epochs do not grow"
        elif not all(0 < rate < math.inf for rate in rates):
            problem = "a rate is not above 0, or not finite"
        else:
            return steps
    raise UserError(
        "train.learning_rate_steps must be epoch:rate with commas between, such as "
        f"10:0.01,20:0.001. Received: {text!r}, where {problem}."
    )
