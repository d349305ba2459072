"""Images to label next."""

from __future__ import annotations

import argparse
import logging

from dtl import storage
from dtl.checking import suggested, suggestion
from dtl.config import hide
from dtl.config.errors import UserError
from dtl.features.growth import without_list
from dtl.features.store import FeatureStore
from dtl.head.model import Head
from dtl.pipeline.messages import print_line
from dtl.pipeline.run import Run

log = logging.getLogger(__name__)

_N = 100
_PICTURE_SIDE = 256
_MOST_SHOWN = 500
"""Pictures on the page."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `suggest`."""
    help = f"how many images to suggest (default: {_N})"
    parser.add_argument("--n", metavar="NUMBER", type=_read_number, default=_N, help=help)


def _read_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, not {text!r}")
    return int(text)


def suggest(run: Run, arguments: argparse.Namespace) -> None:
    """Rank unlabelled images, and write a table to fill in, and a page that shows them."""
    c, results = run.options, run.results
    store = results.store()
    run.claim_folder()
    if not c.overwrite:
        _check_labels(run, store)
    head = _find_head(run, store)
    layer = run.training_spec(store).layer
    found = suggestion.suggest(store, layer, head, arguments.n, c.seed, run.client)
    storage.write_bytes(results.suggestions_page, _render(run, store, found))
    storage.write_bytes(results.suggestions, suggested.make_table(found, store.images(), c.images))
    print_line(
        f"{len(found.paths)} of {found.n_unlabelled:,} unlabelled images, "
        f"{_describe(found)}: {results.suggestions}\n"
        f"Page: {results.suggestions_page}\n"
        f"Write their classes into its column {c.images.label_column!r}, then: "
        f"dtl run --config {results.config_file} --out {c.out} "
        f"--images.labels {results.suggestions} --images.unlabelled keep"
    )


def _describe(found: suggested.Suggestions) -> str:
    if found.way == suggested.COVERAGE:
        return f"those that stand for most others ({found.n_labelled:,} have a label)"
    return "those that stand for most that the head is unsure of"


def _find_head(run: Run, store: FeatureStore) -> Head | None:
    """Return the head, if there is one of such features; of other images it may be."""
    head = run.results.head()
    if head is None:
        return None
    made = without_list(head.provenance["features"])
    if made != without_list(store.fingerprint):
        log.info("without the head, which is of features that were made otherwise")
        return None
    return head


def _check_labels(run: Run, store: FeatureStore) -> None:
    """Refuse to write over labels that a person has written, and no store has yet."""
    url = run.results.suggestions
    if not storage.is_file(url):
        return
    images = store.images()
    there = images.label >= -1
    labels = dict(
        zip(images.path[there].tolist(), images.label_names()[there].tolist(), strict=True)
    )
    n = suggested.count_new_labels(storage.read_bytes(url), labels, run.options.images)
    if n != 0:
        what = "is no table of suggestions" if n is None else f"has {n} labels that no run has read"
        raise UserError(
            f"{url} {what}, and would be written over. Run with `images.labels` = {url} and "
            "`images.unlabelled` = keep first, move it, or set `overwrite`."
        )


def _render(run: Run, store: FeatureStore, found: suggested.Suggestions) -> bytes:
    from dtl.pipeline.pictures import read_pictures
    from dtl.report.suggest import render_suggestions

    c = run.options
    root = c.images.url or str(store.attrs["root"])
    shown = found.paths[:_MOST_SHOWN]
    pictures = read_pictures(
        root, store, shown, c.images.max_pixels, page="page", side=_PICTURE_SIDE
    )
    return render_suggestions(found, pictures, storage.base_name(hide(root))).encode()
