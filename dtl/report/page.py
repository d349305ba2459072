"""Pages of a run: each one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import itertools
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import jinja2
import numpy as np
import tomli_w
from bokeh.palettes import Category10
from bokeh.resources import Resources
from markupsafe import Markup, escape
from numpy.typing import NDArray

from dtl.checking.values import LABEL, Check, Issue
from dtl.cluster.timeline.figures import count
from dtl.cluster.timeline.values import Timeline
from dtl.config import build
from dtl.config.text import printable
from dtl.evaluation.metrics import find_interval
from dtl.evaluation.values import Evaluation, SplitScores
from dtl.images.values import SPLITS
from dtl.report import plots, timeline
from dtl.report.illustrations import (
    MOST_NAMED,
    Illustrations,
    list_cells,
    list_colors,
    list_points,
)
from dtl.training.values import Comparison, Round, Tuning

_NOTHING = "\N{EN DASH}"
_MOST_CONFUSIONS = 12
_MOST_REASONS = 20
_MOST_PATHS = 10
_MOST_LOSSES = 5


@dataclass(frozen=True, eq=False)
class ReportInput:
    """Everything that a report shows.

    Parameters
    ----------
    config : mapping
        The configuration as `dtl.config.to_dict` returns it.
    provenance : mapping
        Nested, of JSON's types.
    class_counts : dict of split name to (n_classes,) int64
        Images of each class.
    history : sequence of Round
        Empty if nothing was trained.
    pictures : dict of path to bytes
        Small JPEGs of the evaluation's mistakes; some may be missing.
    skipped, left_out : sequence of (path, reason)
        Images that could not be read; files that are no images of a class, or the first of them.
    left_out_counts : mapping of reason to int
        How many files are left out for a reason, where not all are named.
    n_duplicates, n_conflicting : int
        Files with the content of another one; those of them whose class is not that one's.
    timings : dict of stage to {"seconds": float, "n": int, "unit": str}
    warnings : sequence of str
        Facts that a reader must know before any number.
    n_lists, n_removed : int
        Lists of images that the features were computed of, one after the other, and images that
        have been removed or changed since.
    n_unlabelled : int
        Images without a label.
    tuning : Tuning, optional
        The search for options on the same features.
    check : Check, optional
        What is wrong with the images, if it was looked for.
    suspects : sequence of Issue
        Its likeliest label errors, whose pictures are among `pictures`.
    illustrations : Illustrations
    timeline : Timeline, optional
        Who did what when, if that was recorded.
    quantization : mapping
        How far the network in int8 is from float32, as the feature store holds it; may be empty.
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
    n_lists: int = 1
    n_removed: int = 0
    n_unlabelled: int = 0
    tuning: Tuning | None = None
    check: Check | None = None
    suspects: Sequence[Issue] = ()
    left_out_counts: Mapping[str, int] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)
    illustrations: Illustrations = field(default_factory=Illustrations)
    timeline: Timeline | None = None


def render(report: ReportInput) -> str:
    """Return a report as one HTML file.

    The same input gives the same text. The page fetches nothing: scripts, styles and pictures are
    in it, and its content security policy forbids all else.

    Raises
    ------
    ValueError
        If no split was evaluated, or the configuration has a key or value that dtl does not know.
    """
    scores = report.evaluation.scores
    split = next((s for s in reversed(SPLITS) if s in scores), None)
    if split is None:
        raise ValueError("A report needs the scores of a split. Received: none. Evaluate the head.")

    main = scores[split]
    config = build(report.config)
    figures = {
        "classes": plots.draw_classes(report.class_counts, report.class_names),
        "confusion": plots.draw_confusions(main, report.class_names),
    }
    if main.reliability:
        figures["reliability"] = plots.draw_reliability(main.reliability)
    if report.history:
        figures |= plots.draw_history(report.history, config.train.averaging_frequency)
    exact = config.train.solver == "lbfgs"
    if exact:
        figures.pop("rate", None)
    if report.tuning:
        figures |= plots.draw_tuning(report.tuning)
    of_time = {}
    if report.timeline:
        drawn, time_shown = timeline.draw(report.timeline)
        figures |= drawn
        of_time = {"time_shown": time_shown, "time_figures": count(report.timeline)}
    return fill(
        "report.html",
        figures,
        report=report,
        tuning=report.tuning,
        config=config,
        exact=exact,
        # Where the options leave it open, the head's fingerprint has what was taken.
        batch_size=report.provenance.get("head", {})
        .get("train", {})
        .get("batch_size", config.train.batch_size),
        toml=_keep_lines(tomli_w.dumps(report.config)),
        ramps={"right": plots.RIGHT, "wrong": plots.WRONG},
        split=split,
        scores=scores,
        main=main,
        check=report.check,
        n_suspects=report.check.n_issues.get(LABEL, 0) if report.check else 0,
        n_images=sum(int(counts.sum()) for counts in report.class_counts.values()),
        interval=find_share_interval(main.accuracy, main.n_images),
        commonest=_find_commonest(main),
        confusions=plots.list_confusions(main)[:_MOST_CONFUSIONS],
        class_rows=_list_classes(report, main),
        smoothed_over=plots.choose_smoothing(report.history),
        pictures={path: b64encode(jpeg).decode() for path, jpeg in report.pictures.items()},
        skipped=_group_by_reason(report.skipped),
        left_out=_group_by_reason(report.left_out, report.left_out_counts),
        most_reasons=_MOST_REASONS,
        fewest_drawn=plots.choose_fewest_drawn(main),
        rounds_per_bar=plots.choose_rounds_per_bar(report.history),
        log_classes=math.log(len(report.class_names)),
        illustrations=report.illustrations,
        illustrated={
            path: b64encode(jpeg).decode()
            for path, jpeg in (report.illustrations.pictures or {}).items()
        },
        points=list_points(report.illustrations, report.class_names),
        class_colors=list_colors(report.class_names),
        most_named=MOST_NAMED,
        list_cells=list_cells,
        kind_colors=timeline.KIND_COLORS,
        lost_color=timeline.LOST,
        most_losses=_MOST_LOSSES,
        add_up=timeline.add_up,
        **of_time,
    )


def render_comparison(comparison: Comparison, title: str) -> str:
    """Return a comparison of ways of training as one HTML file; `title` names the photographs."""
    names = [contender.name for contender in comparison.contenders]
    line_colors = dict(zip(names, itertools.cycle(Category10[10])))
    return fill(
        "compare.html",
        {"gaps": plots.draw_gaps(comparison, line_colors)},
        comparison=comparison,
        title=title,
        line_colors=line_colors,
        nearest=plots.NEAREST,
        settings=_keep_lines(
            tomli_w.dumps({k: comparison.provenance[k] for k in ("compare", "train")})
        ),
    )


def render_tuning(tuning: Tuning, title: str) -> str:
    """Return a search for options as one HTML file; `title` names the photographs."""
    return fill(
        "tune.html",
        plots.draw_tuning(tuning),
        tuning=tuning,
        title=title,
        settings=_keep_lines(tomli_w.dumps({k: tuning.provenance[k] for k in ("tune", "train")})),
    )


def fill(template: str, figures: Mapping[str, Any], **shown: Any) -> str:
    """Return a page: a template with its plots, and what else it shows."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dtl.report"),
        autoescape=True,
        finalize=_show,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Bokeh defines an object at its first mention, so the order of keys matters.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.filters |= {"number": _format_number, "duration": _format_duration}
    environment.filters |= {"interval": _format_interval, "mebibytes": _format_bytes}
    environment.filters |= {"clock": timeline.format_clock, "again": timeline.count_again}
    environment.globals |= {"find_interval": find_interval, "share_interval": find_share_interval}
    return environment.get_template(template).render(
        colors=plots.COLORS,
        penalties=(plots.RIGHT[plots.PALEST], plots.RIGHT[-1]),
        bokeh=Markup(Resources(mode="inline", components=["bokeh"]).render_js() if figures else ""),
        plots={name: plots.export_json(figure, name) for name, figure in figures.items()},
        **shown,
    )


# --- numbers -------------------------------------------------------------------------------------


def find_share_interval(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `n` images."""
    return find_interval(round(share * n), n)


def _find_commonest(scores: SplitScores) -> tuple[str, float]:
    """Return the class that most images have, and the accuracy of always answering it."""
    name = max(scores.classes, key=lambda k: scores.classes[k]["n_images"])
    return name, scores.classes[name]["n_images"] / scores.n_images


def _list_classes(report: ReportInput, scores: SplitScores) -> list[dict[str, Any]]:
    """Return the table of classes, from worst to best."""
    taken_for: dict[str, tuple[str, int]] = {}
    names = report.class_names
    for true, predicted, n, _ in plots.list_confusions(scores):
        taken_for.setdefault(names[true], (names[predicted], n))
    n_train = report.class_counts.get(SPLITS[0], np.zeros(len(names), np.int64))
    rows = [
        {"name": name, "n_train": int(n), "taken_for": taken_for.get(name), **scores.classes[name]}
        for name, n in zip(names, n_train, strict=True)
        if name in scores.classes
    ]
    return sorted(rows, key=lambda row: (row["f1"], row["recall"], row["name"]))


def _group_by_reason(
    files: Sequence[tuple[str, str]], counts: Mapping[str, int] = MappingProxyType({})
) -> list[tuple[str, int, list[str]]]:
    """Return each reason, its number of files and the first paths; the commonest reason first."""
    groups: dict[str, list[str]] = {}
    for path, reason in files:
        groups.setdefault(reason, []).append(path)
    numbers = {reason: counts.get(reason, len(paths)) for reason, paths in groups.items()}
    ordered = sorted(groups, key=lambda reason: (-numbers[reason], reason))
    return [(reason, numbers[reason], sorted(groups[reason])[:_MOST_PATHS]) for reason in ordered]


# --- text ----------------------------------------------------------------------------------------


def _show(value: Any) -> Any:
    """Show names of files and classes whatever is in them; markup is dtl's own."""
    return printable(value) if type(value) is str else value


def _keep_lines(text: str) -> Markup:
    return escape(printable(text, keep="\n"))


def _format_number(value: float, spec: str) -> str:
    return format(value, spec).replace("%", "\u202f%") if math.isfinite(value) else _NOTHING


def _format_interval(interval: tuple[float, float], spec: str) -> str:
    low, high = (format(value, spec) for value in interval)
    return f"{low.removesuffix('%')} to {high}".replace("%", "\u202f%")


def _format_duration(seconds: float) -> str:
    """Format seconds in units that are easy to read.

    Examples
    --------
    >>> [_format_duration(s) for s in (0.25, 12.3, 125, 7265)]
    ['0.25 s', '12.3 s', '2 min 5 s', '2 h 1 min']
    """
    if not math.isfinite(seconds):
        return _NOTHING
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _format_bytes(n_bytes: int) -> str:
    """Format a size in memory.

    Examples
    --------
    >>> [_format_bytes(n) for n in (700 << 20, 3 << 29)]
    ['700 MiB', '1.5 GiB']
    """
    mib = n_bytes / (1 << 20)
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"
