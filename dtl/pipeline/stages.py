"""The order of the stages, each done only where its result is not there yet."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeVar

from distributed import Client
from distributed.scheduler import KilledWorker

from dtl import storage
from dtl.cluster import connection
from dtl.cluster.workers import register_setup
from dtl.config import Config
from dtl.config.provenance import differences
from dtl.evaluation import scoring
from dtl.evaluation.values import Evaluation
from dtl.features import featurization, splitting
from dtl.features.extraction import memory_needed
from dtl.features.store import FeatureStore
from dtl.head.model import Head
from dtl.images import listing, split
from dtl.pipeline.gather import report_input
from dtl.pipeline.results import Results
from dtl.report import page
from dtl.storage import lock
from dtl.training import starts, trainer
from dtl.training.checkpoint import Keeper
from dtl.training.values import Comparison, Tuning

log = logging.getLogger("dtl.pipeline")

_Found = TypeVar("_Found", Comparison, Evaluation, Tuning)


class Run:
    """One command: its configuration, its results, and a client once one is needed."""

    def __init__(self, settings: Config, stack: ExitStack) -> None:
        if not settings.out:
            raise ValueError("No place for the results given. Say --out URL.")
        self.settings = settings
        self.results = Results(settings.out)
        self._stack = stack
        self._client: Client | None = None
        self._held = False

    @property
    def client(self) -> Client:
        """Started or reached at the first use."""
        if self._client is None:
            c = self.settings
            self._client = self._stack.enter_context(
                connection.connect(c.cluster, c.yarn, file_systems=hdfs_urls(c))
            )
            register_setup(self._client, storage.use_hdfs_client, self.settings.storage.hdfs_client)
        return self._client

    def check_memory(self) -> None:
        """Refuse YARN's containers in which the network has no room, before it is asked."""
        c = self.settings
        if c.cluster.address == "yarn" and self._client is None:
            from dtl.cluster.yarn import capacity  # with skein, which is an extra

            capacity.check_worker_memory(
                c.cluster, c.yarn, functools.partial(memory_needed, c.features)
            )

    @property
    def dashboard(self) -> str:
        """Where Dask showed the work; empty if there was none."""
        return str(self._client.dashboard_link) if self._client else ""

    def begin(self) -> None:
        """Refuse what cannot be done to the place, before any work, and keep the configuration."""
        start = self.settings.train.start_from
        if start and (url := starts.head_url(start)) in self.results.head_files:
            raise ValueError(
                f"train.start_from = {start}, but the training replaces or removes {url}. Copy "
                "that to another name, and start from the copy."
            )
        self.hold()
        self.results.write_config(replace(self.settings, overwrite=False))

    def hold(self) -> None:
        """Refuse a place that cannot be written, or that another driver writes to."""
        if not self._held:
            storage.check_writable(self.results.url)
            self._stack.enter_context(lock.hold(self.results.url))
            self._held = True

    def featurize(self) -> FeatureStore:
        """List and featurize; all that can be checked before the work is."""
        c, results = self.settings, self.results
        started = time.monotonic()
        listed = listing.list_images(c.images, c.seed)
        listing_s = time.monotonic() - started
        split.assign_splits(listed, c.split, c.seed)  # or refuses what the list cannot give
        fresh = False
        try:
            asked = featurization.settings(listed, c.features, c.images, c.seed)
            store = featurization.finished(results.features, asked)
        except ValueError:
            if not c.overwrite:
                raise
            store, fresh = None, True
        self.begin()
        if store is not None:
            featurization.check_skipped(store, c.images.max_skipped)
            log.info("features: done before, %d images", store.n_images)
            return store
        n_before = 0 if fresh else self._n_done()
        self.check_memory()
        client = self.client
        results.add_timing("list", listing_s, len(listed), "images")
        started = time.monotonic()

        def keep_timing() -> None:
            seconds, n = time.monotonic() - started, self._n_done() - n_before
            results.add_timing("featurize", seconds, n, "images", add=n_before > 0)

        try:
            store = featurization.featurize(
                results.features,
                listed,
                c.features,
                c.images,
                c.seed,
                client,
                overwrite=c.overwrite,
            )
        except (ValueError, KeyboardInterrupt, KilledWorker):
            keep_timing()  # not after an OSError: the storage may be gone
            raise
        keep_timing()
        return store

    def train(self, store: FeatureStore) -> Head:
        """Split and train."""
        c, results = self.settings, self.results
        splitting.split_images(store, c.split, c.seed)
        asked = trainer.provenance(store, c.train, c.layer, c.seed, c.features.weights)
        head = results.head()
        if head is not None:
            found = differences(asked, head.provenance)
            if not found:
                log.info("training: done before")
                return head
            log.info("training again, for the settings differ:\n  %s", "\n  ".join(found))
        started = time.monotonic()
        # What is wrong with the checkpoint is told before a cluster is started.
        with Keeper(results.checkpoint, asked) as keeper:
            keeper.load(overwrite=c.overwrite)
        trained = trainer.train_both(
            store, c.train, c.layer, c.seed, self.client,
            weights=c.features.weights, checkpoint=results.checkpoint, overwrite=c.overwrite,
        )  # fmt: skip
        results.write_head(trained.head, trained.history, trained.other, c.train.keep)
        n_rounds = len(trained.history)
        results.add_timing("train", time.monotonic() - started, n_rounds, "rounds")
        return trained.head

    def evaluate(self, store: FeatureStore, head: Head) -> Evaluation:
        """Score the head."""
        results, n_mistakes = self.results, self.settings.report.n_mistakes
        asked = {"head_sha256": head.fingerprint, "n_mistakes": n_mistakes}
        scores = done_before("evaluation", results.evaluation(), asked)
        if scores is not None:
            return scores
        started = time.monotonic()
        scores = scoring.evaluate(store, head, self.client, n_mistakes=n_mistakes)
        results.write_evaluation(scores)
        n_images = sum(s.n_images for s in scores.scores.values())
        results.add_timing("evaluate", time.monotonic() - started, n_images, "images")
        return scores

    def report(self, store: FeatureStore, head: Head, scores: Evaluation) -> None:
        """Write the report, unless one of all this is there."""
        if storage.exists(self.results.report):
            log.info("report: done before")
            return
        gathered = report_input(self.results, self.settings, store, head, scores)
        self.results.write_report(page.render(gathered))

    def _n_done(self) -> int:
        try:
            return FeatureStore.open(self.results.features).n_done
        except (FileNotFoundError, ValueError):
            return 0


# --- commands ------------------------------------------------------------------------------------


def hdfs_urls(c: Config) -> list[str]:
    """The places on HDFS that the configuration names."""
    places = (c.images.url, c.out, c.features.weights, c.train.start_from)
    return [place for place in places if place.startswith("hdfs://")]


def done_before(what: str, found: _Found | None, asked: Mapping[str, Any]) -> _Found | None:
    """What was found, if it is of the settings that are asked for."""
    if found is None or differences(asked, found.provenance):
        return None
    log.info("%s: done before", what)
    return found
