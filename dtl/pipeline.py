"""The command line, and the order of the stages: list, featurize, split, train, evaluate, report.

A stage whose result is there and follows from the same settings is not run again, so the same
command goes on where it was interrupted; a cluster is only started once a stage has work to do.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tomli_w
from distributed import Client
from distributed.scheduler import KilledWorker

from dtl import (
    cluster,
    comparison,
    config,
    demo,
    derivation,
    environment,
    evaluation,
    extraction,
    features,
    fetching,
    listing,
    lock,
    packing,
    prediction,
    report,
    starts,
    storage,
    trainer,
    tuning,
)
from dtl.checkpoint import Keeper, resume
from dtl.config import Config
from dtl.extraction import memory_needed
from dtl.feature_store import FeatureStore
from dtl.results import Results, report_input, warnings
from dtl.types import Comparison, Evaluation, Head, Tuning, check_same, differences
from dtl.workers import MORE_MEMORY, set_up

log = logging.getLogger("dtl.pipeline")

_Found = TypeVar("_Found", Comparison, Evaluation, Tuning)


class _Run:
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
                cluster.connect(c.cluster, c.yarn, file_systems=_hdfs(c))
            )
            set_up(self._client, storage.use_hdfs_client, self.settings.storage.hdfs_client)
        return self._client

    def check_memory(self) -> None:
        """Refuse YARN's containers in which the network has no room, before it is asked."""
        c = self.settings
        if c.cluster.address == "yarn" and self._client is None:
            from dtl import yarn  # with skein, which is an extra

            yarn.check_memory(c.cluster, c.yarn, functools.partial(memory_needed, c.features))

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
        listing.check_split(listed, c.split, c.seed)
        fresh = False
        try:
            asked = features.settings(listed, c.features, c.images, c.seed)
            store = features.finished(results.features, asked)
        except ValueError:
            if not c.overwrite:
                raise
            store, fresh = None, True
        self.begin()
        if store is not None:
            features.check_skipped(store, c.images.max_skipped)
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
            store = features.featurize(
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
        listing.split_images(store, c.split, c.seed)
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
        scores = _done_before("evaluation", results.evaluation(), asked)
        if scores is not None:
            return scores
        started = time.monotonic()
        scores = evaluation.evaluate(store, head, self.client, n_mistakes=n_mistakes)
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
        self.results.write_report(report.render(gathered))

    def _n_done(self) -> int:
        try:
            return FeatureStore.open(self.results.features).n_done
        except (FileNotFoundError, ValueError):
            return 0


# --- commands ------------------------------------------------------------------------------------


def _hdfs(c: Config) -> list[str]:
    """The places on HDFS that the configuration names."""
    places = (c.images.url, c.out, c.features.weights, c.train.start_from)
    return [place for place in places if place.startswith("hdfs://")]


def _run(run: _Run) -> None:
    store = run.featurize()
    head = run.train(store)
    scores = run.evaluate(store, head)
    run.report(store, head, scores)
    for warning in warnings(store):
        _say(f"\nWarning: {warning}")
    _say(f"\n{_table(scores)}\n\nReport: {run.results.report}")
    if run.dashboard:
        _say(f"Dask dashboard (while it ran): {run.dashboard}")


def _demo(run: _Run) -> None:
    c = run.settings
    if not c.images.url:
        pictures = storage.join(run.results.url, "pictures")
        storage.check_writable(run.results.url)
        n_pictures = demo.draw_pictures(pictures, c.seed)
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


def _available_weights(run: _Run, c: Config) -> str:
    run.check_memory()
    try:
        extraction.prepare(run.client, c.features, c.images, c.seed)
    except OSError as error:
        log.warning("%s\nGoing on with an untrained network (random weights).", error)
        return "random"
    return c.features.weights


def _featurize(run: _Run) -> None:
    store = run.featurize()
    _say(f"Features of {store.n_images} images: {store.url}")


def _train(run: _Run) -> None:
    store = run.results.store()
    features.check_options(store, run.settings.features, run.settings.images)
    run.begin()
    run.train(store)
    _say(f"Head: {storage.join(run.results.url, 'head.npz')}")


def _evaluate(run: _Run) -> None:
    store, head = run.results.store(), _head(run.results)
    _check_made_with(run.settings, store, head)
    run.begin()
    _say(_table(run.evaluate(store, head)))


def _report(run: _Run) -> None:
    store, head, scores = run.results.store(), _head(run.results), run.results.evaluation()
    if scores is None or scores.provenance["head_sha256"] != head.fingerprint:
        raise FileNotFoundError(
            f"No evaluation of the head in {run.results.url}. Run the evaluate stage first."
        )
    _check_made_with(run.settings, store, head)
    run.begin()
    storage.remove(run.results.report)
    run.report(store, head, scores)
    _say(f"Report: {run.results.report}")


def _check_made_with(c: Config, store: FeatureStore, head: Head) -> None:
    """Refuse options of earlier stages that are not as they were, rather than record them."""
    features.check_options(store, c.features, c.images)
    made = {name: head.provenance[name] for name in ("train", "split", "seed")}
    options = config.to_dict(c.train) | {"layer": c.layer}
    asked = {
        "train": {name: options.get(name) for name in made["train"]},
        "split": listing.split_settings(c.split, c.seed),
        "seed": c.seed,
    }
    check_same(
        asked, made, "The head was trained with other options",
        "Give these options as they were, or run the train stage with them.",
    )  # fmt: skip
    evaluation.check_trained_on(store, head)


def _compare(run: _Run) -> None:
    c, results = run.settings, run.results
    comparison.check(c.train, c.compare)
    store = _split_store(run)
    asked = comparison.provenance(store, c.train, c.compare, c.layer, c.seed)
    compared = _done_before("comparison", results.comparison(), asked)
    if compared is None:
        comparison.check_store(store, c.train, c.compare, c.layer)
        compared = comparison.compare(store, c.train, c.compare, c.layer, c.seed, run.client)
        results.write_comparison(compared, report.render_comparison(compared, _title(store)))
    _say(f"{_compared_table(compared)}\n\nPage: {results.comparison_page}")


def _tune(run: _Run) -> None:
    c, results = run.settings, run.results
    tuning.check(c.train, c.tune, c.seed)
    store = _split_store(run)
    asked = tuning.provenance(store, c.train, c.tune, c.layer, c.seed, c.features.weights)
    found = _done_before("tuning", results.tuning(), asked)
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
        results.write_tuning(found, report.render_tuning(found, _title(store)))
        results.add_timing("tune", seconds, len(found.trials), "trials")
    chosen = tuning.best(found, c.train)
    results.write_tuned(chosen)
    hints = "".join(f"\n{hint}" for hint in found.hints)
    _say(
        f"{_trials_table(found)}\n{hints}\n"
        f"Best: --train.learning-rate {chosen.learning_rate} --train.l2 {chosen.l2} "
        f"--train.dropout {chosen.dropout} "
        f"--train.averaging-frequency {chosen.averaging_frequency}\n"
        f"Train with it: python -m dtl.pipeline train --out {c.out} --config {results.tuned}\n\n"
        f"Page: {results.tuning_page}"
    )


def _split_store(run: _Run) -> FeatureStore:
    """The store of a run, for one who holds its place and needs the split."""
    store = run.results.store()
    run.hold()
    listing.split_images(store, run.settings.split, run.settings.seed)
    return store


def _done_before(what: str, found: _Found | None, asked: Mapping[str, Any]) -> _Found | None:
    """What was found, if it is of the settings that are asked for."""
    if found is None or differences(asked, found.provenance):
        return None
    log.info("%s: done before", what)
    return found


def _title(store: FeatureStore) -> str:
    """What the photographs are called."""
    return str(store.attrs["root"]).rstrip("/").rsplit("/", 1)[-1]


def _predict(run: _Run, model: Results) -> None:
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
    _say(f"Predictions for {len(found.paths)} images ({n_unread} unreadable): {run.results.url}")


def _derive(run: _Run, model: Results) -> None:
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
    _say(f"Features of {store.n_images} images: {store.url}")


def _export(run: _Run, model: Results) -> None:
    from dtl import backbone  # Keras, which no other command needs here

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
    _say(f"Classifier of {len(head.class_names)} classes: {c.out}, with their names in {names}")


def _pack(run: _Run) -> None:
    c, url = run.settings, run.results.url
    if f"{url}/".startswith(f"{c.images.url.rstrip('/')}/"):
        raise ValueError(
            f"--out {url} lies in --images {c.images.url}: the tars would be listed as images of "
            "it, too. Choose a place beside it."
        )
    listed = listing.list_images(c.images, c.seed)
    asked = packing.settings(listed, c.pack)
    if packing.is_finished(url, asked):
        log.info("packing: done before")
    else:
        packing.check_free(url, asked, overwrite=c.overwrite)
        run.hold()
        packing.pack(url, listed, c.pack, run.client, overwrite=c.overwrite)
    _say(f"{len(listed)} images in tars: {url}")


def _fetch(run: _Run, arguments: argparse.Namespace) -> None:
    run.hold()
    fetching.fetch(
        arguments.dataset,
        run.settings,
        source=arguments.source,
        md5=arguments.md5,
        layout=arguments.layout,
        scratch=arguments.scratch,
    )
    _say(f"{arguments.dataset}: {run.results.url}")


def _fetch_arguments(parser: argparse.ArgumentParser) -> None:
    add = functools.partial(parser.add_argument, default="")
    parser.add_argument("dataset", choices=sorted(fetching.DATASETS), help="which data set")
    add("--to", dest="out", metavar="URL", default=argparse.SUPPRESS, help="same as --out")
    add("--from", dest="source", metavar="URL", help="its archive elsewhere: a mirror, or a file")
    add("--md5", metavar="HEX", help="of another archive than the official one; none: unchecked")
    add("--scratch", metavar="DIR", help="where it is downloaded to (default: ~/.cache/dtl)")
    layouts = "class folders (default); those in train/, validation/ and test/; tars"
    add("--layout", choices=fetching.LAYOUTS, default="folders", help=layouts)


def _submit(run: _Run, arguments: argparse.Namespace) -> int:
    from dtl import yarn

    c = replace(run.settings, cluster=replace(run.settings.cluster, address="yarn"))
    storage.check_writable(run.results.url)
    yarn.check_memory(c.cluster, c.yarn, functools.partial(memory_needed, c.features))
    with tempfile.TemporaryDirectory(prefix="dtl-") as folder:
        file = Path(folder, "dtl.toml")
        file.write_text(tomli_w.dumps(config.to_dict(c)))
        app_id = yarn.submit(
            c.cluster, c.yarn, ["run", "--config", file.name], [str(file)], file_systems=_hdfs(c)
        )
    _say(app_id)
    if not arguments.wait:
        return 0
    text, status = yarn.wait(app_id)
    _say(text)
    return status


def _submit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="until it has ended; exit as it did")


def _status(arguments: argparse.Namespace) -> int:
    from dtl import yarn

    text, status = yarn.status(arguments.application)
    _say(text)
    return status


def _logs(arguments: argparse.Namespace) -> int:
    from dtl import yarn

    return yarn.print_logs(arguments.application)


def _kill(arguments: argparse.Namespace) -> int:
    from dtl import yarn

    _say(yarn.kill(arguments.application))
    return 0


def _application(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("application", metavar="ID", help="what `submit` printed")


def _pack_environment(arguments: argparse.Namespace) -> int:
    url = storage.absolute(arguments.out)
    written = environment.pack(url)
    _say(f"Environment: {url}" + ("" if written else " (there already, unchanged)"))
    return 0


def _pack_environment_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="URL", required=True, help="ends in .tar")


def _summary(settings: Config) -> None:
    from dtl import backbone

    f = settings.features
    description = backbone.describe(f.network, f.layers, f.pooling)
    rows: list[tuple[str, ...]] = [("layer", "kind", "output", "parameters", "")]
    for layer in description.layers:
        note = "frozen" if layer.name in description.used else "not used"
        if layer.name in f.layers:
            note = f"cut here: {description.n_features[layer.name]} features"
        shape = " x ".join(str(n) for n in layer.output_shape)
        rows.append((layer.name, layer.kind, shape, f"{layer.n_parameters:,}", note))
    _say(_columns(rows, right={3}))
    height, width = description.input_size
    trained = "a softmax layer, features x classes"
    if n_units := settings.train.hidden_units:
        trained = f"a hidden layer of {n_units:,} units, and a softmax layer, units x classes"
    _say(
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
class _Command:
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


_COMMANDS = {
    "demo": _Command(
        "draw pictures and run every stage on them",
        _demo,
        # Small chunks, shards and batches, so that so few pictures show what many would.
        {
            "out": "demo",
            "features": {"chunk_images": 32},
            "train": {"n_shards": 4, "batch_size": 8, "l2": 0.1},
        },
    ),
    "run": _Command("every stage, from images to report.html", _run, {}),
    "featurize": _Command("images to features.zarr", _featurize, {}),
    "train": _Command("features.zarr to head.npz", _train, {}, goes_on=True),
    "evaluate": _Command("head.npz to evaluation.json", _evaluate, {}, goes_on=True),
    "report": _Command("evaluation.json to report.html", _report, {}, goes_on=True),
    "compare": _Command("averaging in several ways, against the exact optimum", _compare, {},
                        goes_on=True, resumes=False),
    "tune": _Command("search for the options of training that validate best", _tune, {},
                     goes_on=True),
    "predict": _Command("classify other images into a Parquet dataset", _predict, {},
                        needs_model=True),
    "derive": _Command("stored fc1 features to fc2 and predictions, without the images", _derive,
                       {}, needs_model=True),
    "export": _Command("network and head as one .keras file", _export, {}, needs_model=True,
                       resumes=False),
    "fetch": _Command("bring a public data set to where the work is", _fetch, {},
                      arguments=_fetch_arguments),
    "pack": _Command("many image files into few tars, which are read faster", _pack, {}),
    "summary": _Command("the network, the cut, what is frozen", _summary, {}, resumes=False),
    "submit": _Command("`run` on YARN, the driver too; prints the application's id", _submit, {},
                       arguments=_submit_arguments, resumes=False),
    "status": _Command("how a submitted run is", _status, {}, alone=True,
                       arguments=_application, resumes=False),
    "logs": _Command("what a submitted run said", _logs, {}, alone=True,
                     arguments=_application, resumes=False),
    "kill": _Command("end a submitted run", _kill, {}, alone=True,
                     arguments=_application, resumes=False),
    "pack-environment": _Command("the Python that runs as an archive for YARN", _pack_environment,
                                 {}, alone=True, arguments=_pack_environment_arguments,
                                 resumes=False),
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized"):
            known = [option.flag for option in config.options()]
            for word in message.split():
                if close := difflib.get_close_matches(word.split("=")[0], known, 1):
                    message += f". Did you mean {close[0]}?"
        super().error(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m dtl.pipeline",
        description="Folders of labelled photographs to an image classifier, on Dask.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in _COMMANDS.items():
        sub = commands.add_parser(
            name, help=command.help, description=command.help, allow_abbrev=False
        )
        sub.add_argument("--debug", action="store_true", help="show where an error came from")
        if command.arguments:
            command.arguments(sub)
        if command.alone:
            continue
        sub.add_argument("--config", metavar="URL", help="TOML file with any of the options below")
        if command.needs_model:
            sub.add_argument("--model", metavar="URL", required=True, help="--out of a run")
        for option in config.options():
            sub.add_argument(
                option.flag,
                dest=option.key,
                type=functools.partial(config.parse_text, option),
                default=argparse.SUPPRESS,
                metavar=option.metavar,
                help=option.described,
                nargs="?" if option.type is bool else None,
                const=True if option.type is bool else None,
            )
    return parser


def _settings(arguments: argparse.Namespace, command: _Command) -> Config:
    given: dict[str, Any] = {}
    for option in config.options():
        if option.key in arguments:
            *section, name = option.key.split(".")
            table = given.setdefault(section[0], {}) if section else given
            table[name] = getattr(arguments, option.key)
    layers: list[Mapping[str, Any]] = [command.base]
    file: dict[str, Any] = {}
    if arguments.config:
        if not storage.exists(arguments.config):
            raise FileNotFoundError(f"No such file: {arguments.config}. Check --config.")
        file = config.parse_toml(storage.read_bytes(arguments.config).decode(), arguments.config)
    if command.goes_on and (out := given.get("out") or file.get("out")):
        layers.append(Results(out).config())
    if command.needs_model:
        layers.append(Results(arguments.model).config() | {"out": ""})
        layers.append({"images": {"url": ""}, "train": {"layer": ""}})
    settings = config.build(*layers, file, given)
    _ = settings.layer  # says if it is none of the layers
    storage.use_hdfs_client(settings.storage.hdfs_client)
    weights = settings.features.weights
    if weights not in ("", "imagenet", "random"):
        weights = storage.absolute(weights)
    return replace(
        settings,
        out=settings.out and storage.absolute(settings.out),
        images=replace(
            settings.images, url=settings.images.url and storage.absolute(settings.images.url)
        ),
        features=replace(settings.features, weights=weights),
        train=replace(
            settings.train,
            start_from=settings.train.start_from and storage.absolute(settings.train.start_from),
        ),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    command = _COMMANDS[arguments.command]
    goes_on = " What is done stays done; the same command goes on." if command.resumes else ""
    _log_to_stderr()
    try:
        if command.alone:
            return command.work(arguments) or 0
        settings = _settings(arguments, command)
        if command.work is _summary:
            _summary(settings)
            return 0
        with ExitStack() as stack:
            run = _Run(settings, stack)
            if command.needs_model:
                return command.work(run, Results(arguments.model)) or 0
            if command.arguments:
                return command.work(run, arguments) or 0
            return command.work(run) or 0
    except KeyboardInterrupt:
        _complain(f"Interrupted.{goes_on}")
        return 130
    except KilledWorker as error:
        _complain(f"{error}\nMost likely its memory did not suffice. {MORE_MEMORY}{goes_on}")
        return 1
    except (ValueError, OSError, ImportError) as error:
        if arguments.debug:
            raise
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        _complain(f"{error}{notes}")
        return 1


def _table(scores: Evaluation) -> str:
    rows: list[tuple[str, ...]] = [("", "images", "accuracy", "top-5", "mean recall", "log loss")]
    for name, s in scores.scores.items():
        shares = (f"{value:.1%}" for value in (s.accuracy, s.top5, s.mean_recall))
        rows.append((name, f"{s.n_images}", *shares, f"{s.log_loss:.3f}"))
    return _columns(rows, right={1, 2, 3, 4, 5})


def _compared_table(compared: Comparison) -> str:
    """Accuracies, validation loss, distances from the optimum, and what it took."""
    splits = list(compared.contenders[0].accuracy)
    rows: list[tuple[str, ...]] = [
        ("", *splits, "val. loss", "objective", "above", "kernel away", "seconds", "MiB moved")
    ]
    rows += [
        (
            c.name,
            *(f"{c.accuracy[split]:.1%}" for split in splits),
            f"{c.log_loss['validation']:.4f}" if "validation" in c.log_loss else "",
            f"{c.objective:.5f}",
            f"{c.objective_gap:.3%}",
            f"{c.kernel_distance:.2%}",
            f"{c.seconds:.1f}",
            f"{c.bytes_moved / 2**20:,.0f}",
        )
        for c in compared.contenders
    ]
    return _columns(rows, right=set(range(1, len(rows[0]))))


def _trials_table(found: Tuning) -> str:
    """Trials, the best first, and what they had when they ended."""
    rows: list[tuple[str, ...]] = [
        ("", "learning rate", "l2", "dropout", "frequency", "epochs", "val. loss", "validation",
         "train")
    ]  # fmt: skip
    for number, trial in enumerate(found.trials, 1):
        options = (trial.learning_rate, trial.l2, trial.dropout, trial.averaging_frequency)
        scores: tuple[str, ...] = ("diverged", "", "", "")
        if not trial.diverged:
            last = trial.rungs[-1]
            accuracies = (f"{a:.1%}" for a in (last.validation_accuracy, last.train_accuracy))
            scores = (f"{last.epoch:.3g}", f"{last.validation_loss:.5g}", *accuracies)
        rows.append((f"{number}", *(f"{value:g}" for value in options), *scores))
    return _columns(rows, right=set(range(len(rows[0]))))


def _columns(rows: Sequence[Sequence[str]], right: set[int]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _complain(text: str) -> None:
    sys.stderr.write(f"error: {text}\n")


class _ToStderr(logging.StreamHandler[Any]):
    """Writes to what is stderr now: a progress bar takes its place while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _log_to_stderr() -> None:
    ours = logging.getLogger("dtl")
    if not ours.handlers:
        handler = _ToStderr()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
    # Dask's own lines tell an operator of the cluster more than a user of it.
    logging.getLogger("distributed").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
