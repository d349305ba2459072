"""Tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from dtl.evaluation.metrics import find_interval
from dtl.evaluation.values import Evaluation
from dtl.training.values import Comparison, Tuning


def format_scores(scores: Evaluation) -> str:
    """Lay out the scores of each split."""
    titles = ("images", "accuracy", "95% interval", "top-5", "mean recall", "log loss")
    rows: list[tuple[str, ...]] = [("", *titles)]
    for name, s in scores.scores.items():
        interval = _format_interval(round(s.accuracy * s.n_images), s.n_images)
        shares = (f"{s.accuracy:.1%}", interval, f"{s.top5:.1%}", f"{s.mean_recall:.1%}")
        rows.append((name, f"{s.n_images}", *shares, f"{s.log_loss:.3f}"))
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
    return align_columns(rows, right=set(range(1, len(rows[0]))))


def format_trials(found: Tuning) -> str:
    """Lay out trials, the best first, and their scores when they ended."""
    titles = ("learning rate", "l2", "dropout", "frequency", "epochs", "val. loss", "validation")
    rows: list[tuple[str, ...]] = [("", *titles, "train")]
    for number, trial in enumerate(found.trials, 1):
        options = (trial.learning_rate, trial.l2, trial.dropout, trial.averaging_frequency)
        scores: tuple[str, ...] = ("diverged", "", "", "")
        if not trial.diverged:
            last = trial.rungs[-1]
            accuracies = (f"{a:.1%}" for a in (last.validation_accuracy, last.train_accuracy))
            scores = (f"{last.epoch:.3g}", f"{last.validation_loss:.5g}", *accuracies)
        rows.append((f"{number}", *(f"{value:g}" for value in options), *scores))
    return align_columns(rows, right=set(range(len(rows[0]))))


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
