"""The commands: what each does, and the configuration that it starts from."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Command:
    """One command of the command line.

    Parameters
    ----------
    help : str
        One line.
    function : str
        ``module.function`` in this folder, imported when the command runs. It takes a
        `dtl.pipeline.run.Run` and the arguments; only the arguments if it starts from nothing.
    example : str
        What a user types.
    starts_from : {"defaults", "out", "model", "nothing"}
        The configuration under the file's and the command line's: the defaults, that of the run in
        ``out`` or ``--model``; a command that starts from nothing has no configuration.
    options : tuple of str
        Sections and options that it uses.
    explained : tuple of str
        Options that its ``--help`` explains, besides the common ones.
    checked : tuple of str
        Those that it does not use, but accepts: options of earlier stages, which must be as they
        were, so that the same options can be given to each stage.
    base : mapping
        What differs from the defaults.
    own_arguments : str
        ``module.function`` that adds arguments which are no options of a run.
    resumes : bool
        Whether the same command goes on where it was interrupted.
    """

    help: str
    function: str
    example: str
    starts_from: Literal["defaults", "out", "model", "nothing"] = "defaults"
    options: tuple[str, ...] = ()
    explained: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()
    base: Mapping[str, Any] = field(default_factory=dict)
    own_arguments: str = ""
    resumes: bool = True

    def uses(self, key: str) -> bool:
        """Return whether an option changes what the command does."""
        return any(f"{key}.".startswith(f"{name}.") for name in self.options)

    def takes(self, key: str) -> bool:
        """Return whether an option may be given."""
        return self.uses(key) or any(f"{key}.".startswith(f"{name}.") for name in self.checked)

    def load(self) -> Callable[..., int | None]:
        """Import the function."""
        return _load(self.function)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments that are no options of a run."""
        if self.own_arguments:
            _load(self.own_arguments)(parser)


def _load(name: str) -> Callable[..., Any]:
    module, function = name.split(".")
    loaded: Callable[..., Any] = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    return loaded


_EVERY = ("out", "overwrite", "seed", "cluster", "yarn", "storage")
_RUN = (*_EVERY, "images", "features", "split", "train")
_EARLIER = ("images", "features")

COMMANDS = {
    "demo": Command(
        "draw pictures and run every stage on them",
        "staged.demo",
        "dtl demo",
        options=_RUN,
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
        "dtl run --images photographs --out results",
        options=_RUN,
    ),
    "featurize": Command(
        "images to features.zarr",
        "staged.featurize",
        "dtl featurize --images photographs --out results",
        options=(*_EVERY, "images", "features", "split"),
        checked=("train",),
    ),
    "train": Command(
        "features.zarr to head.npz",
        "staged.train",
        "dtl train --out results --train.l2 0.001",
        "out",
        options=(*_EVERY, "split", "train", "features.weights"),
        explained=(
            "train.solver",
            "train.batch_size",
            "train.n_shards",
            "train.optimizer",
            "train.hidden_units",
            "train.dropout",
            "train.keep",
        ),
        checked=_EARLIER,
    ),
    "evaluate": Command(
        "head.npz to evaluation.json",
        "staged.evaluate",
        "dtl evaluate --out results",
        "out",
        options=("out", "cluster", "yarn", "storage"),
        checked=_RUN,
    ),
    "report": Command(
        "evaluation.json to report.html",
        "staged.report",
        "dtl report --out results",
        "out",
        options=("out", "storage", "images.url"),
        checked=_RUN,
    ),
    "compare": Command(
        "averaging in several ways, against the exact optimum",
        "search.compare",
        "dtl compare --out results",
        "out",
        options=(*_EVERY, "split", "train", "compare"),
        explained=("compare.frequencies", "compare.shards", "compare.sklearn_mib"),
        checked=_EARLIER,
        resumes=False,
    ),
    "tune": Command(
        "search for the options of training that validate best",
        "search.tune",
        "dtl tune --out results --tune.learning-rates 0.01,0.03 --tune.l2s 0.001,0.01",
        "out",
        options=(*_EVERY, "split", "train", "tune", "features.weights"),
        explained=(
            "tune.method",
            "tune.n_trials",
            "tune.learning_rates",
            "tune.l2s",
            "tune.dropouts",
            "tune.frequencies",
        ),
        checked=_EARLIER,
    ),
    "predict": Command(
        "classify other images into a Parquet dataset",
        "model.predict",
        "dtl predict --model results --images others --out predictions",
        "model",
        options=(*_EVERY, *_EARLIER),
    ),
    "derive": Command(
        "stored fc1 features to fc2 and predictions, without the images",
        "model.derive",
        "dtl derive --model results --out derived --features.layers fc2",
        "model",
        options=(*_EVERY, "features"),
        checked=_RUN,
    ),
    "export": Command(
        "network and head as one .keras file",
        "model.export",
        "dtl export --model results --out classifier.keras",
        "model",
        options=("out", "overwrite", "storage"),
        checked=(*_EVERY, *_EARLIER),
        resumes=False,
    ),
    "fetch": Command(
        "bring a public data set to where the work is",
        "data.fetch",
        "dtl fetch caltech256 --to hdfs:///data/caltech256",
        options=("out", "overwrite", "seed", "storage", "split", "pack"),
        own_arguments="data.add_fetch_arguments",
    ),
    "pack": Command(
        "many image files into few tars, which are read faster",
        "data.pack",
        "dtl pack --images photographs --out tars",
        options=(*_EVERY, "images", "pack"),
        explained=("pack.shard_mib",),
    ),
    "summary": Command(
        "the network, the cut, what is frozen",
        "model.summarize",
        "dtl summary --features.network ResNet50 --features.layers avg_pool",
        options=("features.network", "features.layers", "features.pooling", "train.hidden_units"),
        checked=_RUN,
        resumes=False,
    ),
    "submit": Command(
        "`run` on YARN, the driver too; prints the application's id",
        "yarn.submit",
        "dtl submit --images hdfs:///photographs --out hdfs:///results",
        options=_RUN,
        own_arguments="yarn.add_submit_arguments",
        resumes=False,
    ),
    "status": Command(
        "how a submitted run is",
        "yarn.show_status",
        "dtl status application_1700000000000_0001",
        "nothing",
        own_arguments="yarn.add_application",
        resumes=False,
    ),
    "logs": Command(
        "what a submitted run said",
        "yarn.show_logs",
        "dtl logs application_1700000000000_0001",
        "nothing",
        own_arguments="yarn.add_application",
        resumes=False,
    ),
    "kill": Command(
        "end a submitted run",
        "yarn.kill",
        "dtl kill application_1700000000000_0001",
        "nothing",
        own_arguments="yarn.add_application",
        resumes=False,
    ),
    "pack-environment": Command(
        "the Python that runs as an archive for YARN",
        "yarn.pack_environment",
        "dtl pack-environment --out hdfs:///environment.tar",
        "nothing",
        own_arguments="yarn.add_environment_arguments",
        resumes=False,
    ),
}
