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
    starts_from : {"defaults", "out", "model", "nothing"}
        The configuration under the file's and the command line's: the defaults, that of the run in
        ``out`` or ``--model``; a command that starts from nothing has no configuration.
    base : mapping
        What differs from the defaults.
    own_arguments : str
        ``module.function`` that adds arguments which are no options of a run.
    resumes : bool
        Whether the same command goes on where it was interrupted.
    """

    help: str
    function: str
    starts_from: Literal["defaults", "out", "model", "nothing"] = "defaults"
    base: Mapping[str, Any] = field(default_factory=dict)
    own_arguments: str = ""
    resumes: bool = True

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


COMMANDS = {
    "demo": Command(
        "draw pictures and run every stage on them",
        "staged.demo",
        # Small chunks, shards and batches, so that so few pictures show what many would.
        base={
            "out": "demo",
            "features": {"chunk_images": 32},
            "train": {"n_shards": 4, "batch_size": 8, "l2": 0.1},
        },
    ),
    "run": Command("every stage, from images to report.html", "staged.run_all"),
    "featurize": Command("images to features.zarr", "staged.featurize"),
    "train": Command("features.zarr to head.npz", "staged.train", "out"),
    "evaluate": Command("head.npz to evaluation.json", "staged.evaluate", "out"),
    "report": Command("evaluation.json to report.html", "staged.report", "out"),
    "compare": Command(
        "averaging in several ways, against the exact optimum", "search.compare", "out",
        resumes=False,
    ),
    "tune": Command("search for the options of training that validate best", "search.tune", "out"),
    "predict": Command("classify other images into a Parquet dataset", "model.predict", "model"),
    "derive": Command(
        "stored fc1 features to fc2 and predictions, without the images", "model.derive", "model"
    ),
    "export": Command(
        "network and head as one .keras file", "model.export", "model", resumes=False
    ),
    "fetch": Command(
        "bring a public data set to where the work is", "data.fetch",
        own_arguments="data.add_fetch_arguments",
    ),
    "pack": Command("many image files into few tars, which are read faster", "data.pack"),
    "summary": Command("the network, the cut, what is frozen", "model.summarize", resumes=False),
    "submit": Command(
        "`run` on YARN, the driver too; prints the application's id", "yarn.submit",
        own_arguments="yarn.add_submit_arguments", resumes=False,
    ),
    "status": Command(
        "how a submitted run is", "yarn.show_status", "nothing",
        own_arguments="yarn.add_application", resumes=False,
    ),
    "logs": Command(
        "what a submitted run said", "yarn.show_logs", "nothing",
        own_arguments="yarn.add_application", resumes=False,
    ),
    "kill": Command(
        "end a submitted run", "yarn.kill", "nothing",
        own_arguments="yarn.add_application", resumes=False,
    ),
    "pack-environment": Command(
        "the Python that runs as an archive for YARN", "yarn.pack_environment", "nothing",
        own_arguments="yarn.add_environment_arguments", resumes=False,
    ),
}  # fmt: skip
