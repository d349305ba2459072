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

COMMANDS = {
    # Small chunks, shards and batches, so that so few pictures show what many would.
    "demo": Command("draw pictures and run every stage on them", "staged.demo", "", _RUN,
        base={"out": "demo", "features": {"chunk_images": 32},
              "train": {"n_shards": 4, "batch_size": 8, "l2": 0.1}}),
    "run": Command("every stage, from images to report.html", "staged.run_all",
        "--images photographs --out results", _RUN),
    "featurize": Command("images to features.zarr", "staged.featurize",
        "--images photographs --out results", f"{_EVERY} {_EARLIER} split", "train"),
    "train": Command("features.zarr to head.npz", "staged.train", "--out results --train.l2 0.001",
        f"{_EVERY} split train features.weights", _EARLIER, "train.solver train.batch_size "
        "train.n_shards train.optimizer train.hidden_units train.dropout train.keep", "out"),
    "evaluate": Command("head.npz to evaluation.json", "staged.evaluate", "--out results",
        "out cluster yarn storage", _RUN, starts_from="out"),
    "report": Command("evaluation.json to report.html", "staged.report", "--out results",
        "out storage images.url", _RUN, starts_from="out"),
    "compare": Command("averaging in several ways, against the exact optimum", "search.compare",
        "--out results", f"{_EVERY} split train compare", _EARLIER,
        "compare.frequencies compare.shards compare.sklearn_mib", "out", resumes=False),
    "tune": Command("search for the options of training that validate best", "search.tune",
        "--out results --tune.learning-rates 0.01,0.03 --tune.l2s 0.001,0.01",
        f"{_EVERY} split train tune features.weights", _EARLIER, "tune.method tune.n_trials "
        "tune.learning_rates tune.l2s tune.dropouts tune.frequencies", "out"),
    "predict": Command("classify other images into a Parquet dataset", "model.predict",
        "--model results --images others --out predictions", f"{_EVERY} {_EARLIER}",
        starts_from="model"),
    "derive": Command("stored fc1 features to fc2 and predictions, without the images",
        "model.derive", "--model results --out derived --features.layers fc2",
        f"{_EVERY} features", _RUN, starts_from="model"),
    "export": Command("network and head as one .keras file", "model.export",
        "--model results --out classifier.keras", "out overwrite storage",
        f"{_EVERY} {_EARLIER}", starts_from="model", resumes=False),
    "fetch": Command("bring a public data set to where the work is", "data.fetch",
        "caltech256 --to hdfs:///data/caltech256", "out overwrite seed storage split pack",
        add_arguments=lambda parser: load("data.add_fetch_arguments")(parser)),
    "pack": Command("many image files into few tars, which are read faster", "data.pack",
        "--images photographs --out tars", f"{_EVERY} images pack", explained="pack.shard_mib"),
    "summary": Command("the network, the cut, what is frozen", "model.summarize",
        "--features.network ResNet50 --features.layers avg_pool",
        "features.network features.layers features.pooling train.hidden_units", _RUN,
        resumes=False),
    "submit": Command("`run` on YARN, the driver too; prints the application's id", "yarn.submit",
        "--images hdfs:///photographs --out hdfs:///results", _RUN,
        add_arguments=lambda parser: parser.add_argument(
            "--wait", action="store_true", help="until it has ended; exit as it did"),
        resumes=False),
    **{name: Command(help, f"yarn.{function}", "application_1700000000000_0001",
           add_arguments=lambda parser: parser.add_argument(
               "application", metavar="ID", help="what `submit` printed"),
           starts_from="nothing", resumes=False)
       for name, help, function in (
           ("status", "how a submitted run is", "show_status"),
           ("logs", "what a submitted run said", "show_logs"),
           ("kill", "end a submitted run", "kill"))},
    "pack-environment": Command("the Python that runs as an archive for YARN",
        "data.pack_environment", "--out hdfs:///environment.tar",
        add_arguments=lambda parser: parser.add_argument(
            "--out", metavar="URL", required=True, help="ends in .tar"),
        starts_from="nothing", resumes=False),
}  # fmt: skip
