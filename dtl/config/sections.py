"""The options of a run, by section. Each is declared once, here or in `dtl.config.training`.

The TOML keys, the command line, the messages and the table of options all follow from that.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from dtl.config.options import MEMORY, NAME, NO_URL, Rule, Section, at_least, option
from dtl.config.training import CompareConfig, TrainConfig, TuneConfig


def _is_share(value: float | int | str) -> bool:
    if isinstance(value, str):
        return value == "rest"
    return 0 <= value < 1 if isinstance(value, float) else value >= 0


_SHARE = Rule(_is_share, "a fraction below 1, a whole number of images, or rest")


@dataclass(frozen=True)
class ClusterConfig(Section):
    """Where the work runs."""

    _name: typing.ClassVar = "cluster"
    address: str = option(
        "local", "local, yarn, or a running scheduler's tcp://host:port or tls://host:port",
        Rule(lambda v: v in ("local", "yarn") or v.startswith(("tcp://", "tls://")),
             "local, yarn, tcp://host:port or tls://host:port"),
    )  # fmt: skip
    n_workers: int = option(
        1, "processes, or containers of YARN; each loads the network", at_least(1)
    )
    threads_per_worker: int = option(
        0, "threads of each, at least 2; 0: processors shared out, or YARN's vcores", at_least(0)
    )
    memory_limit: str = option(
        "auto", "memory of each worker, such as 6GiB; auto: memory shared out, or the container's",
        Rule(lambda value: value == "auto" or MEMORY.allows(value), f"auto, or {MEMORY.words}"),
    )  # fmt: skip
    processes: bool = option(True, "false: workers are threads of this process")
    dashboard_address: str = option(":0", "where a local cluster serves Dask's dashboard")


@dataclass(frozen=True)
class YarnConfig(Section):
    """Containers of YARN, with ``cluster.address = "yarn"``."""

    _name: typing.ClassVar = "yarn"
    name: str = option("dtl", "name of the application", NAME)
    queue: str = option("default", "queue that the application is submitted to", NAME)
    node_label: str = option("", "label of the nodes to run on; empty: as the queue says")
    environment: str = option(
        NO_URL, "archive of pack-environment, or a folder on every node; empty: the running Python"
    )
    worker_memory: str = option("4GiB", "memory of a worker's container", MEMORY)
    worker_vcores: int = option(2, "virtual cores of a worker's container", at_least(1))
    worker_gpus: int = option(0, "GPUs of a worker's container (yarn.io/gpu)", at_least(0))
    scheduler_memory: str = option("1GiB", "memory of the Dask scheduler's container", MEMORY)
    driver_memory: str = option("2GiB", "memory of a submitted driver's container", MEMORY)
    adaptive_max: int = option(
        0, "most workers, if their number follows the work; 0: always n_workers", at_least(0)
    )
    env: tuple[str, ...] = option(
        (), "environment variables of all containers, NAME=VALUE",
        Rule(lambda v: all(re.match(r"[^\W\d]\w*=", x) for x in v), "texts of the form NAME=VALUE"),
    )  # fmt: skip
    files: tuple[str, ...] = option((), "files for each container's folder; archives are unpacked")


@dataclass(frozen=True)
class StorageConfig(Section):
    """How storage is reached."""

    _name: typing.ClassVar = "storage"
    hdfs_client: Literal["native", "pyarrow"] = option(
        "native", "client of hdfs://; pyarrow needs libhdfs and a JVM"
    )


@dataclass(frozen=True)
class ImagesConfig(Section):
    """Which images, and how they become arrays."""

    _name: typing.ClassVar = "images"
    url: str = option(
        NO_URL, "folder of class folders, of train/, validation/ and test/, or of tars; or a tar"
    )
    resize: Literal["stretch", "crop"] = option(
        "stretch", "to the network's size: stretch, or scale the short side and crop the middle"
    )
    max_pixels: int = option(100_000_000, "pixels above which an image is skipped", at_least(1))
    max_skipped: float = option(
        0.01, "fraction of unreadable images above which the run fails",
        Rule(lambda value: 0 <= value <= 1, "a fraction from 0 to 1"),
    )  # fmt: skip


@dataclass(frozen=True)
class FeaturesConfig(Section):
    """Which network turns images into features, and how they are stored."""

    _name: typing.ClassVar = "features"
    network: str = option("VGG16", "a model of keras.applications")
    layers: tuple[str, ...] = option(
        ("fc2",), "layers to store, all computed in one pass", Rule(bool, "one layer or more")
    )
    pooling: Literal["avg", "max", "flatten"] = option(
        "avg", "how a layer with positions (height, width, channels) becomes one row"
    )
    weights: str = option("imagenet", "imagenet, random, or the URL of a .h5, .weights.h5 or .npz")
    preprocess: Literal["network", "dl4j"] = option(
        "network", "the network's own; dl4j: BGR without subtracted means, as in Deeplearning4j"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "number format of the network; auto: the fastest that every worker has"
    )
    dtype: Literal["float32", "float16"] = option("float32", "number format of stored features")
    batch_images: int = option(16, "images of one pass through the network", at_least(1))
    chunk_images: int = option(256, "images of one stored chunk, the unit of work", at_least(1))


@dataclass(frozen=True)
class SplitConfig(Section):
    """Which images train, which validate and which test blindly."""

    _name: typing.ClassVar = "split"
    method: Literal["auto", "stratified", "random", "folders"] = option(
        "auto", "auto: by train/, validation/ and test/ where they are, else stratified by class"
    )
    train: float | int | str = option(
        "rest", "training images: a fraction (0.6), a number (19607), or rest", _SHARE
    )
    validation: float | int | str = option(
        0.15, "validation images: a fraction (0.15), a number (5000), or rest", _SHARE
    )
    test: float | int | str = option(
        0.2, "test images: a fraction (0.2), a number (6000), or rest", _SHARE
    )
    train_per_class: int = option(
        0, "training images of every class, as in papers; 0: as split.train says", at_least(0)
    )
    duplicates: Literal["together", "drop"] = option(
        "together", "identical files: all in one split, or all but the first dropped"
    )


@dataclass(frozen=True)
class PackConfig(Section):
    """How images are packed into tars."""

    _name: typing.ClassVar = "pack"
    shard_mib: int = option(256, "MiB of one tar, which a worker holds in memory", at_least(1))


@dataclass(frozen=True)
class Config(Section):
    """A whole run."""

    out: str = option(NO_URL, "folder for everything that the run makes")
    seed: int = option(0, "seed of the order, the split, batches and random weights", at_least(0))
    overwrite: bool = option(False, "replace results that were made with other settings")
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

    def _conflicts(self) -> Iterator[str]:
        if 0 < self.yarn.adaptive_max < self.cluster.n_workers:
            yield (
                "`yarn.adaptive_max` must be 0, or at least `cluster.n_workers` = "
                f"{self.cluster.n_workers}. Received: {self.yarn.adaptive_max}."
            )
        if self.layer not in self.features.layers:
            yield (
                f"train.layer must be one of features.layers {self.features.layers}. "
                f"Received: {self.layer!r}."
            )

    @property
    def layer(self) -> str:
        """The layer whose features the head is trained on."""
        return self.train.layer or self.features.layers[0]
