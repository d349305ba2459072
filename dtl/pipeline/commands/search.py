"""Several trainings beside each other: compared, or searched for the best."""

from __future__ import annotations

import argparse
import time

from dtl import storage
from dtl.config import hide
from dtl.features import splitting
from dtl.features.store import FeatureStore
from dtl.pipeline.messages import name_flags, print_line
from dtl.pipeline.run import Run
from dtl.pipeline.stages import reuse
from dtl.pipeline.tables import format_comparison, format_trials
from dtl.training import comparison, tuning
from dtl.training.checkpoint import resume


def compare(run: Run, _: argparse.Namespace) -> None:
    """Compare ways of averaging, each against the exact optimum."""
    c, results = run.options, run.results
    comparison.check(c.train, c.compare)
    store = _split_store(run)
    spec = run.training_spec(store)
    wanted = comparison.provenance(spec, c.compare)
    compared = reuse("comparison", results.comparison(), wanted)
    if compared is None:
        from dtl.report import page

        comparison.check_store(spec, c.compare)
        with run.journal.stage("compare"):
            compared = comparison.compare(spec, c.compare, run.client)
        results.write_comparison(compared, page.render_comparison(compared, _name_images(store)))
    print_line(f"{format_comparison(compared)}\n\nPage: {results.comparison_page}")


def tune(run: Run, _: argparse.Namespace) -> None:
    """Search for the options of training that validate best."""
    c, results = run.options, run.results
    tuning.check(c.train, c.tune, c.seed)
    store = _split_store(run)
    spec = run.training_spec(store)
    wanted = tuning.provenance(spec, c.tune)
    found = reuse("tuning", results.tuning(), wanted)
    if found is None:
        from dtl.report import page

        tuning.check_store(spec)
        # A checkpoint that cannot be used is refused before a cluster is started.
        resume(results.tuning_checkpoint, wanted, tuning.Search.from_bytes, overwrite=c.overwrite)
        started = time.monotonic()
        with run.journal.stage("tune"):
            found = tuning.tune(
                spec, c.tune, run.client,
                checkpoint=results.tuning_checkpoint, overwrite=c.overwrite,
            )  # fmt: skip
        seconds = time.monotonic() - started
        results.write_tuning(found, page.render_tuning(found, _name_images(store)))
        results.add_timing("tune", seconds, len(found.trials), "trials")
    chosen = tuning.choose(found, c.train)
    results.write_tuned(chosen)
    hints = "".join(f"\n{name_flags(hint)}" for hint in found.hints)
    print_line(
        f"{format_trials(found)}\n{hints}\n"
        f"Best: --train.learning-rate {chosen.learning_rate} --train.l2 {chosen.l2} "
        f"--train.dropout {chosen.dropout} "
        f"--train.averaging-frequency {chosen.averaging_frequency}\n"
        f"Train with it: dtl train --out {c.out} --config {results.tuned}\n\n"
        f"Page: {results.tuning_page}"
    )


def _name_images(store: FeatureStore) -> str:
    return storage.base_name(hide(store.attrs["root"]))


def _split_store(run: Run) -> FeatureStore:
    store = run.results.store()
    run.claim_folder()
    splitting.split_images(store, run.options.split, run.options.seed)
    return store
