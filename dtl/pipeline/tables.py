"""Tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from dtl.evaluation.values import Evaluation
from dtl.training.values import Comparison, Tuning


def format_scores(scores: Evaluation) -> str:
    """Lay out the scores of each split."""
    rows: list[tuple[str, ...]] = [("", "images", "accuracy", "top-5", "mean recall", "log loss")]
    for name, s in scores.scores.items():
        shares = (f"{value:.1%}" for value in (s.accuracy, s.top5, s.mean_recall))
        rows.append((name, f"{s.n_images}", *shares, f"{s.log_loss:.3f}"))
    return align_columns(rows, right={1, 2, 3, 4, 5})


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
