"""What is wrong with the images of a run."""

from __future__ import annotations

import argparse
import logging

from dtl import storage
from dtl.config.errors import DifferentSettingsError
from dtl.evaluation import scoring
from dtl.features.store import FeatureStore
from dtl.head.model import Head
from dtl.pipeline import stages
from dtl.pipeline.messages import print_line
from dtl.pipeline.run import Run
from dtl.pipeline.tables import format_check

log = logging.getLogger(__name__)


def check(run: Run, _: argparse.Namespace) -> None:
    """Look for faults of the images, and print what matters."""
    store = run.results.store()
    store.check_options(run.extraction)
    run.claim_folder()
    found = stages.check(run, store, _find_head(run, store))
    results = run.results
    print_line(
        f"{format_check(found)}\n\n"
        f"Labels to correct: {storage.join(results.url, found.relabel)}\n"
        f"Page: {results.check_page}"
    )


def _find_head(run: Run, store: FeatureStore) -> Head | None:
    """Return the head, if there is one of these features and this split."""
    head = run.results.head()
    if head is None:
        return None
    try:
        scoring.check_trained_on(store, head)
    except DifferentSettingsError as error:
        log.info("without the head, which says nothing of these images: %s", error)
        return None
    return head
