"""The configuration of a run: frozen, validated values, from a TOML file and from the command line.

Every option is declared once, here: its name, type, default, one line of help and what is allowed.
The TOML keys, the command line, the messages and the table in README.md all follow from that.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Union

from dtl import schedules

NO_URL = ""

_IN_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple[str, ...]: "a list of texts",
    tuple[int, ...]: "a list of whole numbers",
    tuple[float, ...]: "a list of numbers",
}


def option(
    default: Any,
    help: str,
    *,
    check: Callable[[Any], bool] | None = None,
    allowed: str = "",
) -> Any:
    """Declare one option; `allowed` says in words what `check` tests."""
    metadata = {"help": help, "check": check, "allowed": allowed}
    return field(default=default, metadata=metadata)


def _positive(value: float) -> bool:
    return value > 0


def _not_negative(value: float) -> bool:
    return value >= 0


def _is_share(value: float | int | str) -> bool:
    if isinstance(value, str):
        return value == "rest"
    return 0 <= value < 1 if isinstance(value, float) else value >= 0


def _memory(default: str, help: str) -> Any:
    return option(
        default,
        f"memory {help}",
        check=lambda v: re.fullmatch(r"\d+ ?[MG]iB", v) is not None,
        allowed="a whole number of MiB or GiB, such as 4GiB",
    )


def _vcores(default: int, help: str) -> Any:
    return option(default, f"virtual cores {help}", check=_positive, allowed="1 or more")


class _Section:
    """Checks the type and range of each option when a section is made."""

    _name: typing.ClassVar[str] = ""

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for spec in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, spec.name)
            if dataclasses.is_dataclass(hints[spec.name]):
                continue
            key = f"{self._name}.{spec.name}".lstrip(".")
            value = _typed(value, hints[spec.name], key)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key} must be a finite number. Received: {value!r}.")
            object.__setattr__(self, spec.name, value)
            check = spec.metadata["check"]
            if check is not None and not check(value):
                raise ValueError(f"{key} must be {spec.metadata['allowed']}. Received: {value!r}.")


@dataclass(frozen=True)
class ClusterConfig(_Section):
    """Where the work runs."""

    _name: typing.ClassVar = "cluster"
    address: str = option(
        "local",
        "local, yarn, or a running scheduler's tcp://host:port or tls://host:port",
        check=lambda v: v in ("local", "yarn") or v.startswith(("tcp://", "tls://")),
        allowed="local, yarn, tcp://host:port or tls://host:port",
    )
    n_workers: int = option(
        1,
        "processes of a local cluster, containers of YARN; the network is loaded once in each",
        check=_positive,
        allowed="1 or more",
    )
    threads_per_worker: int = option(
        0,
        "threads of each, at least 2; 0 shares the processors out, or is YARN's vcores",
        check=_not_negative,
        allowed="0 or more",
    )
    memory_limit: str = option(
        "auto", "memory of each, such as 6GiB; auto shares it out, or is the container's"
    )
    processes: bool = option(True, "false: threads of this process instead of worker processes")
    dashboard_address: str = option(":0", "where a local cluster serves Dask's dashboard")


@dataclass(frozen=True)
class YarnConfig(_Section):
    """What is asked of YARN, with ``cluster.address = "yarn"``."""

    _name: typing.ClassVar = "yarn"
    name: str = option("dtl", "of the application", check=bool, allowed="a name")
    queue: str = option("default", "queue that it is submitted to", check=bool, allowed="a name")
    node_label: str = option("", "only nodes with this label; empty: as the queue says")
    environment: str = option(
        NO_URL,
        "archive that pack-environment made, or a folder on every node; empty: the one that runs",
    )
    worker_memory: str = _memory("4GiB", "of a worker's container")
    worker_vcores: int = _vcores(2, "of a worker's container")
    worker_gpus: int = option(
        0, "of a worker's container (yarn.io/gpu)", check=_not_negative, allowed="0 or more"
    )
    scheduler_memory: str = _memory("1GiB", "of the container of Dask's scheduler")
    scheduler_vcores: int = _vcores(1, "of the container of Dask's scheduler")
    driver_memory: str = _memory("2GiB", "of the container of a submitted driver")
    driver_vcores: int = _vcores(1, "of the container of a submitted driver")
    adaptive_min: int = option(
        0, "fewest workers, if their number follows the work", check=_not_negative,
        allowed="0 or more",
    )  # fmt: skip
    adaptive_max: int = option(
        0, "most workers; 0: always cluster.n_workers", check=_not_negative, allowed="0 or more"
    )
    env: tuple[str, ...] = option(
        (),
        "environment variables of all containers, NAME=VALUE",
        check=lambda v: all(re.match(r"[A-Za-z_]\w*=", item) for item in v),
        allowed="texts of the form NAME=VALUE",
    )
    files: tuple[str, ...] = option(
        (), "files and archives that lie in each container's folder; archives are unpacked"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adaptive_min > self.adaptive_max:
            raise ValueError(
                f"yarn.adaptive_min must be at most yarn.adaptive_max = {self.adaptive_max}. "
                f"Received: {self.adaptive_min}."
            )


@dataclass(frozen=True)
class StorageConfig(_Section):
    """How storage is reached."""

    _name: typing.ClassVar = "storage"
    hdfs_client: Literal["native", "pyarrow"] = option(
        "native", "for hdfs://: hdfs-native, or pyarrow's, which needs libhdfs and a JVM"
    )


@dataclass(frozen=True)
class ImagesConfig(_Section):
    """Which images, and how they become arrays."""

    _name: typing.ClassVar = "images"
    url: str = option(
        NO_URL, "folder of class folders, of train/, validation/ and test/, or of tars; or a tar"
    )
    resize: Literal["stretch", "crop"] = option(
        "stretch", "stretch to the network's size, or scale the short side and crop the middle"
    )
    max_pixels: int = option(
        100_000_000, "larger images are skipped, not decoded", check=_positive, allowed="1 or more"
    )
    max_skipped: float = option(
        0.01,
        "the run fails if more than this fraction of the images is unreadable",
        check=lambda v: 0 <= v <= 1,
        allowed="a fraction from 0 to 1",
    )


@dataclass(frozen=True)
class FeaturesConfig(_Section):
    """Which network turns images into features, and how they are stored."""

    _name: typing.ClassVar = "features"
    network: str = option("VGG16", "a model of keras.applications")
    layers: tuple[str, ...] = option(
        ("fc2",),
        "layers to keep, all computed in one pass",
        check=bool,
        allowed="one layer or more",
    )
    pooling: Literal["avg", "max", "flatten"] = option(
        "avg", "what becomes of a layer with positions (height, width, channels)"
    )
    weights: str = option("imagenet", "imagenet, random, or the URL of a .h5, .weights.h5 or .npz")
    preprocess: Literal["network", "dl4j"] = option(
        "network", "the network's own; dl4j: BGR without subtracted means, as Deeplearning4j had it"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "auto: the fastest that every worker's processor has"
    )
    dtype: Literal["float32", "float16"] = option("float32", "of the stored features")
    batch_images: int = option(
        16, "images in one pass through the network", check=_positive, allowed="1 or more"
    )
    chunk_images: int = option(
        256,
        "images in one chunk of the store, the unit of work",
        check=_positive,
        allowed="1 or more",
    )


@dataclass(frozen=True)
class SplitConfig(_Section):
    """Which images train, which validate and which test blindly."""

    _name: typing.ClassVar = "split"
    method: Literal["auto", "stratified", "random", "folders"] = option(
        "auto", "auto: as the folders say, stratified by class where they do not"
    )
    train: float | int | str = option(
        "rest",
        "a fraction (0.6), a number of images (19607), or rest",
        check=_is_share,
        allowed="a fraction below 1, a whole number of images, or rest",
    )
    validation: float | int | str = option(
        0.15,
        "a fraction (0.15), a number of images (5000), or rest",
        check=_is_share,
        allowed="a fraction below 1, a whole number of images, or rest",
    )
    test: float | int | str = option(
        0.2,
        "a fraction (0.2), a number of images (6000), or rest",
        check=_is_share,
        allowed="a fraction below 1, a whole number of images, or rest",
    )
    train_per_class: int = option(
        0,
        "train on this many images of every class (as papers do); 0: as train says",
        check=_not_negative,
        allowed="0 or more",
    )
    duplicates: Literal["together", "drop"] = option(
        "together", "identical files: all on one side, or only the first of them kept"
    )


@dataclass(frozen=True)
class TrainConfig(_Section):
    """How a head is trained."""

    _name: typing.ClassVar = "train"
    layer: str = option("", "features to train on; empty: the first of features.layers")
    solver: Literal["averaging", "lbfgs"] = option(
        "averaging", "local SGD and averages; or lbfgs: the exact optimum, one pass a step"
    )
    lbfgs_tolerance: float = option(
        1e-5,
        "lbfgs ends where no part of the gradient is larger",
        check=_positive,
        allowed="above 0",
    )
    lbfgs_max_iterations: int = option(
        1000, "lbfgs ends here at the latest", check=_positive, allowed="1 or more"
    )
    n_shards: int = option(
        0,
        "replicas that train side by side; 0: one a chunk, at most 8",
        check=_not_negative,
        allowed="0 or more",
    )
    epochs: float = option(
        40.0, "passes over the training rows", check=_positive, allowed="above 0"
    )
    batch_size: int = option(32, "rows of one SGD step", check=_positive, allowed="1 or more")
    averaging_frequency: int = option(
        10, "batches between two averages", check=_positive, allowed="1 or more"
    )
    averaging_frequency_end: int = option(
        0,
        "what it goes down to, geometrically, by the end; 0: it stays",
        check=_not_negative,
        allowed="0 or more",
    )
    shards_per_task: int = option(
        0,
        "neighbouring shards that a task trains in turn; 0: as many, up to 4, as keep all threads "
        "busy",
        check=lambda v: v >= 0 and v & (v - 1) == 0,
        allowed="0, 1, 2, 4 or another power of two",
    )
    aggregation_depth: int = option(
        2, "levels of the tree that averages what tasks trained", check=_positive,
        allowed="1 or more",
    )  # fmt: skip
    optimizer: Literal["nesterov", "sgd", "momentum", "adam", "rmsprop", "adadelta"] = option(
        "nesterov", "of the local steps, as Keras has it; each wants its own learning rate"
    )
    learning_rate: float = option(
        0.02, "of the first step, or after the warm-up", check=_positive, allowed="above 0"
    )
    schedule: Literal["cosine", "constant", "exponential", "steps"] = option(
        "cosine", "how the learning rate goes on: down to 0 along a half cosine, or as named"
    )
    learning_rate_decay: float = option(
        0.01,
        "exponential: what the learning rate is multiplied by over the whole training",
        check=lambda v: 0 < v <= 1,
        allowed="above 0 and at most 1",
    )
    learning_rate_steps: str = option(
        "", "steps: epoch:rate, such as 10:0.01,20:0.001; each rate holds from its epoch on"
    )
    warmup_epochs: float = option(
        0.0,
        "passes in which the learning rate rises from 0",
        check=_not_negative,
        allowed="0 or more",
    )
    momentum: float = option(
        0.9,
        "of nesterov and momentum; 0 is plain SGD",
        check=lambda v: 0 <= v < 1,
        allowed="from 0 to below 1",
    )
    l2: float = option(
        1e-2, "penalty l2/2 * sum(kernel ** 2)", check=_not_negative, allowed="0 or more"
    )
    hidden_units: int = option(
        0,
        "units of a hidden layer with ReLU, below the softmax layer; 0: none",
        check=_not_negative,
        allowed="0 or more",
    )
    hidden_start: Literal["random", "network"] = option(
        "random", "of the hidden layer; network: from the network's own next layer, fc2 after fc1"
    )
    dropout: float = option(
        0.0,
        "share of the softmax layer's inputs, features or hidden units, that a step leaves out",
        check=lambda v: 0 <= v < 1,
        allowed="from 0 to below 1",
    )
    label_smoothing: float = option(
        0.0,
        "share of a label that goes to all classes alike",
        check=lambda v: 0 <= v < 1,
        allowed="from 0 to below 1",
    )
    class_weights: Literal["none", "balanced"] = option(
        "none", "balanced: a row of a rare class counts more, as in scikit-learn"
    )
    clip_norm: float = option(
        0.0,
        "a gradient of a larger norm is scaled down to it; 0: none is",
        check=_not_negative,
        allowed="0 or more",
    )
    average_optimizer: bool = option(
        True, "average its state too; false: start it again after every average"
    )
    outer_momentum: float = option(
        0.0,
        "Nesterov's, over the averages (BMUF, DiLoCo); 0: none",
        check=lambda v: 0 <= v < 1,
        allowed="from 0 to below 1",
    )
    outer_learning_rate: float = option(
        1.0,
        "how far to go to the average, and with outer momentum in every round again",
        check=_positive,
        allowed="above 0",
    )
    validate_every: int = option(
        0,
        "rounds between two validations; 0: one an epoch, but not more than some 30",
        check=_not_negative,
        allowed="0 or more",
    )
    patience: int = option(
        0,
        "stop after this many validations without a better one; 0: never",
        check=_not_negative,
        allowed="0 or more",
    )
    stop_on: Literal["validation_loss", "validation_accuracy"] = option(
        "validation_loss", "what a better validation is: a lower loss, or a higher accuracy"
    )
    max_seconds: float = option(
        0.0,
        "stop after this time, so that the head depends on how fast it went; 0: no limit",
        check=_not_negative,
        allowed="0 or more",
    )
    keep: Literal["last", "best"] = option(
        "last", "which head is head.npz: of the last round, or of the best validation"
    )
    start_from: str = option(
        NO_URL, "head.npz, or --out of a run, whose head is trained further; empty: anew"
    )
    checkpoint_every: int = option(
        50,
        "rounds between two checkpoints, from which a killed training goes on; 0: none",
        check=_not_negative,
        allowed="0 or more",
    )
    features_in: Literal["memory", "store"] = option(
        "memory", "where features stay: workers' memory, or the store, if it is larger than that"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.averaging_frequency_end > self.averaging_frequency:
            raise ValueError(
                "train.averaging_frequency_end must be at most train.averaging_frequency = "
                f"{self.averaging_frequency}. Received: {self.averaging_frequency_end}."
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"train.warmup_epochs must be below train.epochs = {self.epochs:g}. "
                f"Received: {self.warmup_epochs:g}."
            )
        if (self.schedule == "steps") != bool(self.learning_rate_steps):
            raise ValueError(
                "train.schedule = steps and train.learning_rate_steps go together. Received: "
                f"schedule = {self.schedule}, learning_rate_steps = {self.learning_rate_steps!r}."
            )
        if self.learning_rate_steps:
            try:
                steps = schedules.parse_steps(self.learning_rate_steps)
            except ValueError as error:
                raise ValueError(f"train.learning_rate_steps: {error}") from None
            if steps[-1][0] >= self.epochs:
                raise ValueError(
                    f"train.learning_rate_steps has a rate for epoch {steps[-1][0]:g}, but "
                    f"training ends after train.epochs = {self.epochs:g}. Leave it out, or "
                    "train longer."
                )
        if self.hidden_start == "network" and not self.hidden_units:
            raise ValueError(
                "train.hidden_start = network is of a hidden layer, and train.hidden_units = 0. "
                "Give the number of units of the network's layer, such as 4096 for VGG16's fc2."
            )
        if self.hidden_start == "network" and self.start_from:
            raise ValueError(
                "train.hidden_start = network and train.start_from are two starts. Give one."
            )
        if self.solver == "lbfgs" and self.hidden_units:
            raise ValueError(
                "train.solver = lbfgs finds the one optimum of a convex problem, and that of a "
                f"head with train.hidden_units = {self.hidden_units} is none. Use averaging."
            )
        if self.solver == "lbfgs":
            changed = [
                name
                for name, usual in (
                    ("dropout", 0.0), ("label_smoothing", 0.0), ("class_weights", "none"),
                )
                if getattr(self, name) != usual
            ]  # fmt: skip
            if changed:
                raise ValueError(
                    f"train.{changed[0]} is for train.solver = averaging; lbfgs minimises the "
                    "plain objective. Leave it out, or change the solver."
                )


@dataclass(frozen=True)
class CompareConfig(_Section):
    """Which ways of training are compared."""

    _name: typing.ClassVar = "compare"
    frequencies: tuple[int, ...] = option(
        (1, 10, 50),
        "batches between two averages; 1 is synchronous SGD",
        check=lambda v: bool(v) and min(v) > 0,
        allowed="numbers of 1 or more",
    )
    shards: tuple[int, ...] = option(
        (1, 4, 8),
        "replicas that train side by side; not more than chunks",
        check=lambda v: bool(v) and min(v) > 0,
        allowed="numbers of 1 or more",
    )
    sklearn_mib: int = option(
        2048,
        "MiB of features that scikit-learn may hold on the driver; 0: without scikit-learn",
        check=_not_negative,
        allowed="0 or more",
    )


@dataclass(frozen=True)
class TuneConfig(_Section):
    """Which options of training are searched for, and how."""

    _name: typing.ClassVar = "tune"
    method: Literal["grid", "random"] = option(
        "grid", "every combination of the values below, or n_trials drawn at random"
    )
    n_trials: int = option(
        20, "random: how many combinations are drawn", check=_positive, allowed="1 or more"
    )
    learning_rates: tuple[float, ...] = option(
        (0.003, 0.01, 0.03, 0.1),
        "values of train.learning_rate; random: log-uniform from the least to the largest",
        check=lambda v: bool(v) and all(0 < rate < math.inf for rate in v),
        allowed="numbers above 0",
    )
    l2s: tuple[float, ...] = option(
        (0.001, 0.003, 0.01, 0.03, 0.1),
        "values of train.l2; random: log-uniform from the least to the largest",
        check=lambda v: bool(v) and all(0 <= l2 < math.inf for l2 in v),
        allowed="numbers of 0 or more",
    )
    dropouts: tuple[float, ...] = option(
        (),
        "values of train.dropout; empty: as train says",
        check=lambda v: all(0 <= dropout < 1 for dropout in v),
        allowed="numbers from 0 to below 1",
    )
    frequencies: tuple[int, ...] = option(
        (),
        "values of train.averaging_frequency; empty: as train says",
        check=lambda v: all(frequency > 0 for frequency in v),
        allowed="numbers of 1 or more",
    )
    eta: int = option(
        3,
        "at each cut the best goes on, one trial in so many; 1: all go on to the end",
        check=_positive,
        allowed="1 or more",
    )
    first_epochs: float = option(
        10.0,
        "passes before the first cut, at least; each cut after it has eta times as many",
        check=_positive,
        allowed="above 0",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == "random" and min(self.l2s) == 0:
            raise ValueError(
                "tune.l2s must be above 0 for tune.method = random, which draws between their "
                f"logarithms. Received: {self.l2s}. Leave 0 out, or choose grid."
            )


@dataclass(frozen=True)
class PackConfig(_Section):
    """How images are packed into tars."""

    _name: typing.ClassVar = "pack"
    shard_mib: int = option(
        256, "MiB of one tar, which a worker holds in memory", check=_positive, allowed="1 or more"
    )


@dataclass(frozen=True)
class ReportConfig(_Section):
    """What the report shows."""

    _name: typing.ClassVar = "report"
    n_mistakes: int = option(
        24, "most confident mistakes shown as pictures", check=_not_negative, allowed="0 or more"
    )


@dataclass(frozen=True)
class Config(_Section):
    """A whole run."""

    out: str = option(NO_URL, "folder for everything that the run makes")
    seed: int = option(0, "of the order, the split, the batches and random weights")
    overwrite: bool = option(False, "replace results in --out that were made with other settings")
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
    report: ReportConfig = field(default_factory=ReportConfig)

    @property
    def layer(self) -> str:
        """The layer whose features the head is trained on."""
        layer = self.train.layer or self.features.layers[0]
        if layer not in self.features.layers:
            raise ValueError(
                f"train.layer must be one of features.layers {self.features.layers}. "
                f"Received: {layer!r}."
            )
        return layer


@dataclass(frozen=True)
class Option:
    """One option as the command line and README.md show it."""

    key: str
    type: Any
    default: Any
    help: str

    @property
    def flag(self) -> str:
        """Its name on the command line; a section's main key goes by the section's name."""
        short = {"cluster.address": "cluster", "images.url": "images"}
        return "--" + short.get(self.key, self.key).replace("_", "-")

    @property
    def metavar(self) -> str:
        """What its value looks like."""
        if typing.get_origin(self.type) is Literal:
            return "|".join(typing.get_args(self.type))
        if typing.get_origin(self.type) is tuple:
            return "A,B"
        if self.type is bool:
            return "true|false"
        names = {int: "N", float: "X", str: "TEXT"}
        return "|".join(names[member] for member in _members(self.type) if member is not str) or (
            "URL" if self.key in ("out", "images.url", "train.start_from") else "TEXT"
        )

    @property
    def described(self) -> str:
        """Its help and its default."""
        many = isinstance(self.default, tuple)
        shown = ", ".join(map(str, self.default)) if many else self.default
        return f"{self.help} (default: {shown})" if shown != NO_URL else self.help


def options(section: type = Config, prefix: str = "") -> Iterator[Option]:
    """All options in the order of declaration."""
    hints = _hints(section)
    for spec in dataclasses.fields(section):
        kind = hints[spec.name]
        if dataclasses.is_dataclass(kind):
            yield from options(typing.cast(type, kind), f"{spec.name}.")
        else:
            yield Option(prefix + spec.name, kind, spec.default, spec.metadata["help"])


def build(*layers: Mapping[str, Any]) -> Config:
    """Make a configuration from nested tables, the later over the earlier.

    Raises
    ------
    ValueError
        For an unknown key (the known ones are listed) or a value of the wrong type or range.

    Examples
    --------
    >>> build({"train": {"learning_rate": 0.1}}, {"train": {"epochs": 2}}).train.epochs
    2.0
    >>> build({"train": {"learning_rat": 0.1}})
    Traceback (most recent call last):
        ...
    ValueError: Unknown key train.learning_rat. Did you mean learning_rate? ...
    """
    merged: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    hints = _hints(Config)
    for layer in layers:
        for name, value in layer.items():
            if name not in hints:
                raise ValueError(_unknown(name, "", list(hints)))
            kind = hints[name]
            if not dataclasses.is_dataclass(kind):
                top[name] = value
                continue
            if not isinstance(value, Mapping):
                raise ValueError(f"[{name}] must be a table of options. Received: {value!r}.")
            known = [spec.name for spec in dataclasses.fields(kind)]
            for key in value:
                if key not in known:
                    raise ValueError(_unknown(key, f"{name}.", known))
            merged.setdefault(name, {}).update(value)
    sections = {name: hints[name](**values) for name, values in merged.items()}
    return Config(**top, **sections)


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Read a TOML text; `where` names it in the message."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where} is not valid TOML: {error}.") from error


def parse_text(option: Option, text: str) -> Any:
    """Turn a command line's text into the option's type."""
    for kind in _members(option.type):
        try:
            if kind is bool:
                return {"true": True, "false": False}[text.lower()]
            if typing.get_origin(kind) is tuple:
                item = typing.get_args(kind)[0]
                return tuple(item(part.strip()) for part in text.split(",") if part.strip())
            if kind is int or kind is float:
                return kind(text)
        except (ValueError, KeyError):
            continue
    return text


def to_dict(config: Any) -> dict[str, Any]:
    """Nested tables with TOML's types; `build` makes the same configuration of them."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
    } | {
        spec.name: to_dict(getattr(config, spec.name))
        for spec in dataclasses.fields(config)
        if dataclasses.is_dataclass(getattr(config, spec.name))
    }


def _hints(section: type) -> dict[str, Any]:
    names = {spec.name for spec in dataclasses.fields(section)}
    return {k: v for k, v in typing.get_type_hints(section).items() if k in names}


def _members(kind: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) in (Union, types.UnionType):
        # A whole number is tried before a fraction: "5000" is a count, "0.5" a share.
        return tuple(sorted(typing.get_args(kind), key=[int, float, str].index))
    return (kind,)


def _typed(value: Any, kind: Any, key: str) -> Any:
    for member in _members(kind):
        if typing.get_origin(member) is Literal:
            if value in typing.get_args(member):
                return value
            choices = ", ".join(typing.get_args(member))
            raise ValueError(f"{key} must be one of {choices}. Received: {value!r}.")
        if typing.get_origin(member) is tuple:
            item = typing.get_args(member)[0]
            kinds = {item, int} if item is float else {item}
            if type(value) in kinds:
                return (item(value),)
            if isinstance(value, list | tuple) and all(type(v) in kinds for v in value):
                return tuple(map(item, value))
        elif member is float and type(value) is int and len(_members(kind)) == 1:
            return float(value)
        elif type(value) is member:
            return value
    expected = " or ".join(_IN_WORDS[m] for m in _members(kind))
    raise ValueError(f"{key} must be {expected}. Received: {value!r}.")


def _unknown(key: str, prefix: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, 1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return f"Unknown key {prefix}{key}. {hint}Known: {', '.join(known)}."
