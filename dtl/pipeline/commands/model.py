"""The network, and a trained run's network and head on other images."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from dtl import storage
from dtl.config import hide, to_dict
from dtl.config.errors import UserError
from dtl.features.network.files import source
from dtl.features.values import Description, Layer, find_network
from dtl.features.views import Views
from dtl.pipeline import stages
from dtl.pipeline.messages import print_line
from dtl.pipeline.results import Results
from dtl.pipeline.run import Run
from dtl.pipeline.tables import format_layers

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)


def predict(run: Run, arguments: argparse.Namespace) -> None:
    """Classify other images into a Parquet dataset, or what is new in a later list."""
    from dtl.evaluation import prediction
    from dtl.evaluation.certainty import Thresholds
    from dtl.features import extraction
    from dtl.images import listing
    from dtl.images.left_out import describe_left_out

    c, model = run.options, Results(arguments.model)
    head, spec = model.trained_head(), replace(run.extraction, network_url=model.network)
    extraction.check_head(head, spec)
    sure = {"coverage": arguments.coverage, "max_error": arguments.max_error}
    Thresholds.find(head, **sure)  # refuses what it cannot do before images are listed
    found = listing.find_images(c.images.url)
    said = describe_left_out(found.left_out)
    if not found.paths:
        raise UserError(f"No images below {c.images.url}; {said}")
    log.info("%d images below %s; %s", len(found.paths), c.images.url, said)
    found.sort()
    run.claim_folder()

    def connect() -> Client:
        run.check_worker_memory()
        return run.client

    n_unread = prediction.predict(
        run.results.url, found, head, spec, connect, **sure, novelty=model.novelty_of(head),
        overwrite=c.overwrite,
    )  # fmt: skip
    n_images = len(found.paths)
    print_line(f"Predictions for {n_images} images ({n_unread} unreadable): {run.results.url}")


def derive(run: Run, arguments: argparse.Namespace) -> None:
    """Compute later layers' features from stored ones, without the images."""
    from dtl.features import derivation

    c, url = run.options, run.results.features
    source = Results(arguments.model).store()
    store = derivation.reuse(url, source, c.features, overwrite=c.overwrite)
    run.begin()
    if store is not None and (outdated := derivation.list_outdated(store, source)):
        stages.forget_chunks(run, store, outdated)
    if store is not None and not c.repair and not store.pending_chunks():
        log.info("features: done before, %d images", store.n_images)
    else:
        run.check_worker_memory()
        store = derivation.derive(
            url, source, run.extraction, run.client, overwrite=c.overwrite, repair=c.repair
        )
    print_line(f"Features of {store.n_images} images: {store.url}")


def compact(run: Run, arguments: argparse.Namespace) -> None:
    """Write a store that has grown anew, in the order of a fresh one."""
    from dtl.features import compaction

    model = Results(arguments.model)
    source = model.store()
    if storage.absolute(run.results.features) == storage.absolute(source.url):
        raise UserError(f"{source.url} is the store to read. Choose another `out`.")
    run.begin()
    for name in storage.list_names(model.network):  # which later images need, too
        network = storage.join(run.results.network, name)
        storage.write_bytes(network, storage.read_bytes(storage.join(model.network, name)))
    store = compaction.compact(
        run.results.features, source, run.client, overwrite=run.options.overwrite
    )
    print_line(f"Features of {store.n_images} images: {store.url}")


def add_summary_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `summary`."""
    parser.add_argument(
        "--plot", metavar="URL", default="", help="draw the network, too, into this .svg file"
    )


def summarize(run: Run, arguments: argparse.Namespace) -> None:
    """Print the network, its cut, what is frozen, and what an image costs; draw it, if wanted."""
    f, plot = run.options.features, arguments.plot and storage.absolute(arguments.plot)
    if plot:
        _check_plot(plot, overwrite=run.options.overwrite)
    views, network = Views.of(f), find_network(f.network)
    if isinstance(network, str):
        from dtl.features.network import architecture

        description = architecture.describe(network, f.layers, f.pooling, views.sizes)
    else:
        description = source.describe(network, f.layers, f.pooling)
    n_features = views.widen(description.n_features)
    print_line(format_layers(description))
    n_units = run.options.train.hidden_units
    trained = "a softmax layer, features x classes"
    if n_units:
        trained = f"a hidden layer of {n_units:,} units, and a softmax layer, units x classes"
    seen = views.describe(description.input_size)
    costs = _describe_costs(description)
    cuts = {name: f"cut: {n_features[name]:,} features" for name in f.layers}
    print_line(
        "\n"
        + "".join(f"{name}, {said}.\n" for name, said in cuts.items())
        + f"{f.network}, {seen}; {costs} Trained: {trained}."
    )
    if not isinstance(network, str):
        declared = to_dict(network.declared) | {"size": [*description.input_size]}
        wants = ", ".join(f"{key} = {value}" for key, value in declared.items())
        print_line(f"Its input, as {network.declaration_url} declares it: {wants}.")
    if plot:
        from dtl.report.network_plot import render_network

        layer = run.options.layer
        head = _describe_head(n_features[layer], n_units)
        facts = [seen, *costs.split(", ", 1)]
        drawn = render_network(description, hide(f.network), facts, cuts, head, layer)
        storage.write_bytes(plot, drawn.encode())
        print_line(f"Picture: {plot}")


def _check_plot(url: str, *, overwrite: bool) -> None:
    if not url.endswith(".svg"):
        raise UserError(f"--plot must end in .svg. Received: {url!r}.")
    if storage.exists(url) and not overwrite:
        raise UserError(f"{url} is there already. Choose another --plot, or set `overwrite`.")
    storage.check_place(url, "--plot")


def _describe_costs(found: Description) -> str:
    size = "{} x {}".format(*found.input_size)
    flop = f"an unknown number of GFLOP for an image of {size}"
    if found.flop is not None:
        flop = (
            f"{found.flop / 1e9:.3g} GFLOP ({found.flop / 2e9:.3g} billion multiply-adds) for an "
            f"image of {size}"
        )
    return (
        f"{flop}, {found.activation_bytes / 2**20:.0f} MiB for the largest layer's inputs and "
        f"outputs, {found.weights_bytes / 2**20:.0f} MiB of frozen weights in each worker."
    )


def _describe_head(n_features: int, n_units: int) -> list[Layer]:
    """Return the layers that are trained; how many classes there are is not known here."""
    hidden = Layer(
        "hidden", "Dense", (n_units,), (n_features + 1) * n_units, 2 * n_features * n_units
    )
    softmax = Layer("softmax", "Dense", (None,), 0, None)
    return [hidden, softmax] if n_units else [softmax]
