"""The options of a run, by section. Each is declared once, here or in `dtl.config.training`.

The TOML keys, the command line, the messages and the table of options all follow from that.
"""

from __future__ import annotations

import re
import typing
from dataclasses import dataclass, field
from typing import Literal

from dtl.config.errors import UserError
from dtl.config.options import (
    NO_URL,
    Section,
    is_memory,
    is_share,
    memory,
    not_negative,
    option,
    positive,
    vcores,
)
from dtl.config.training import CompareConfig, TrainConfig, TuneConfig


@dataclass(frozen=True)
class ClusterConfig(Section):
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
        "processes of a local cluster, or containers of YARN, at least; each loads the network",
        check=positive,
        allowed="1 or more",
    )
    threads_per_worker: int = option(
        0,
        "threads of each, at least 2; 0 shares the processors out, or is YARN's vcores",
        check=not_negative,
        allowed="0 or more",
    )
    memory_limit: str = option(
        "auto",
        "memory of each, such as 6GiB; auto shares it out, or is the container's",
        check=lambda v: v == "auto" or is_memory(v),
        allowed="auto, or an amount such as 6GiB",
    )
    processes: bool = option(True, "false: threads of this process instead of worker processes")
    dashboard_address: str = option(":0", "where a local cluster serves Dask's dashboard")


@dataclass(frozen=True)
class YarnConfig(Section):
    """What is asked of YARN, with ``cluster.address = "yarn"``."""

    _name: typing.ClassVar = "yarn"
    name: str = option("dtl", "of the application", check=bool, allowed="a name")
    queue: str = option("default", "queue that it is submitted to", check=bool, allowed="a name")
    node_label: str = option("", "only nodes with this label; empty: as the queue says")
    environment: str = option(
        NO_URL,
        "archive that pack-environment made, or a folder on every node; empty: the one that runs",
    )
    worker_memory: str = memory("4GiB", "of a worker's container")
    worker_vcores: int = vcores(2, "of a worker's container")
    worker_gpus: int = option(
        0, "of a worker's container (yarn.io/gpu)", check=not_negative, allowed="0 or more"
    )
    scheduler_memory: str = memory("1GiB", "of the container of Dask's scheduler")
    driver_memory: str = memory("2GiB", "of the container of a submitted driver")
    adaptive_max: int = option(
        0,
        "most workers, if their number follows the work; 0: always cluster.n_workers",
        check=not_negative,
        allowed="0 or more",
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


@dataclass(frozen=True)
class StorageConfig(Section):
    """How storage is reached."""

    _name: typing.ClassVar = "storage"
    hdfs_client: Literal["native", "pyarrow"] = option(
        "native", "for hdfs://: hdfs-native, or pyarrow's, which needs libhdfs and a JVM"
    )


@dataclass(frozen=True)
class ImagesConfig(Section):
    """Which images, and how they become arrays."""

    _name: typing.ClassVar = "images"
    url: str = option(
        NO_URL, "folder of class folders, of train/, validation/ and test/, or of tars; or a tar"
    )
    resize: Literal["stretch", "crop"] = option(
        "stretch", "stretch to the network's size, or scale the short side and crop the middle"
    )
    max_pixels: int = option(
        100_000_000, "larger images are skipped, not decoded", check=positive, allowed="1 or more"
    )
    max_skipped: float = option(
        0.01,
        "the run fails if more than this fraction of the images is unreadable",
        check=lambda v: 0 <= v <= 1,
        allowed="a fraction from 0 to 1",
    )


@dataclass(frozen=True)
class FeaturesConfig(Section):
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
        16, "images in one pass through the network", check=positive, allowed="1 or more"
    )
    chunk_images: int = option(
        256,
        "images in one chunk of the store, the unit of work",
        check=positive,
        allowed="1 or more",
    )


@dataclass(frozen=True)
class SplitConfig(Section):
    """Which images train, which validate and which test blindly."""

    _name: typing.ClassVar = "split"
    method: Literal["auto", "stratified", "random", "folders"] = option(
        "auto", "auto: as the folders say, stratified by class where they do not"
    )
    train: float | int | str = option(
        "rest",
        "a fraction (0.6), a number of images (19607), or rest",
        check=is_share,
        allowed="a fraction below 1, a whole number of images, or rest",
    )
    validation: float | int | str = option(
        0.15,
        "a fraction (0.15), a number of images (5000), or rest",
        check=is_share,
        allowed="a fraction below 1, a whole number of images, or rest",
    )
    test: float | int | str = option(
        0.2,
        "a fraction (0.2), a number of images (6000), or rest",
        check=is_share,
        allowed="a fraction below 1, a whole number of images, or rest",
    )
    train_per_class: int = option(
        0,
        "train on this many images of every class (as papers do); 0: as train says",
        check=not_negative,
        allowed="0 or more",
    )
    duplicates: Literal["together", "drop"] = option(
        "together", "identical files: all on one side, or only the first of them kept"
    )


@dataclass(frozen=True)
class PackConfig(Section):
    """How images are packed into tars."""

    _name: typing.ClassVar = "pack"
    shard_mib: int = option(
        256, "MiB of one tar, which a worker holds in memory", check=positive, allowed="1 or more"
    )


@dataclass(frozen=True)
class Config(Section):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.yarn.adaptive_max < self.cluster.n_workers:
            raise UserError(
                "`yarn.adaptive_max` must be 0, or at least `cluster.n_workers` = "
                f"{self.cluster.n_workers}. Received: {self.yarn.adaptive_max}."
            )

    @property
    def layer(self) -> str:
        """The layer whose features the head is trained on."""
        layer = self.train.layer or self.features.layers[0]
        if layer not in self.features.layers:
            raise UserError(
                f"train.layer must be one of features.layers {self.features.layers}. "
                f"Received: {layer!r}."
            )
        return layer
