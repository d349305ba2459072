"""One command's configuration, results, and client.

The configuration comes from the options, a file, and the run that the command goes on with.
"""

from __future__ import annotations

import argparse
import functools
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dtl import config, storage
from dtl.config.errors import FaultsError, UserError
from dtl.config.sections import is_network_file
from dtl.features.store import FeatureStore
from dtl.features.values import ExtractionSpec
from dtl.head.model import Head
from dtl.images.values import ImageList
from dtl.pipeline.commands import Command
from dtl.pipeline.journal import Journal
from dtl.pipeline.results import Results
from dtl.storage import kerberos, lock
from dtl.storage.ledger import read_parsed
from dtl.training.spec import TrainingSpec, head_url

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

_LOGS_OF_DASK = ("distributed", "distributed.client", "distributed.gc", "tornado.application")
"""Loggers that have a level and a handler of their own."""


class Run:
    """One command: its options, its results, and a client once one is needed.

    Parameters
    ----------
    options : Config
        With absolute URLs.
    stack : ExitStack
        Closes the client, and frees the results' folder, when the command ends.
    """

    def __init__(self, options: config.Config, stack: ExitStack) -> None:
        self.options = options
        self.started = time.monotonic()
        self._stack = stack
        self._client: Client | None = None
        self._lock: lock.Lock | None = None
        self.journal = Journal()
        self._extraction = ExtractionSpec(options.features, options.images, options.seed)

    @functools.cached_property
    def results(self) -> Results:
        """The folder of the results; a `UserError` if there is none."""
        if not self.options.out:
            raise UserError("No place for the results given. Set `out`.")
        return Results(self.options.out)

    @property
    def extraction(self) -> ExtractionSpec:
        """The options that the features of images follow from."""
        o = self.options
        network_url = self.results.network if o.out else ""
        spec = ExtractionSpec(o.features, o.images, o.seed, network_url)
        if spec != self._extraction:  # which keeps the hash of a network's file
            self._extraction = spec
        return self._extraction

    def training_spec(self, store: FeatureStore) -> TrainingSpec:
        """Return what a head on a store follows from; the store must have its split."""
        o = self.options
        return TrainingSpec(store, o.train, o.layer, o.seed, o.features.weights)

    @property
    def client(self) -> Client:
        """Started or reached at the first use."""
        if self._client is None:
            # A finished run needs no Dask.
            from dtl.cluster import connection
            from dtl.cluster.workers import register_setup, show_slow_storage

            # After the import, which sets the levels. These lines are for operators of a cluster,
            # and some are tracebacks of what the command says in its own words.
            for name in _LOGS_OF_DASK:
                logging.getLogger(name).setLevel(logging.CRITICAL)
            o = self.options
            self._client = self._stack.enter_context(
                connection.connect(o.cluster, o.yarn, file_systems=list_hdfs_urls(o))
            )
            register_setup(self._client, storage.use_hdfs_client, o.storage.hdfs_client)
            show_slow_storage(self._client)
            self._guard_workers()
        return self._client

    @property
    def dashboard(self) -> str:
        """Where Dask showed the work; empty if there was none."""
        return str(self._client.dashboard_link) if self._client else ""

    @property
    def grows(self) -> bool:
        """Whether a list that differs from the stored one is taken in.

        The other ways are of the rows that are there: as they were, or in place of them.
        """
        o = self.options
        return not (o.exact or o.overwrite or o.repair or o.retry_skipped)

    def find_store(self, listed: ImageList) -> FeatureStore | None:
        """Return the stored features that listed images go on from, or refuse other ones."""
        return FeatureStore.reuse(
            self.results.features, self.extraction.fingerprint(listed),
            overwrite=self.options.overwrite, other_images=self.grows,
        )  # fmt: skip

    def check_ticket(self) -> None:
        """Refuse a Hadoop that asks for a Kerberos ticket where there is none that is valid."""
        o = self.options
        if (list_hdfs_urls(o) or o.cluster.address == "yarn") and kerberos.is_needed():
            kerberos.check_ticket(least_s=0)

    def check_workers(self) -> None:
        """Refuse workers that cannot write the results; warn of those that are not alike.

        `dtl.pipeline.doctor` makes the same checks, and more that take longer.
        """
        from dtl.cluster import clocks, versions
        from dtl.cluster.workers import check_output, check_shared

        check_shared(self.client, self.options.images.url, self.results.url)
        check_output(self.client, self.results.url)
        for check in (versions.check_versions, clocks.check_clocks):
            try:
                check(self.client)
            except FaultsError as error:
                log.warning("%s", error)

    def check_worker_memory(self) -> None:
        """Refuse YARN's containers if the network has no room in them, before any is started."""
        o = self.options
        if o.cluster.address == "yarn" and self._client is None:
            from dtl.cluster.yarn import capacity  # with skein, which is an extra
            from dtl.features.extraction import estimate_memory

            capacity.check_worker_memory(
                o.cluster, o.yarn, functools.partial(estimate_memory, o.features)
            )

    def claim_folder(self) -> None:
        """Lock the results' folder; an `OSError` if it cannot be written, or is another's."""
        if self._lock is None:
            storage.check_writable(self.results.url)
            self._lock = self._stack.enter_context(lock.hold(self.results.url))
            self._guard_workers()

    def _guard_workers(self) -> None:
        if self._client is not None and self._lock is not None:
            from dtl.cluster.workers import register_setup

            client, url = self._client, self._lock.url
            register_setup(client, lock.guard_worker, url, self._lock.token)

            def end_guard(error: type[BaseException] | None, *_: object) -> None:
                # After an error, work may go on in workers, and must not write.
                if error is None and client.status == "running":
                    register_setup(client, lock.guard_worker, url, "")

            self._stack.push(end_guard)
            # What it keeps must be written while the folder is still locked.
            self._stack.enter_context(self.journal.keep(client, self.results))

    def check_start(self) -> None:
        """Refuse a head to start from that cannot be read, or that the training would replace.

        Before `begin` saves its name, and before any work.
        """
        start = self.options.train.start_from
        if not start:
            return
        url = head_url(start)
        if url in self.results.head_files:
            raise UserError(
                f"`train.start_from` = {start}, but the training replaces or removes {url}. "
                "Copy that to another name, and start from the copy."
            )
        if read_parsed(url, Head.from_bytes, "Give another head as `train.start_from`.") is None:
            raise FileNotFoundError(f"No such file: {url}. Check `train.start_from`.")

    def begin(self) -> None:
        """Lock the results' folder, and save the configuration there."""
        self.claim_folder()
        self.results.write_config(
            replace(
                self.options,
                overwrite=False,
                exact=False,
                repair=False,
                retry_skipped=False,
                with_check=False,
                dry_run=False,
            )
        )


def list_hdfs_urls(options: config.Config) -> list[str]:
    """List the places on HDFS that the options name."""
    features = options.features
    urls = (
        options.images.url, options.images.labels, options.out, features.weights,
        features.network, options.train.start_from,
    )  # fmt: skip
    return [url for url in urls if url.startswith("hdfs://")]


def read_options(arguments: argparse.Namespace, command: Command) -> config.Config:
    """Read the options of a command, with absolute URLs.

    A later one wins: the defaults, the command's own, the run's that it goes on with, the file's
    (``--config``), the command line's.
    """
    given = _nested(arguments)
    if runs := getattr(arguments, "runs", ()):  # of `report`: the first has the options
        if "out" in given:
            raise UserError(
                "Give the runs by their names alone, or one as `out`. Received: "
                f"{', '.join(runs)} and {given['out']}."
            )
        given["out"] = runs[0]
    layers: list[Mapping[str, Any]] = [command.base]
    read_from: dict[str, Mapping[str, Any]] = {}
    file: dict[str, Any] = {}
    if arguments.config:
        found = read_parsed(arguments.config, config.parse_toml, "Mend it, or check --config.")
        if found is None:
            raise FileNotFoundError(f"No such file: {arguments.config}. Check --config.")
        file = read_from[arguments.config] = found
    out = arguments.model if command.starts_from == "model" else given.get("out") or file.get("out")
    if command.starts_from in ("out", "model") and out:
        earlier = Results(out)
        read_from[earlier.config_file] = earlier.config()
        layers.append(read_from[earlier.config_file])
    if command.starts_from == "model":
        layers.append({"out": "", "images": {"url": "", "labels": ""}, "train": {"layer": ""}})
    options = _build([*layers, file, given], read_from)
    storage.use_hdfs_client(options.storage.hdfs_client)
    return _with_absolute_urls(options)


def _build(
    layers: list[Mapping[str, Any]], read_from: Mapping[str, Mapping[str, Any]]
) -> config.Config:
    try:
        return config.build(*layers)
    except UserError:
        for url, options in read_from.items():
            try:
                config.build(options)
            except UserError as error:
                raise UserError(f"{url}: {error}") from error
        raise


def _nested(arguments: argparse.Namespace) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for option in config.list_options():
        if option.key in arguments:
            table = given.setdefault(option.section, {}) if option.section else given
            table[option.key.rpartition(".")[2]] = getattr(arguments, option.key)
    return given


def _with_absolute_urls(options: config.Config) -> config.Config:
    def absolute(url: str) -> str:
        named = url in ("", "imagenet", "random") or config.is_hidden(url)
        return url if named else storage.absolute(url)

    images, features, train = options.images, options.features, options.train
    network = features.network
    if is_network_file(network):
        network = absolute(network)
    return replace(
        options,
        out=absolute(options.out),
        images=replace(images, url=absolute(images.url), labels=absolute(images.labels)),
        features=replace(features, network=network, weights=absolute(features.weights)),
        train=replace(train, start_from=absolute(train.start_from)),
    )
