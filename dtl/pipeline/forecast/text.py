"""A forecast as an operator reads it in the terminal."""

from __future__ import annotations

import resource

from dtl import config, storage
from dtl.features.columns import ROW_BYTES
from dtl.pipeline.forecast.costs import (
    Forecast,
    Rates,
    Work,
    count_rows_in_memory,
    find_limits,
    predict,
    predict_round,
)
from dtl.pipeline.forecast.measuring import Measured
from dtl.pipeline.tables import align_columns

_WORKERS = (10, 100, 1000)


def format_forecast(measured: Measured, options: config.Config) -> str:
    """Lay out what a run would do, how long it takes, and where it stops scaling."""
    work, rates = measured.work, measured.rates
    now = predict(work, rates)
    done = ", ".join(measured.done) or "nothing"
    parts = [
        f"Dry run: nothing was written to {options.out}. Done before: {done}.",
        "\n".join(
            [
                align_columns(_list_stages(measured, options, now), right={2}),
                *([f"* with made-up rows {measured.where}"] if measured.where else []),
            ]
        ),
        align_columns(_list_amounts(measured, options), right=set()),
    ]
    if work.n_pending or work.trains:
        parts.append(_list_sizes(work, rates))
    return "\n\n".join(parts)


def _list_stages(
    measured: Measured, options: config.Config, now: Forecast
) -> list[tuple[str, str, str, str]]:
    work, rates = measured.work, measured.rates
    places = {"local": "this machine", "yarn": "YARN"}
    place = places.get(options.cluster.address, "the cluster")
    cluster = f"{_count(rates.n_workers, 'worker')} on {place}, " if rates.n_workers else ""
    rows = [
        ("", "what is left", "about", "from"),
        ("start", f"{cluster}a list of {work.n_images:,} images", format_s(now.start_s),
         "measured just now"),
    ]  # fmt: skip
    if work.n_pending:
        computed = f"{1000 * rates.image_s:.0f} ms an image, of {measured.n_tried} computed now"
        left = f"{work.n_pending:,} images in {_count(work.n_chunks, 'chunk')}"
        rows.append(("features", left, format_s(now.features_s), computed))
    if work.trains:
        round_ms = 1000 * predict_round(work, rates, now.n_workers)
        left = (
            f"{_count(work.n_rounds, 'round')} of {work.steps_per_round:.3g} steps, "
            f"{_count(work.n_shards, 'replica')}"
        )
        if options.train.solver == "lbfgs":
            left = f"L-BFGS, if it takes {work.n_rounds} iterations"
        of_round = f"{round_ms:.0f} ms a round, rehearsed*"
        rows.append(("training", left, format_s(now.train_s), of_round))
    if work.evaluates:
        rows.append(
            ("evaluation", f"{work.n_images:,} rows", format_s(now.evaluate_s), "rehearsed*")
        )
    if work.reports:
        rows.append(("report", "report.html", format_s(now.report_s), "rehearsed*"))
    return [*rows, ("all", "", format_s(now.total_s), "")]


def _list_amounts(measured: Measured, options: config.Config) -> list[tuple[str, str]]:
    work, rates, size = measured.work, measured.rates, storage.format_bytes
    rows = []
    if work.n_pending:
        written = work.n_pending * (rates.stored_bytes + ROW_BYTES)
        free = storage.find_free_bytes(options.out)
        has = f"{size(free)} free" if free is not None else "free space not known"
        rows += [
            ("reads", f"{size(work.n_pending * work.image_bytes)} from "
             f"{config.hide(options.images.url)}"),
            ("writes", f"{size(written)} to {config.hide(options.out)}; {has}"),
        ]  # fmt: skip
    if rates.n_workers:
        parts = [f"{size(rates.memory_bytes)} for the network"] if rates.memory_bytes else []
        if work.trains and options.train.features_in == "memory":
            held = count_rows_in_memory(work, rates, rates.n_workers)
            parts.append(f"{size(held)} for rows while it trains")
        limit = f", of {size(rates.limit_bytes)}" if rates.limit_bytes else ""
        rows.append(("workers", f"each takes {' and '.join(parts) or 'little'}{limit}"))
        rows.append(("driver", f"{size(_peak_bytes())} so far"))
    return rows or [("reads", "what tells that all is done")]


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _list_sizes(work: Work, rates: Rates) -> str:
    heads = ("workers", "all", "features", "training", "images/s", "reading")
    rows = [heads]
    for n in sorted({rates.n_workers, *_WORKERS}):
        found = predict(work, rates, n)
        busy = found.features_s - rates.load_s - rates.first_s
        per_s = work.n_pending / busy if work.n_pending else 0.0
        rows.append((
            f"{n:,}", format_s(found.total_s), format_s(found.features_s), format_s(found.train_s),
            f"{per_s:,.0f}", f"{storage.format_bytes(per_s * work.image_bytes)}/s",
        ))  # fmt: skip
    shown = [0, 1, *([2] if work.n_pending else []), *([3] if work.trains else [])]
    shown += [4, 5] if work.n_pending else []
    table = align_columns([[row[k] for k in shown] for row in rows], right=set(range(6)))
    limits = [
        f"  {limit.stage} from {_count(limit.n_workers, 'worker')} on: {limit.reason}"
        for limit in find_limits(work, rates)
    ]
    head = "With more workers like those measured, where the storage gives what they read:"
    return "\n".join([head, table, "No quicker", *limits])


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'s' * (n != 1)}"


def format_s(seconds: float) -> str:
    """Return a time as people say it.

    Examples
    --------
    >>> [format_s(s) for s in (0.0, 3.21, 61, 5000, 200_000)]
    ['', '3.2 s', '1 min 1 s', '1 h 23 min', '55 h 33 min']
    """
    if seconds <= 0:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return "{} h {} min".format(*divmod(minutes, 60))
