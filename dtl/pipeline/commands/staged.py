"""The stages, together or one by one."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace

from dtl import config, storage
from dtl.config.errors import UserError
from dtl.config.provenance import check_same
from dtl.evaluation.values import N_MISTAKES
from dtl.features import splitting
from dtl.features.store import FeatureStore
from dtl.head.model import Head
from dtl.pipeline import stages
from dtl.pipeline.messages import print_line
from dtl.pipeline.run import Run
from dtl.pipeline.tables import format_check, format_scores

log = logging.getLogger(__name__)

_N_OCCLUDED = 6
"""Pictures that `report --occlusion` looks into unless told."""


def run_all(run: Run, _: argparse.Namespace) -> None:
    """Run every stage, and print the scores; with ``--check``, what is wrong with the images."""
    run.check_start()
    if run.options.dry_run:
        from dtl.pipeline.forecast import measuring, text

        print_line(text.format_forecast(measuring.measure(run), run.options))
        return
    store = stages.featurize(run, splits=True)
    head = stages.train(run, store)
    scores = stages.evaluate(run, store, head)
    found = stages.check(run, store, head) if run.options.with_check else None
    stages.report(run, store, head, scores)
    _print_warnings(store)
    said = f"{format_scores(scores)}\n\n{format_check(found)}" if found else format_scores(scores)
    print_line(f"\n{said}\n\nReport: {run.results.report}")
    if run.dashboard:
        print_line(f"Dask dashboard (while it ran): {run.dashboard}")


def demo(run: Run, arguments: argparse.Namespace) -> None:
    """Draw pictures, unless photographs are given, and run every stage on them."""
    c = run.options
    if not c.images.url:
        from dtl.images import drawing

        pictures = storage.join(run.results.url, "pictures")
        storage.check_writable(run.results.url)
        n_pictures = drawing.draw_pictures(pictures, c.seed)
        log.info("drew %d pictures below %s", n_pictures, pictures)
        c = replace(c, images=replace(c.images, url=pictures))
    if c.features.weights == "imagenet":
        try:
            # The store of an earlier demo tells what could be had then.
            weights = FeatureStore.open(run.results.features).attrs["weights"]
        except FileNotFoundError:
            weights = _available_weights(run, c)
        c = replace(c, features=replace(c.features, weights=weights))
    run.options = c
    run_all(run, arguments)


def _available_weights(run: Run, c: config.Config) -> str:
    from dtl.features import converted, extraction

    run.check_worker_memory()
    try:
        if c.features.engine == "openvino":
            converted.provide_converted(run.client, run.extraction)
        else:
            extraction.prepare(run.client, run.extraction)
    except ConnectionError:
        raise  # a worker that is lost says nothing of the weights
    except OSError as error:
        log.warning("%s\nGoing on with an untrained network (random weights).", error)
        return "random"
    return c.features.weights


def featurize(run: Run, _: argparse.Namespace) -> None:
    """Compute the features of all images."""
    store = stages.featurize(run)
    _print_warnings(store)
    print_line(f"Features of {store.n_present} images: {store.url}")


def train(run: Run, _: argparse.Namespace) -> None:
    """Train a head on stored features."""
    store = run.results.store()
    store.check_options(run.extraction)
    run.check_start()
    run.begin()
    stages.train(run, store)
    _print_warnings(store)
    print_line(f"Head: {storage.join(run.results.url, 'head.npz')}")


def evaluate(run: Run, _: argparse.Namespace) -> None:
    """Score a trained head."""
    store, head = run.results.store(), run.results.trained_head()
    _check_made_with(run, store, head)
    run.begin()
    scores = stages.evaluate(run, store, head)
    _print_warnings(store)
    print_line(format_scores(scores))


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `report`."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="*", help="in place of --out; several: side by side"
    )
    parser.add_argument(
        "--occlusion", metavar="N", nargs="?", type=int, const=_N_OCCLUDED, default=0,
        help="cover parts of the pictures of the worst N mistakes (without N: 6), to show where "
        "the decision lies; takes 50 passes of the network for each",
    )  # fmt: skip
    parser.add_argument(
        "--page", metavar="URL", default="",
        help="of several runs; default: side-by-side.html in the first",
    )  # fmt: skip


def report(run: Run, arguments: argparse.Namespace) -> None:
    """Write the report of an evaluated head anew, or a page of several runs side by side."""
    if len(arguments.runs) > 1:
        from dtl.pipeline.commands import side_by_side  # with Bokeh

        side_by_side.compare_runs(run, arguments.runs, arguments.page)
        return
    if not 0 <= arguments.occlusion <= N_MISTAKES:
        raise UserError(
            f"Expected 0 to {N_MISTAKES} pictures for --occlusion, as the evaluation keeps so many "
            f"mistakes. Received: {arguments.occlusion}."
        )
    if arguments.page:
        raise UserError("--page is for several runs; the report of one is report.html in it.")
    store, head = run.results.store(), run.results.trained_head()
    scores = run.results.evaluation_of(head)
    _check_made_with(run, store, head)
    run.begin()
    storage.remove(run.results.report)
    if arguments.occlusion:
        stages.occlude(run, store, head, scores, arguments.occlusion)
    stages.report(run, store, head, scores)
    _print_warnings(store)
    print_line(f"Report: {run.results.report}")


def _print_warnings(store: FeatureStore) -> None:
    for warning in stages.list_warnings(store):
        print_line(f"\nWarning: {warning}")


def _check_made_with(run: Run, store: FeatureStore, head: Head) -> None:
    """Refuse options of earlier stages that are not as they were, rather than record them."""
    from dtl.evaluation import scoring

    c = run.options
    store.check_options(run.extraction)
    made = {name: head.provenance[name] for name in ("train", "split", "seed")}
    made["split"] = splitting.without_growth(made["split"])
    options = run.training_spec(store).options | {"layer": c.layer}
    wanted = {
        "train": {name: options.get(name) for name in (*made["train"], *config.ADDED["train"])},
        "split": splitting.fingerprint_split(c.split, c.seed),
        "seed": c.seed,
    }
    check_same(
        wanted, made, "The head was trained with other options",
        "Give these options as they were, or run the train stage with them.",
    )  # fmt: skip
    scoring.check_trained_on(store, head)
