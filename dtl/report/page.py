"""The page that a run ends with: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import itertools
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import tomli_w
from bokeh.palettes import Category10
from bokeh.resources import Resources
from markupsafe import Markup
from numpy.typing import NDArray

from dtl.config import build
from dtl.evaluation.values import Evaluation, SplitScores
from dtl.images.values import SPLITS
from dtl.report.plots import (
    COLORS,
    NEAREST,
    PALEST,
    RIGHT,
    WRONG,
    class_plot,
    confusion_plot,
    confusions,
    fewest_drawn,
    gaps_plot,
    history_plots,
    plot_json,
    rounds_per_bar,
    smoothing_width,
    tuning_plots,
)
from dtl.training.values import Comparison, Round, Tuning

_NOTHING = "\N{EN DASH}"
_MOST_CONFUSIONS = 12
_MOST_REASONS = 20
_MOST_PATHS = 10


@dataclass(frozen=True, eq=False)
class ReportInput:
    """What a report shows.

    Parameters
    ----------
    config, provenance : mapping
        Nested: the configuration as `dtl.config.to_dict` gives it, and JSON's types.
    class_counts : dict of split name to (n_classes,) int64
        Images of each class.
    history : sequence of Round
        Empty if nothing was trained.
    pictures : dict of path to bytes
        Small JPEGs of the evaluation's mistakes; some may be missing.
    skipped, left_out : sequence of (path, reason)
        Images that could not be read; files that are no images of a class.
    n_duplicates, n_conflicting : int
        Files with the content of another, and those of them that are in another class than it.
    timings : dict of stage to {"seconds": float, "n": int, "unit": str}
    warnings : sequence of str
        What a reader must know before any number.
    tuning : Tuning, optional
        The search for options on the same features.
    """

    title: str
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    class_names: tuple[str, ...]
    class_counts: Mapping[str, NDArray[np.int64]]
    history: Sequence[Round]
    evaluation: Evaluation
    pictures: Mapping[str, bytes]
    skipped: Sequence[tuple[str, str]]
    left_out: Sequence[tuple[str, str]]
    n_duplicates: int
    n_conflicting: int
    timings: Mapping[str, Mapping[str, Any]]
    warnings: Sequence[str] = ()
    tuning: Tuning | None = None


def render(report: ReportInput) -> str:
    """Lay a report out as one HTML file.

    The same input gives the same text. The page fetches nothing: scripts, styles and pictures are
    in it, and its content security policy forbids all else.

    Raises
    ------
    ValueError
        If no split was evaluated, or the configuration is none.
    """
    scores = report.evaluation.scores
    split = next((s for s in reversed(SPLITS) if s in scores), None)
    if split is None:
        raise ValueError("A report needs the scores of a split. Received: none. Evaluate the head.")
    main = scores[split]
    config = build(report.config)
    plots = {
        "classes": class_plot(report.class_counts, report.class_names),
        "confusion": confusion_plot(main, report.class_names),
    }
    if report.history:
        plots |= history_plots(report.history, config.train.averaging_frequency)
    exact = config.train.solver == "lbfgs"
    if exact:
        plots.pop("rate", None)
    if report.tuning:
        plots |= tuning_plots(report.tuning)
    return _page(
        "report.html",
        plots,
        report=report,
        tuning=report.tuning,
        config=config,
        exact=exact,
        toml=tomli_w.dumps(report.config),
        ramps={"right": RIGHT, "wrong": WRONG},
        split=split,
        scores=scores,
        main=main,
        n_images=sum(int(counts.sum()) for counts in report.class_counts.values()),
        interval=wilson_interval(round(main.accuracy * main.n_images), main.n_images),
        commonest=_commonest(main),
        confusions=confusions(main)[:_MOST_CONFUSIONS],
        class_rows=_class_rows(report, main),
        smoothed_over=smoothing_width(report.history),
        pictures={path: b64encode(jpeg).decode() for path, jpeg in report.pictures.items()},
        skipped=_by_reason(report.skipped),
        left_out=_by_reason(report.left_out),
        most_reasons=_MOST_REASONS,
        fewest_drawn=fewest_drawn(main),
        rounds_per_bar=rounds_per_bar(report.history),
        log_classes=math.log(len(report.class_names)),
    )


def render_comparison(comparison: Comparison, title: str) -> str:
    """Lay a comparison of ways of training out as one HTML file, like a report.

    Parameters
    ----------
    comparison : Comparison
        The exact optimum first.
    title : str
        What the photographs are called.
    """
    names = [contender.name for contender in comparison.contenders]
    turns = itertools.cycle(Category10[10])
    line_colors = {name: next(turns) for name in names}
    return _page(
        "compare.html",
        {"gaps": gaps_plot(comparison, line_colors)},
        comparison=comparison,
        title=title,
        line_colors=line_colors,
        nearest=NEAREST,
        settings=tomli_w.dumps({k: comparison.provenance[k] for k in ("compare", "train")}),
    )


def render_tuning(tuning: Tuning, title: str) -> str:
    """Lay a search for options out as one HTML file, like a report.

    Parameters
    ----------
    tuning : Tuning
    title : str
        What the photographs are called.
    """
    return _page(
        "tune.html",
        tuning_plots(tuning),
        tuning=tuning,
        title=title,
        settings=tomli_w.dumps({k: tuning.provenance[k] for k in ("tune", "train")}),
    )


def _page(template: str, plots: Mapping[str, Any], **shown: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dtl.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Bokeh defines an object where it is first met, so the order of keys has a meaning.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.filters |= {"number": _number, "duration": _duration}
    return environment.get_template(template).render(
        colors=COLORS,
        penalties=(RIGHT[PALEST], RIGHT[-1]),
        bokeh=Markup(Resources(mode="inline", components=["bokeh"]).render_js()),
        plots={name: plot_json(plot, name) for name, plot in plots.items()},
        **shown,
    )


# --- numbers -------------------------------------------------------------------------------------


def wilson_interval(n_right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of which `n_right` of `n` were seen.

    References
    ----------
    Wilson (1927), "Probable inference, the law of succession, and statistical inference".

    Examples
    --------
    >>> [round(bound, 3) for bound in wilson_interval(8, 10)]
    [0.49, 0.943]
    """
    z = 1.959964
    share = n_right / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _commonest(scores: SplitScores) -> tuple[str, float]:
    """The class that most images have, and the accuracy of always answering it."""
    name = max(scores.classes, key=lambda k: scores.classes[k]["n_images"])
    return name, scores.classes[name]["n_images"] / scores.n_images


def _class_rows(report: ReportInput, scores: SplitScores) -> list[dict[str, Any]]:
    """Classes from worst to best."""
    taken_for: dict[str, tuple[str, int]] = {}
    names = report.class_names
    for true, predicted, n, _ in confusions(scores):
        taken_for.setdefault(names[true], (names[predicted], n))
    n_train = report.class_counts.get(SPLITS[0], np.zeros(len(names), np.int64))
    rows = [
        {"name": name, "n_train": int(n), "taken_for": taken_for.get(name), **scores.classes[name]}
        for name, n in zip(names, n_train, strict=True)
        if name in scores.classes
    ]
    return sorted(rows, key=lambda row: (row["f1"], row["recall"], row["name"]))


def _by_reason(files: Sequence[tuple[str, str]]) -> list[tuple[str, int, list[str]]]:
    """Reason, number of files and the first paths; the most frequent reason first."""
    groups: dict[str, list[str]] = {}
    for path, reason in files:
        groups.setdefault(reason, []).append(path)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [(reason, len(paths), sorted(paths)[:_MOST_PATHS]) for reason, paths in ordered]


# --- text ----------------------------------------------------------------------------------------


def _number(value: float, spec: str) -> str:
    return format(value, spec).replace("%", "\u202f%") if math.isfinite(value) else _NOTHING


def _duration(seconds: float) -> str:
    """A time that is easy to read.

    Examples
    --------
    >>> [_duration(s) for s in (0.25, 12.3, 125, 7265)]
    ['0.25 s', '12.3 s', '2 min 5 s', '2 h 1 min']
    """
    if not math.isfinite(seconds):
        return _NOTHING
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"
