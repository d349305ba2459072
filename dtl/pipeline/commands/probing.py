"""What the features of a run are worth."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from dtl import storage
from dtl.config import hide
from dtl.features import splitting
from dtl.pipeline.messages import print_line
from dtl.pipeline.run import Run
from dtl.pipeline.stages import reuse
from dtl.pipeline.tables import format_probe
from dtl.training.probing import ProbeOptions, provenance
from dtl.training.probing import probe as run_probe


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse(text: str) -> tuple[Any, ...]:
        return tuple(kind(part.strip()) for part in text.split(",") if part.strip())

    parse.__name__ = f"list of {kind.__name__}"  # argparse says it in its messages
    return parse


def add_probe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `probe`."""
    usual = ProbeOptions()

    def add(flag: str, name: str, kind: Callable[[str], Any], text: str) -> None:
        value = getattr(usual, name)
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        default = f" (default: {shown})" if value else ""
        parser.add_argument(
            flag, dest=f"probe_{name}", type=kind, default=value, metavar="LIST" if
            isinstance(value, tuple) else "N", help=f"{text}{default}",
        )  # fmt: skip

    add("--layers", "layers", _list_of(str), "whose features (default: that of the head)")
    add("--normalisations", "normalize", _list_of(str), "ways to scale features")
    add("--per-class", "n_per_class", _list_of(int), "training images of each class")
    add("--draws", "n_draws", int, "times that they are drawn")
    add("--k", "neighbours", _list_of(int), "neighbours that vote")
    add("--l2s", "l2s", _list_of(float), "penalties to choose from")


def probe(run: Run, arguments: argparse.Namespace) -> None:
    """Compare nearest neighbours and heads, with few training images and with all."""
    options = ProbeOptions(
        **{name: getattr(arguments, f"probe_{name}") for name in ProbeOptions.__dataclass_fields__}
    )
    store = run.results.store()
    for layer in options.layers:
        store.n_features(layer)  # refuses one that is not there
    run.claim_folder()
    splitting.split_images(store, run.options.split, run.options.seed)
    spec = run.training_spec(store)
    found = reuse("probe", run.results.probe(), provenance(spec, options))
    if found is None:
        from dtl.report.probing import render_probe

        with run.journal.stage("probe"):
            found = run_probe(spec, options, run.client)
        title = storage.base_name(hide(store.attrs["root"]))
        run.results.write_probe(found, render_probe(found, title))
    print_line(f"{format_probe(found)}\n\nPage: {run.results.probe_page}")
