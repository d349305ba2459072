"""The commands: what each does, the options that it uses, and what it starts from."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Command:
    """One command of the command line.

    Options are named by their keys or their sections, with spaces between. A function is named
    ``module.function`` in this folder, and imported when it is needed.
    """

    help: str
    function: str
    """Takes a `dtl.pipeline.run.Run` and the arguments; only these if it starts from nothing."""
    example: str
    options: str = ""
    """Options that it uses."""
    checked: str = ""
    """Options that it accepts besides, to compare them with those of an earlier stage."""
    explained: str = ""
    """Options that ``--help`` explains, besides the common ones."""
    starts_from: Literal["defaults", "out", "model", "nothing"] = "defaults"
    """Configuration under the file's and the command line's; ``nothing`` if it has none."""
    base: Mapping[str, Any] = field(default_factory=dict)
    """Differences from the defaults."""
    add_arguments: Callable[[argparse.ArgumentParser], object] = lambda _: None
    """Adds arguments that are no options of a run."""
    resumes: bool = True

    def uses(self, key: str) -> bool:
        """Return whether an option changes what the command does."""
        return any(f"{key}.".startswith(f"{name}.") for name in self.options.split())

    def accepts(self, key: str) -> bool:
        """Return whether an option may be given."""
        checked = any(f"{key}.".startswith(f"{name}.") for name in self.checked.split())
        return checked or self.uses(key)


def load(name: str) -> Any:
    """Import a function of this folder by ``module.function``."""
    module, function = name.split(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), function)


_EVERY = "out overwrite seed cluster yarn storage"
_EARLIER = "images features"
_RUN = f"{_EVERY} {_EARLIER} split train"
_AGAIN = "exact repair retry_skipped"


def _add_application(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("application", metavar="ID", help="what `submit` printed")


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="until it has ended; exit as it did")


def _add_archive(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="URL", required=True, help="ends in .tar")


def _add_certainty(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--coverage", metavar="X", type=float,
        help="add a column of sets of classes that hold the right one so often, such as 0.95",
    )  # fmt: skip
    parser.add_argument(
        "--max-error", metavar="X", type=float,
        help="add a column of answers of which at most so many are wrong, such as 0.01; else null",
    )  # fmt: skip


_APPLICATION = "application_1700000000000_0001"

COMMANDS = {
    "demo": Command(
        "draw pictures and run every stage on them",
        "staged.demo",
        example="",
        options=f"{_RUN} {_AGAIN} with_check",
        checked="check",
        # Small chunks, shards and batches, so that so few pictures show what many would.
        base={
            "out": "demo",
            "features": {"chunk_images": 32},
            "train": {"n_shards": 4, "batch_size": 8, "l2": 0.1},
        },
    ),
    "run": Command(
        "every stage, from images to report.html",
        "staged.run_all",
        example="--images photographs --out results",
        options=f"{_RUN} {_AGAIN} with_check dry_run",
        checked="check",
        explained=f"{_AGAIN} with_check dry_run",
    ),
    "doctor": Command(
        "what on this cluster would make `run` fail, and what to type",
        "doctor.doctor",
        example="--images photographs --out results",
        options=f"{_RUN} {_AGAIN} with_check",
        checked="check",
        explained="cluster.memory_limit features.precision",
        resumes=False,
    ),
    "featurize": Command(
        "images to features.zarr",
        "staged.featurize",
        example="--images photographs --out results",
        options=f"{_EVERY} {_EARLIER} {_AGAIN}",
        checked="split train",
        explained=_AGAIN,
    ),
    "train": Command(
        "features.zarr to head.npz",
        "staged.train",
        example="--out results --train.l2 0.001",
        options=f"{_EVERY} split train features.weights",
        checked=_EARLIER,
        explained="train.solver train.batch_size train.n_shards train.optimizer "
        "train.hidden_units train.dropout train.keep",
        starts_from="out",
    ),
    "evaluate": Command(
        "head.npz to evaluation.json",
        "staged.evaluate",
        example="--out results",
        options="out cluster yarn storage",
        checked=_RUN,
        starts_from="out",
    ),
    "report": Command(
        "evaluation.json to report.html; of several runs, a page that compares them",
        "staged.report",
        example="results",
        options="out cluster yarn storage images.url",
        checked=_RUN,
        starts_from="out",
        add_arguments=lambda parser: load("staged.add_report_arguments")(parser),
    ),
    "compare": Command(
        "averaging in several ways, against the exact optimum",
        "search.compare",
        example="--out results",
        options=f"{_EVERY} split train compare",
        checked=_EARLIER,
        explained="compare.frequencies compare.shards compare.sklearn_mib",
        starts_from="out",
        resumes=False,
    ),
    "check": Command(
        "wrong labels, near-duplicates, odd images: what to mend in the data",
        "checking.check",
        example="--out results",
        options="out seed cluster yarn storage check train.layer train.features_in images.url",
        checked=_RUN,
        explained="check.folds check.normalize check.l2",
        starts_from="out",
        resumes=False,
    ),
    "tune": Command(
        "search for the options of training that validate best",
        "search.tune",
        example="--out results --tune.learning-rates 0.01,0.03 --tune.l2s 0.001,0.01",
        options=f"{_EVERY} split train tune features.weights",
        checked=_EARLIER,
        explained="tune.method tune.n_trials tune.learning_rates tune.l2s tune.dropouts "
        "tune.frequencies",
        starts_from="out",
    ),
    "probe": Command(
        "nearest neighbours beside heads, of 1, 2, 5, ... images per class and of all",
        "probing.probe",
        example="--out results --normalisations standardise,sqrt-l2",
        options=f"{_EVERY} split train",
        checked=_EARLIER,
        starts_from="out",
        add_arguments=lambda parser: load("probing.add_probe_arguments")(parser),
        resumes=False,
    ),
    "suggest": Command(
        "which unlabelled images to label next",
        "suggest.suggest",
        example="--out results --n 100",
        options=f"{_EVERY} images.url",
        checked=f"{_RUN}",
        starts_from="out",
        add_arguments=lambda parser: load("suggest.add_arguments")(parser),
        resumes=False,
    ),
    "predict": Command(
        "classify other images into a Parquet dataset; later, what is new",
        "model.predict",
        example="--model results --images others --out predictions",
        options=f"{_EVERY} {_EARLIER}",
        starts_from="model",
        add_arguments=_add_certainty,
    ),
    "similar": Command(
        "the stored images that are most like others, as a page",
        "similar.similar",
        example="photo.jpg --model results",
        options="cluster yarn storage images.url images.max_pixels features",
        checked=f"{_EVERY} {_EARLIER}",
        starts_from="model",
        add_arguments=lambda parser: load("similar.add_similar_arguments")(parser),
        resumes=False,
    ),
    "derive": Command(
        "stored fc1 features to fc2 and predictions, without the images",
        "model.derive",
        example="--model results --out derived --features.layers fc2",
        options=f"{_EVERY} features repair",
        explained="repair",
        checked=_RUN,
        starts_from="model",
    ),
    "compact": Command(
        "features that have grown, list by list, in the order of a fresh run",
        "model.compact",
        example="--model results --out compacted",
        options=_EVERY,
        checked=_RUN,
        starts_from="model",
    ),
    "export": Command(
        "network and head as one classifier, for Keras, ONNX, OpenVINO or TensorFlow",
        "export.export",
        example="--model results --out classifier.onnx",
        options="out overwrite storage images.url",
        checked=f"{_EVERY} {_EARLIER}",
        starts_from="model",
        add_arguments=lambda parser: load("export.add_export_arguments")(parser),
        resumes=False,
    ),
    "fetch": Command(
        "bring a public data set to where the work is",
        "data.fetch",
        example="caltech256 --to hdfs:///data/caltech256",
        options="out overwrite seed storage split pack",
        add_arguments=lambda parser: load("data.add_fetch_arguments")(parser),
    ),
    "pack": Command(
        "many image files into few tars, which are read faster",
        "data.pack",
        example="--images photographs --out tars",
        options=f"{_EVERY} images pack",
        explained="pack.shard_mib",
    ),
    "summary": Command(
        "the network, the cut, what is frozen, and what an image costs",
        "model.summarize",
        example="--features.network ResNet50 --features.layers avg_pool --plot network.svg",
        options="overwrite features.network features.layers features.pooling features.views "
        "features.combine train.hidden_units train.layer",
        checked=_RUN,
        add_arguments=lambda parser: load("model.add_summary_arguments")(parser),
        resumes=False,
    ),
    "submit": Command(
        "`run` on YARN, the driver too; prints the application's id",
        "yarn.submit",
        example="--images hdfs:///photographs --out hdfs:///results",
        options=f"{_RUN} {_AGAIN} with_check",
        checked="check",
        add_arguments=_add_wait,
        resumes=False,
    ),
    "status": Command(
        "how a submitted run is",
        "yarn.show_status",
        example=_APPLICATION,
        starts_from="nothing",
        add_arguments=_add_application,
        resumes=False,
    ),
    "logs": Command(
        "what a submitted run said",
        "yarn.show_logs",
        example=_APPLICATION,
        starts_from="nothing",
        add_arguments=_add_application,
        resumes=False,
    ),
    "kill": Command(
        "end a submitted run",
        "yarn.kill",
        example=_APPLICATION,
        starts_from="nothing",
        add_arguments=_add_application,
        resumes=False,
    ),
    "pack-environment": Command(
        "the Python that runs as an archive for YARN",
        "data.pack_environment",
        example="--out hdfs:///environment.tar",
        starts_from="nothing",
        add_arguments=_add_archive,
        resumes=False,
    ),
}
