"""The commands."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from dtl import config, storage
from dtl.cluster import environment
from dtl.config import Config
from dtl.config.provenance import Claim, check_same
from dtl.evaluation import prediction, scoring
from dtl.features import derivation, extraction, featurization, splitting
from dtl.features.extraction import memory_needed
from dtl.features.store import FeatureStore
from dtl.head.model import Head
from dtl.images import drawing, fetching, listing, packing
from dtl.pipeline.gather import warnings
from dtl.pipeline.results import Results
from dtl.pipeline.stages import Run, done_before, hdfs_urls
from dtl.pipeline.tables import columns, comparison_table, say, scores_table, trials_table
from dtl.report import page
from dtl.training import comparison, tuning
from dtl.training.checkpoint import resume

log = logging.getLogger(__name__)


def _run(run: Run) -> None:
    store = run.featurize()
    head = run.train(store)
    scores = run.evaluate(store, head)
    run.report(store, head, scores)
    for warning in warnings(store):
        say(f"\nWarning: {warning}")
    say(f"\n{scores_table(scores)}\n\nReport: {run.results.report}")
    if run.dashboard:
        say(f"Dask dashboard (while it ran): {run.dashboard}")


def _demo(run: Run) -> None:
    c = run.settings
    if not c.images.url:
        pictures = storage.join(run.results.url, "pictures")
        storage.check_writable(run.results.url)
        n_pictures = drawing.draw_pictures(pictures, c.seed)
        log.info("drew %d pictures below %s", n_pictures, pictures)
        c = replace(c, images=replace(c.images, url=pictures))
    if c.features.weights == "imagenet":
        try:
            # The store of an earlier demo tells what could be had then.
            weights = FeatureStore.open(run.results.features).attrs["weights"]
        except (FileNotFoundError, ValueError):
            weights = _available_weights(run, c)
        c = replace(c, features=replace(c.features, weights=weights))
    run.settings = c
    _run(run)


def _available_weights(run: Run, c: Config) -> str:
    run.check_memory()
    try:
        extraction.prepare(run.client, c.features, c.images, c.seed)
    except OSError as error:
        log.warning("%s\nGoing on with an untrained network (random weights).", error)
        return "random"
    return c.features.weights


def _featurize(run: Run) -> None:
    store = run.featurize()
    say(f"Features of {store.n_images} images: {store.url}")


def _train(run: Run) -> None:
    store = run.results.store()
    featurization.check_options(store, run.settings.features, run.settings.images)
    run.begin()
    run.train(store)
    say(f"Head: {storage.join(run.results.url, 'head.npz')}")


def _evaluate(run: Run) -> None:
    store, head = run.results.store(), _head(run.results)
    _check_made_with(run.settings, store, head)
    run.begin()
    say(scores_table(run.evaluate(store, head)))


def _report(run: Run) -> None:
    store, head, scores = run.results.store(), _head(run.results), run.results.evaluation()
    if scores is None or scores.provenance["head_sha256"] != head.fingerprint:
        raise FileNotFoundError(
            f"No evaluation of the head in {run.results.url}. Run the evaluate stage first."
        )
    _check_made_with(run.settings, store, head)
    run.begin()
    storage.remove(run.results.report)
    run.report(store, head, scores)
    say(f"Report: {run.results.report}")


def _check_made_with(c: Config, store: FeatureStore, head: Head) -> None:
    """Refuse options of earlier stages that are not as they were, rather than record them."""
    featurization.check_options(store, c.features, c.images)
    made = {name: head.provenance[name] for name in ("train", "split", "seed")}
    options = config.to_dict(c.train) | {"layer": c.layer}
    asked = {
        "train": {name: options.get(name) for name in made["train"]},
        "split": splitting.split_settings(c.split, c.seed),
        "seed": c.seed,
    }
    check_same(
        asked, made, "The head was trained with other options",
        "Give these options as they were, or run the train stage with them.",
    )  # fmt: skip
    scoring.check_trained_on(store, head)


def _compare(run: Run) -> None:
    c, results = run.settings, run.results
    comparison.check(c.train, c.compare)
    store = _split_store(run)
    asked = comparison.provenance(store, c.train, c.compare, c.layer, c.seed)
    compared = done_before("comparison", results.comparison(), asked)
    if compared is None:
        comparison.check_store(store, c.train, c.compare, c.layer)
        compared = comparison.compare(store, c.train, c.compare, c.layer, c.seed, run.client)
        results.write_comparison(compared, page.render_comparison(compared, _title(store)))
    say(f"{comparison_table(compared)}\n\nPage: {results.comparison_page}")


def _tune(run: Run) -> None:
    c, results = run.settings, run.results
    tuning.check(c.train, c.tune, c.seed)
    store = _split_store(run)
    asked = tuning.provenance(store, c.train, c.tune, c.layer, c.seed, c.features.weights)
    found = done_before("tuning", results.tuning(), asked)
    if found is None:
        tuning.check_store(store, c.train)
        # What is wrong with the checkpoint is told before a cluster is started.
        resume(results.tuning_checkpoint, asked, tuning.Search.from_bytes, overwrite=c.overwrite)
        started = time.monotonic()
        found = tuning.tune(
            store, c.train, c.tune, c.layer, c.seed, run.client, weights=c.features.weights,
            checkpoint=results.tuning_checkpoint, overwrite=c.overwrite,
        )  # fmt: skip
        seconds = time.monotonic() - started
        results.write_tuning(found, page.render_tuning(found, _title(store)))
        results.add_timing("tune", seconds, len(found.trials), "trials")
    chosen = tuning.best(found, c.train)
    results.write_tuned(chosen)
    hints = "".join(f"\n{hint}" for hint in found.hints)
    say(
        f"{trials_table(found)}\n{hints}\n"
        f"Best: --train.learning-rate {chosen.learning_rate} --train.l2 {chosen.l2} "
        f"--train.dropout {chosen.dropout} "
        f"--train.averaging-frequency {chosen.averaging_frequency}\n"
        f"Train with it: python -m dtl.pipeline train --out {c.out} --config {results.tuned}\n\n"
        f"Page: {results.tuning_page}"
    )


def _split_store(run: Run) -> FeatureStore:
    """The store of a run, for one who holds its place and needs the split."""
    store = run.results.store()
    run.hold()
    splitting.split_images(store, run.settings.split, run.settings.seed)
    return store


def _title(store: FeatureStore) -> str:
    """What the photographs are called."""
    return str(store.attrs["root"]).rstrip("/").rsplit("/", 1)[-1]


def _predict(run: Run, model: Results) -> None:
    c = run.settings
    head = _head(model)
    extraction.check_options(c.features, c.images, head)
    found = listing.find_images(c.images.url)
    if not found.paths:
        raise ValueError(f"No images below {c.images.url} ({len(found.left_out)} other files).")
    found.sort()
    run.hold()
    run.check_memory()
    n_unread = prediction.predict(
        run.results.url,
        found.root,
        found.paths,
        head,
        c.features,
        c.images,
        c.seed,
        run.client,
        places=found.files(),
        overwrite=c.overwrite,
    )
    say(f"Predictions for {len(found.paths)} images ({n_unread} unreadable): {run.results.url}")


def _derive(run: Run, model: Results) -> None:
    c, source, url = run.settings, model.store(), run.results.features
    derivation.check_not_same(url, source)
    try:
        store = derivation.finished(url, source, c.features)
    except ValueError:
        if not c.overwrite:
            raise
        store = None
    run.begin()
    if store is not None:
        log.info("features: done before, %d images", store.n_images)
    else:
        run.check_memory()
        store = derivation.derive(
            url, source, c.features, c.seed, run.client, overwrite=c.overwrite
        )
    say(f"Features of {store.n_images} images: {store.url}")


def _export(run: Run, model: Results) -> None:
    from dtl.features import backbone  # Keras, which no other command needs here

    c, head = run.settings, _head(model)
    spec = extraction.backbone_spec(c.features, c.seed, "float32")
    if not c.out.endswith(".keras"):
        raise ValueError(f"--out must end in .keras. Received: {c.out!r}.")
    if storage.exists(c.out) and not c.overwrite:
        raise ValueError(f"{c.out} is there already. Choose another --out, or --overwrite.")
    extraction.check_options(c.features, c.images, head)
    exported = backbone.export(spec, head)
    names = f"{c.out.removesuffix('.keras')}.classes.json"
    storage.write_bytes(names, json.dumps(head.class_names).encode())
    storage.write_bytes(c.out, exported)
    say(f"Classifier of {len(head.class_names)} classes: {c.out}, with their names in {names}")


def _pack(run: Run) -> None:
    c, url = run.settings, run.results.url
    if f"{url}/".startswith(f"{c.images.url.rstrip('/')}/"):
        raise ValueError(
            f"--out {url} lies in --images {c.images.url}: the tars would be listed as images of "
            "it, too. Choose a place beside it."
        )
    listed = listing.list_images(c.images, c.seed)
    ledger = packing.open_ledger(url, listed, c.pack)
    if ledger.inspect(overwrite=c.overwrite) is Claim.FINISHED:
        log.info("packing: done before")
    else:
        run.hold()
        packing.pack(url, listed, c.pack, run.client, overwrite=c.overwrite)
    say(f"{len(listed)} images in tars: {url}")


def _fetch(run: Run, arguments: argparse.Namespace) -> None:
    run.hold()
    fetching.fetch(
        arguments.dataset,
        run.settings,
        source=arguments.source,
        md5=arguments.md5,
        layout=arguments.layout,
        scratch=arguments.scratch,
    )
    say(f"{arguments.dataset}: {run.results.url}")


def _fetch_arguments(parser: argparse.ArgumentParser) -> None:
    add = functools.partial(parser.add_argument, default="")
    parser.add_argument("dataset", choices=sorted(fetching.DATASETS), help="which data set")
    add("--to", dest="out", metavar="URL", default=argparse.SUPPRESS, help="same as --out")
    add("--from", dest="source", metavar="URL", help="its archive elsewhere: a mirror, or a file")
    add("--md5", metavar="HEX", help="of another archive than the official one; none: unchecked")
    add("--scratch", metavar="DIR", help="where it is downloaded to (default: ~/.cache/dtl)")
    layouts = "class folders (default); those in train/, validation/ and test/; tars"
    add("--layout", choices=fetching.LAYOUTS, default="folders", help=layouts)


def _submit(run: Run, arguments: argparse.Namespace) -> int:
    from dtl.cluster.yarn import capacity, submission

    c = replace(run.settings, cluster=replace(run.settings.cluster, address="yarn"))
    storage.check_writable(run.results.url)
    capacity.check_worker_memory(c.cluster, c.yarn, functools.partial(memory_needed, c.features))
    with tempfile.TemporaryDirectory(prefix="dtl-") as folder:
        file = Path(folder, "dtl.toml")
        file.write_text(tomli_w.dumps(config.to_dict(c)))
        app_id = submission.submit(
            c.cluster,
            c.yarn,
            ["run", "--config", file.name],
            [str(file)],
            file_systems=hdfs_urls(c),
        )
    say(app_id)
    if not arguments.wait:
        return 0
    text, status = submission.wait(app_id)
    say(text)
    return status


def _submit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="until it has ended; exit as it did")


def _status(arguments: argparse.Namespace) -> int:
    from dtl.cluster.yarn import submission

    text, status = submission.get_status(arguments.application)
    say(text)
    return status


def _logs(arguments: argparse.Namespace) -> int:
    from dtl.cluster.yarn import logs

    return logs.print_logs(arguments.application)


def _kill(arguments: argparse.Namespace) -> int:
    from dtl.cluster.yarn import submission

    say(submission.kill(arguments.application))
    return 0


def _application(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("application", metavar="ID", help="what `submit` printed")


def _pack_environment(arguments: argparse.Namespace) -> int:
    url = storage.absolute(arguments.out)
    written = environment.pack(url)
    say(f"Environment: {url}" + ("" if written else " (there already, unchanged)"))
    return 0


def _pack_environment_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="URL", required=True, help="ends in .tar")


def show_summary(settings: Config) -> None:
    """Show the network, its cut, and what is frozen."""
    from dtl.features import backbone

    f = settings.features
    description = backbone.describe(f.network, f.layers, f.pooling)
    rows: list[tuple[str, ...]] = [("layer", "kind", "output", "parameters", "")]
    for layer in description.layers:
        note = "frozen" if layer.name in description.used else "not used"
        if layer.name in f.layers:
            note = f"cut here: {description.n_features[layer.name]} features"
        shape = " x ".join(str(n) for n in layer.output_shape)
        rows.append((layer.name, layer.kind, shape, f"{layer.n_parameters:,}", note))
    say(columns(rows, right={3}))
    height, width = description.input_size
    trained = "a softmax layer, features x classes"
    if n_units := settings.train.hidden_units:
        trained = f"a hidden layer of {n_units:,} units, and a softmax layer, units x classes"
    say(
        f"\n{f.network}, images of {height} x {width}; {description.weights_bytes / 2**20:.0f} MiB "
        f"of frozen weights in each worker. Trained: {trained}."
    )


def _head(results: Results) -> Head:
    head = results.head()
    if head is None:
        raise FileNotFoundError(f"No head.npz in {results.url}. Run the train stage first.")
    return head


# --- the command line ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """What a command does, and which configuration it starts from."""

    help: str
    work: Callable[..., int | None]
    base: Mapping[str, Any]
    goes_on: bool = False
    """From the configuration that `--out` has."""
    needs_model: bool = False
    """From the configuration of the run that `--model` names."""
    arguments: Callable[[argparse.ArgumentParser], None] | None = None
    """Adds those of its own, which `work` then takes."""
    alone: bool = False
    """Takes its own arguments only: no configuration, no output."""
    resumes: bool = True
    """The same command goes on where it was interrupted."""


COMMANDS = {
    "demo": Command(
        "draw pictures and run every stage on them",
        _demo,
        # Small chunks, shards and batches, so that so few pictures show what many would.
        {
            "out": "demo",
            "features": {"chunk_images": 32},
            "train": {"n_shards": 4, "batch_size": 8, "l2": 0.1},
        },
    ),
    "run": Command("every stage, from images to report.html", _run, {}),
    "featurize": Command("images to features.zarr", _featurize, {}),
    "train": Command("features.zarr to head.npz", _train, {}, goes_on=True),
    "evaluate": Command("head.npz to evaluation.json", _evaluate, {}, goes_on=True),
    "report": Command("evaluation.json to report.html", _report, {}, goes_on=True),
    "compare": Command("averaging in several ways, against the exact optimum", _compare, {},
                        goes_on=True, resumes=False),
    "tune": Command("search for the options of training that validate best", _tune, {},
                     goes_on=True),
    "predict": Command("classify other images into a Parquet dataset", _predict, {},
                        needs_model=True),
    "derive": Command("stored fc1 features to fc2 and predictions, without the images", _derive,
                       {}, needs_model=True),
    "export": Command("network and head as one .keras file", _export, {}, needs_model=True,
                       resumes=False),
    "fetch": Command("bring a public data set to where the work is", _fetch, {},
                      arguments=_fetch_arguments),
    "pack": Command("many image files into few tars, which are read faster", _pack, {}),
    "summary": Command("the network, the cut, what is frozen", show_summary, {}, resumes=False),
    "submit": Command("`run` on YARN, the driver too; prints the application's id", _submit, {},
                       arguments=_submit_arguments, resumes=False),
    "status": Command("how a submitted run is", _status, {}, alone=True,
                       arguments=_application, resumes=False),
    "logs": Command("what a submitted run said", _logs, {}, alone=True,
                     arguments=_application, resumes=False),
    "kill": Command("end a submitted run", _kill, {}, alone=True,
                     arguments=_application, resumes=False),
    "pack-environment": Command("the Python that runs as an archive for YARN", _pack_environment,
                                 {}, alone=True, arguments=_pack_environment_arguments,
                                 resumes=False),
}  # fmt: skip
