"""The stages, each done only where its result is not there yet."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from dtl import storage
from dtl.checking import relabel
from dtl.checking import spec as check_spec
from dtl.checking.values import Check
from dtl.cluster import processors
from dtl.config.provenance import differences
from dtl.evaluation.values import N_MISTAKES, Evaluation, Occlusion
from dtl.features import splitting
from dtl.features.store import FeatureStore
from dtl.head.model import Head
from dtl.images import listing, split
from dtl.images.left_out import describe_empty_folders
from dtl.images.values import ImageList
from dtl.pipeline.results import Results
from dtl.pipeline.run import Run
from dtl.training.checkpoint import Checkpoint, resume
from dtl.training.spec import TrainingSpec, continues
from dtl.training.values import Comparison, Probe, Round, Tuning

log = logging.getLogger("dtl.pipeline")

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Stage = Callable[Concatenate[Run, _P], _T]
_Stored = TypeVar("_Stored", Check, Comparison, Evaluation, Head, Occlusion, Probe, Tuning)


def _stage(name: str) -> Callable[[_Stage[_P, _T]], _Stage[_P, _T]]:
    """Note in a run's journal that a stage goes on."""

    def decorate(function: _Stage[_P, _T]) -> _Stage[_P, _T]:
        @functools.wraps(function)
        def call(run: Run, /, *args: _P.args, **options: _P.kwargs) -> _T:
            with run.journal.stage(name):
                return function(run, *args, **options)

        return call

    return decorate


@_stage("featurize")
def featurize(run: Run, *, splits: bool = False) -> FeatureStore:
    """List the images and compute their features, after all that can be checked before.

    With `splits`, the list is split, too, to refuse what a later stage would.
    """
    c, results, spec = run.options, run.results, run.extraction
    run.check_ticket()
    started = time.monotonic()
    with run.journal.stage("list"):
        listed = listing.list_images(c.images, c.seed)
    listing_s = time.monotonic() - started
    if splits:
        split.assign_splits(listed, c.split, c.seed)
    store = run.find_store(listed)
    run.begin()
    if store is not None and run.grows:
        store = _take_in(run, store, listed)
    if store is not None and c.retry_skipped and not c.repair:
        _retry_skipped(run, store, listed)
    # A repair reads what may be damaged, and takes no time that counts as the stage's.
    n_before = _count_done(results) if store is not None and not c.repair else 0
    if store is not None and not c.repair and n_before == store.n_images:
        store.check_skipped(c.images.max_skipped)
        log.info("features: done before, %d images", store.n_present)
        return store
    from dtl.features import featurization  # Dask, which a finished run does not need

    run.check_worker_memory()
    client = run.client
    run.check_workers()
    results.add_timing("list", listing_s, len(listed), "images")
    started = time.monotonic()

    def keep_timing() -> None:
        if c.repair:
            return
        seconds, n = time.monotonic() - started, _count_done(results) - n_before
        results.add_timing("featurize", seconds, n, "images", add=n_before > 0)

    try:
        store = featurization.featurize(
            results.features, listed, spec, client, overwrite=c.overwrite, repair=c.repair
        )
    except OSError:
        raise  # the storage may be gone
    except BaseException as error:
        try:
            keep_timing()
        except Exception as another:
            error.add_note(f"Then its time could not be stored: {another}")
        raise
    keep_timing()
    return store


def _take_in(run: Run, store: FeatureStore, listed: ImageList) -> FeatureStore:
    """Give a store the rows of another list; remove what was found out on those that it had."""
    from dtl.features import growth

    attrs = {"root": listed.root, **growth.describe_left_out(listed)}
    made_of = store.attrs["settings"]
    store = growth.take_in(store, listed, attrs, run.options.images, lambda: run.client)
    if store.attrs["settings"] != made_of:
        run.results.remove_outdated()
    return store


def _retry_skipped(run: Run, store: FeatureStore, listed: ImageList) -> None:
    """Make chunks pending in which a skipped image can be read now; remove what followed."""
    from dtl.features import growth, repair

    store.write_places(growth.arrange(store, listed))
    chunks = repair.find_readable(store, listed.root, run.options.images, run.client)
    if not chunks:
        log.info("no skipped image can be read now")
        return
    forget_chunks(run, store, chunks)


def forget_chunks(run: Run, store: FeatureStore, chunks: list[int]) -> None:
    """Make chunks pending of which other images can be read now; remove what followed from them."""
    log.info("%d chunks are computed again, with images that can be read now", len(chunks))
    run.results.remove_trained()
    store.forget_split()
    for chunk in chunks:
        store.forget_chunk(chunk)


@_stage("train")
def train(run: Run, store: FeatureStore) -> Head:
    """Split the images and train a head."""
    c, results = run.options, run.results
    splitting.split_images(store, c.split, c.seed)
    spec = _go_on(run, run.training_spec(store))
    stored = results.head()
    if stored is not None and continues(stored, store):
        log.info("training again, for there are other images than the head was trained on")
    elif (head := reuse("training", stored, spec.provenance)) is not None:
        return head
    earlier = results.history() if spec.config.start_from == results.head_before else []
    started = time.monotonic()
    # A checkpoint that cannot be used is refused before a cluster is started.
    resume(results.checkpoint, spec.provenance, Checkpoint.from_bytes, overwrite=c.overwrite)
    from dtl.training import trainer

    trained = trainer.train(spec, run.client, checkpoint=results.checkpoint, overwrite=c.overwrite)
    _provide_novelty(run, spec)
    results.write_head(trained.head, trained.history, trained.other, c.train.keep)
    n_rounds = len(trained.history)
    results.add_timing("train", time.monotonic() - started, n_rounds, "rounds")
    if earlier:
        _tell_gain(earlier, trained.history[0])
    return trained.head


def _provide_novelty(run: Run, spec: TrainingSpec) -> None:
    """Measure how unlike the training images others are, unless that is known."""
    from dtl.neighbours import novelty

    stored, layer = run.results.novelty(), spec.layer
    if stored is None or differences(novelty.describe(spec.store, layer), stored.provenance):
        run.results.write_novelty(novelty.fit_novelty(spec.store, layer, run.client))


def _go_on(run: Run, spec: TrainingSpec) -> TrainingSpec:
    """Start from the head before, if there is one of the same store before that had grown.

    Averaging does so only where no class is new. Some features hardly vary within few classes, and
    the weights of these are too large among more: ten lists of ever more classes cost 2 points of
    accuracy. L-BFGS ends at the one optimum from anywhere, and sooner from near.
    """
    results, config, before = run.results, spec.config, run.results.head_before
    head = results.head()
    if config.start_from or config.hidden_start == "network" or head is None:
        return spec
    going_on = replace(spec, config=replace(config, start_from=before))
    fits = (head.n_units, head.normalize) == (config.hidden_units, config.normalize)
    fits = fits and head.provenance["layer"] == spec.layer
    if fits and continues(head, spec.store):
        new = {*spec.store.class_names} - {*head.class_names}
        if new and config.solver == "averaging":
            log.info("training starts anew, for the head before lacks %d classes", len(new))
            return spec
        results.keep_head()
        return going_on
    # It may be of this store as it is, and have been trained further from the one before.
    started_from = head.provenance["start_sha256"]
    if started_from and storage.exists(before) and started_from == storage.sha256(before):
        return going_on
    return spec


def _tell_gain(earlier: list[Round], first: Round) -> None:
    """Say how far the training before had come with what this one began with."""
    name = "train_loss" if np.isnan(first.validation_loss) else "validation_loss"
    losses = [getattr(r, name) for r in earlier]
    reached = getattr(first, name)
    n_needed = next((k for k, loss in enumerate(losses, 1) if loss <= reached), len(losses))
    log.info(
        "training started from the head before: after its first round the loss was %.4f, for which "
        "the training before needed %d of its %d rounds",
        reached, n_needed, len(losses),
    )  # fmt: skip


@_stage("evaluate")
def evaluate(run: Run, store: FeatureStore, head: Head) -> Evaluation:
    """Score the head."""
    results = run.results
    wanted = {"head_sha256": head.fingerprint, "n_mistakes": N_MISTAKES}
    scores = reuse("evaluation", results.evaluation(), wanted)
    if scores is not None:
        return scores
    from dtl.evaluation import scoring

    started = time.monotonic()
    scores = scoring.evaluate(store, head, run.client)
    results.write_evaluation(scores)
    n_images = sum(s.n_images for s in scores.scores.values())
    results.add_timing("evaluate", time.monotonic() - started, n_images, "images")
    return scores


@_stage("check")
def check(run: Run, store: FeatureStore, head: Head | None) -> Check:
    """Look for faults of the images; of a head that is given, say what they do to its scores."""
    c, results = run.options, run.results
    wanted = check_spec.provenance(store, c.layer, c.check, c.seed)
    found = reuse("check", results.check(), wanted)
    if found is not None and found.n_unread:
        log.info("check again, for images of %d pairs could not be read before", found.n_unread)
        found = None
    sha256 = head.fingerprint if head else ""
    if found is not None and found.head_sha256 == sha256:
        return found
    from dtl.checking import inspection  # Dask and SciPy, which a finished check does not need
    from dtl.pipeline.gather import gather_check
    from dtl.pipeline.pictures import locate_images
    from dtl.report import checkup

    started = time.monotonic()
    if found is None:
        found, issues = inspection.check(
            store,
            c.layer,
            c.check,
            c.seed,
            run.client,
            locate_images(c.images.url, store),
            c.images,
            features_in=c.train.features_in,
        )
    else:
        issues = results.issues()
    accuracies = inspection.measure(store, head, issues, run.client) if head else {}
    found = replace(
        found, head_sha256=sha256, accuracies=accuracies, relabel=results.choose_relabel(c.images)
    )
    results.add_timing("check", time.monotonic() - started, found.n_images, "images")
    table = relabel.make_table(store.images(), issues, c.images)
    page = checkup.render(gather_check(c, store, found, issues))
    results.write_check(found, issues, table, page)
    return found


@_stage("occlude")
def occlude(run: Run, store: FeatureStore, head: Head, scores: Evaluation, n_images: int) -> None:
    """Find out where in the pictures of the first mistakes the decision lies."""
    mistakes = scores.mistakes[:n_images]
    wanted = {"head_sha256": head.fingerprint, "n_images": len(mistakes)}
    if reuse("occlusion", run.results.occlusion(head), wanted) is not None or not mistakes:
        return
    from dtl.evaluation import occlusion
    from dtl.features import extraction
    from dtl.pipeline.pictures import locate_pictures

    c = run.options
    run.check_worker_memory()
    started = time.monotonic()
    extractor = extraction.prepare_as_stored(run.client, run.extraction, store, occlusion.N_PASSES)
    paths = [mistake.path for mistake in mistakes]
    places = locate_pictures(c.images.url or str(store.attrs["root"]), store, paths)
    files = [places[path] for path in paths]
    found = occlusion.occlude(mistakes, files, head, extractor, run.client)
    run.results.write_occlusion(Occlusion(found, wanted))
    n_passes = occlusion.N_PASSES * len(mistakes)
    run.results.add_timing("occlusion", time.monotonic() - started, n_passes, "passes")


def report(run: Run, store: FeatureStore, head: Head, scores: Evaluation) -> None:
    """Write the report, unless there is one: each other stage removes it."""
    url = run.results.report
    if storage.is_file(url) and storage.size(url):
        log.info("report: done before")
        return
    from dtl.pipeline.gather import gather_report
    from dtl.report import page  # Bokeh, which a finished run does not need

    run.journal.save()
    gathered = gather_report(run.results, run.options, store, head, scores)
    storage.write_bytes(url, page.render(gathered).encode())


def reuse(stage: str, stored: _Stored | None, wanted: Mapping[str, Any]) -> _Stored | None:
    """Return a stored result if it has the fingerprint that is wanted now, else None."""
    if stored is None:
        return None
    if found := differences(wanted, stored.provenance):
        log.info("%s again, for the settings differ:\n  %s", stage, "\n  ".join(found))
        return None
    log.info("%s: done before", stage)
    return stored


def list_warnings(store: FeatureStore) -> list[str]:
    """List reasons to trust the scores less.

    Each command on the store prints it, and the report begins with it. It is the only such list: a
    stage that finds something out stores it with the features, and it is put into words here.
    """
    warnings = []
    if store.attrs["weights"] == "random":
        warnings.append(
            f"The network was not trained: {store.fingerprint['network']} has random weights, so "
            "its features are random projections and the scores are far below what ImageNet "
            "weights give. This shows that everything runs, not how good a classifier can be."
        )
    if folders := store.attrs.get("empty_folders"):
        warnings.append(describe_empty_folders(folders))
    if mixture := processors.describe_mixture(store.list_instruction_sets()):
        warnings.append(mixture)
    if refused := store.attrs.get("quantization", {}).get("refused"):
        warnings.append(
            f"The network is not used in int8: {refused}. Its features are in "
            f"{store.fingerprint['precision']}."
        )
    return warnings + splitting.list_unlearnt(store)


def _count_done(results: Results) -> int:
    try:
        return FeatureStore.open(results.features).n_done
    except FileNotFoundError:
        return 0
