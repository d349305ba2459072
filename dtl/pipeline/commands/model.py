"""The network, and a trained run's network and head on other images."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from dtl import storage
from dtl.config import to_dict
from dtl.config.errors import UserError
from dtl.features.network.files import source
from dtl.features.values import find_network
from dtl.features.views import Views
from dtl.pipeline import stages
from dtl.pipeline.messages import print_line
from dtl.pipeline.results import Results
from dtl.pipeline.run import Run
from dtl.pipeline.tables import align_columns

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


def summarize(run: Run, _: argparse.Namespace) -> None:
    """Print the network, its cut, and what is frozen."""
    f = run.options.features
    views, network = Views.of(f), find_network(f.network)
    if isinstance(network, str):
        from dtl.features.network import architecture

        description = architecture.describe(network, f.layers, f.pooling, views.sizes)
    else:
        description = source.describe(network, f.layers, f.pooling)
    n_features = views.widen(description.n_features)
    rows: list[tuple[str, ...]] = [("layer", "kind", "output", "parameters", "")]
    for layer in description.layers:
        note = "frozen" if layer.name in description.used else "not used"
        if layer.name in f.layers:
            note = f"cut here: {n_features[layer.name]} features"
        shape = " x ".join(str(n) for n in layer.output_shape)
        rows.append((layer.name, layer.kind, shape, f"{layer.n_parameters:,}", note))
    print_line(align_columns(rows, right={3}))
    trained = "a softmax layer, features x classes"
    if n_units := run.options.train.hidden_units:
        trained = f"a hidden layer of {n_units:,} units, and a softmax layer, units x classes"
    print_line(
        f"\n{f.network}, {views.describe(description.input_size)}; "
        f"{description.weights_bytes / 2**20:.0f} MiB of frozen weights in each worker. "
        f"Trained: {trained}."
    )
    if not isinstance(network, str):
        declared = to_dict(network.declared) | {"size": [*description.input_size]}
        wants = ", ".join(f"{key} = {value}" for key, value in declared.items())
        print_line(f"Its input, as {network.declaration_url} declares it: {wants}.")
