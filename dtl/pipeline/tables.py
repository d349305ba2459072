"""Tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from dtl.checking.values import ALL, APART, DUPLICATE, LABEL, LEAK, PERHAPS, Check
from dtl.evaluation.metrics import find_interval
from dtl.evaluation.pairing import Pairing
from dtl.evaluation.values import Evaluation, SplitScores
from dtl.features.values import Description
from dtl.training.values import Comparison, Probe, Tuning

_NOT_ODD = (LABEL, LEAK, PERHAPS, DUPLICATE)
_MOST_NAMED = 5


_SCORES = ("images", "accuracy", "95% interval", "top-5", "mean recall", "log loss")


def _list_scores(s: SplitScores) -> tuple[str, ...]:
    interval = _format_interval(round(s.accuracy * s.n_images), s.n_images)
    shares = (f"{s.accuracy:.1%}", interval, f"{s.top5:.1%}", f"{s.mean_recall:.1%}")
    return (f"{s.n_images}", *shares, f"{s.log_loss:.3f}")


def format_scores(scores: Evaluation) -> str:
    """Lay out the scores of each split."""
    rows = [("", *_SCORES), *((name, *_list_scores(s)) for name, s in scores.scores.items())]
    return "\n".join([align_columns(rows, right={*range(1, 7)}), *_list_certainty(scores)])


def _list_certainty(scores: Evaluation) -> list[str]:
    """List how far probabilities and sets hold, on the last split that was scored."""
    name, s = [*scores.scores.items()][-1]
    if "after" not in s.reliability:
        return []
    before, after = s.reliability["before"], s.reliability["after"]
    chance = f"{after.error_by_chance:.1%} by chance"
    return [
        f"\nTemperature {scores.temperature:.2f}: calibration error on {name} images "
        f"{before.error:.1%} before, {after.error:.1%} after ({chance})",
        *(
            f"Sets for {sets.coverage:.0%}: hold the right class of "
            f"{sets.n_covered / s.n_images:.1%} ({_format_interval(sets.n_covered, s.n_images)}) "
            f"of {name} images, with {sets.n_members / s.n_images:.2f} classes on average"
            for sets in s.sets
        ),
    ]


def _format_interval(n: int, n_images: int) -> str:
    low, high = find_interval(n, n_images)
    return f"{100 * low:.1f}-{high:.1%}"


def format_runs(evaluations: Sequence[Evaluation], names: Sequence[str]) -> str:
    """Lay out the scores of runs, a line for each split."""
    rows: list[tuple[str, ...]] = [("", "", *_SCORES)]
    for name, evaluation in zip(names, evaluations, strict=True):
        for k, (split, s) in enumerate(evaluation.scores.items()):
            rows.append((name if k == 0 else "", split, *_list_scores(s)))
    return align_columns(rows, right={*range(2, 8)})


def format_pairings(pairings: Sequence[Pairing], names: Sequence[str]) -> str:
    """Say how each run does on the same images as the first: the difference, and its p-value."""
    titles = ("images", "points", "95% interval", f"only {names[0]}", "only it", "p")
    rows: list[tuple[str, ...]] = [(f"against {names[0]}", *titles)]
    for pairing, name in zip(pairings, names[1:], strict=True):
        found: tuple[str, ...] = ("0", "", "", "", "", "")
        if pairing.n_common:
            low, high = (f"{100 * end:+.1f}" for end in pairing.interval)
            first, second = pairing.n_only
            found = (
                f"{pairing.n_common}", f"{100 * pairing.difference:+.1f}", f"{low} to {high}",
                f"{first}", f"{second}", f"{pairing.p_value:.2g}",
            )  # fmt: skip
        rows.append((name, *found))
    return align_columns(rows, right={*range(1, 7)})


def format_comparison(compared: Comparison) -> str:
    """Lay out accuracies, validation loss, distances from the optimum, and costs."""
    splits = list(compared.contenders[0].accuracy)
    costs = ("objective", "above", "kernel away", "seconds", "MiB moved")
    rows: list[tuple[str, ...]] = [("", *splits, "val. loss", *costs)]
    for c in compared.contenders:
        accuracies = (f"{c.accuracy[split]:.1%}" for split in splits)
        loss = f"{c.log_loss['validation']:.4f}" if "validation" in c.log_loss else ""
        distances = (f"{c.objective:.5f}", f"{c.objective_gap:.3%}", f"{c.kernel_distance:.2%}")
        moved = f"{c.bytes_moved / 2**20:,.0f}"
        rows.append((c.name, *accuracies, loss, *distances, f"{c.seconds:.1f}", moved))
    table = align_columns(rows, right=set(range(1, len(rows[0]))))
    best = compared.contenders[0]
    intervals = [
        f"{split} {_format_interval(round(best.accuracy[split] * n), n)}"
        for split, n in compared.n_images.items()
    ]
    return f"{table}\n95% intervals of {best.name}: {', '.join(intervals)}" if intervals else table


def format_probe(found: Probe) -> str:
    """Lay out accuracies by method and number of training images."""
    sizes = sorted({r.n_per_class for r in found.results if r.n_per_class})
    rows: list[tuple[str, ...]] = [("", "", "", *map(str, sizes), "all")]
    ways = dict.fromkeys((r.layer, r.normalize, r.method) for r in found.results)
    of = {(r.layer, r.normalize, r.method, r.n_per_class): r for r in found.results}
    for way in ways:
        cells = []
        for size in (*sizes, 0):
            r = of[*way, size]
            spread = f"± {100 * (r.high - r.accuracy):.1f}" if size else ""
            cells.append(f"{r.accuracy:.1%} {spread}".strip())
        rows.append((*way, *cells))
    return align_columns(rows, right=set(range(3, len(rows[0]))))


def format_trials(found: Tuning) -> str:
    """Lay out trials, the best first, and their scores when they ended."""
    titles = ("learning rate", "l2", "dropout", "frequency", "epochs", "val. loss", "validation")
    n = found.n_validation
    rows: list[tuple[str, ...]] = [("", *titles, *["95% interval"] * bool(n), "train")]
    for number, trial in enumerate(found.trials, 1):
        options = (trial.learning_rate, trial.l2, trial.dropout, trial.averaging_frequency)
        scores: tuple[str, ...] = ("diverged", *[""] * (3 + bool(n)))
        if not trial.diverged:
            last = trial.rungs[-1]
            accuracy = last.validation_accuracy
            interval = [_format_interval(round(accuracy * n), n)] if n else []
            scores = (f"{last.epoch:.3g}", f"{last.validation_loss:.5g}", f"{accuracy:.1%}")
            scores = (*scores, *interval, f"{last.train_accuracy:.1%}")
        rows.append((f"{number}", *(f"{value:g}" for value in options), *scores))
    return align_columns(rows, right=set(range(len(rows[0]))))


def format_check(found: Check) -> str:
    """Say what is wrong with the images, in the figures that matter."""
    n = found.n_issues.get(LABEL, 0)
    lines = [
        f"{n:,} of {found.n_judged:,} labels are probably wrong; {found.n_wrong:,.0f} are expected "
        "to be"
    ]
    for split, accuracies in found.accuracies.items():
        by_name = {a.of: a for a in accuracies}
        if APART in by_name and (apart := by_name[APART]).n_images:
            every = by_name[ALL]
            lines.append(
                f"{every.n_images - apart.n_images:,} of {every.n_images:,} {split} images have a "
                f"near-twin in training; without them accuracy is {100 * apart.value:.1f} instead "
                f"of {100 * every.value:.1f} %"
            )
    if LEAK in found.n_issues and not found.accuracies:
        lines.append(f"{found.n_issues[LEAK]:,} held-out images have a near-twin in training")
    if PERHAPS in found.n_issues:
        lines.append(f"{found.n_issues[PERHAPS]:,} more have perhaps one: look at them")
    if DUPLICATE in found.n_issues:
        lines.append(f"{found.n_issues[DUPLICATE]:,} other images are near-duplicates")
    odd = [f"{n:,} {kind}" for kind, n in found.n_issues.items() if kind not in _NOT_ODD]
    lines += [f"odd images: {', '.join(odd)}"] if odd else []
    if found.overlaps:
        o = found.overlaps[0]
        lines.append(
            f"{len(found.overlaps):,} pairs of classes overlap, most of all {o.one} and {o.other}"
        )
    names = {
        "look like two": [d.name for d in found.double],
        "have too few images": [c.name for c in found.small],
    }
    for what, chosen in names.items():
        if chosen:
            more = ", ..." if len(chosen) > _MOST_NAMED else ""
            lines.append(f"classes that {what}: {', '.join(chosen[:_MOST_NAMED])}{more}")
    rows: list[tuple[str, ...]] = [("accuracy", "", "images")]
    tables = {"held-out heads": found.held_out, **found.accuracies}
    rows += [
        (name if k == 0 else "", f"{a.value:.1%}", f"{a.n_images}", a.of)
        for name, accuracies in tables.items()
        for k, a in enumerate(accuracies)
        if a.n_images
    ]
    rows[0] += ("",)
    if len(rows) > 1:
        lines += ["", align_columns(rows, right={1, 2})]
    return "\n".join(lines)


def format_layers(found: Description) -> str:
    """Lay the layers of a network out: what each puts out and costs, and whether it is used."""
    rows: list[tuple[str, ...]] = [("layer", "kind", "output", "parameters", "GFLOP", "MiB", "")]
    for layer in found.layers:
        note = "frozen" if layer.name in found.used else "not used"
        rows.append((
            layer.name, layer.kind, " x ".join(str(n or "?") for n in layer.output_shape),
            f"{layer.n_parameters:,}", "?" if layer.flop is None else f"{layer.flop / 1e9:.2f}",
            "?" if layer.output_bytes is None else f"{layer.output_bytes / 2**20:.1f}",
            "cut" if layer.name in found.n_features else note,
        ))  # fmt: skip
    return align_columns(rows, right={3, 4, 5})


def align_columns(rows: Sequence[Sequence[str]], right: set[int]) -> str:
    """Lay rows out in columns, some of them aligned to the right.

    By hand: rich.table takes as many lines, wraps at 80 columns in a pipe unless it is told a
    width, and takes 0.1 s to import.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
