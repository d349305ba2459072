"""The plots of the pages."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import bokeh.models
import bokeh.plotting
import numpy as np
from bokeh.embed import json_item
from bokeh.palettes import interp_palette
from bokeh.themes import Theme
from bokeh.transform import linear_cmap
from numpy.typing import NDArray

from dtl.evaluation.metrics import find_interval
from dtl.evaluation.values import Reliability, SplitScores
from dtl.images.values import SPLITS
from dtl.training.values import Comparison, Probe, Round, Rung, Trial, Tuning

# Bokeh's type hints lack most of what its properties take, such as numbers for a range's ends.
models: Any = bokeh.models
Figure: Any = bokeh.plotting.figure

COLORS = {"train": "#7d9cc0", "validation": "#2a9d8f", "test": "#1f5fa8"}
COLORS |= {"wrong": "#d1662a", "grey": "#a3adb8"}
RIGHT = interp_palette(("#dfe9f5", COLORS["test"]), 32)
WRONG = interp_palette(("#f9e0d0", COLORS["wrong"], "#8f3c0d"), 32)

NEAREST = 1e-7
"""Smallest gap to an optimum that is drawn: objectives on the way are of float32's precision."""
_MOST_ROUNDS = 2_000
"""Most rounds that are plotted; of more, every second, third, ... is."""
_MOST_CELLS = 20_000
"""Most confusions that are drawn, so that a browser stays quick and the page small."""
_MOST_TICKS = 60
"""Most classes that an axis names."""
_MOST_CELL_TEXTS = 25
_MOST_RATES = 8
"""Most learning rates that an axis names."""
PALEST = 8
"""Index of the first colour of a ramp that is visible as a dot."""
_MOST_MARKERS = 50
_MOST_BARS = 150

_TEXT = {"font": "system-ui, sans-serif", "font_size": "12px", "color": "#45505c"}
_AXIS = {
    "axis_line_color": "#c5ccd4",
    "major_tick_line_color": "#c5ccd4",
    "minor_tick_line_color": None,
    "axis_label_text_font_style": "normal",
    **{f"{part}_text_{k}": v for part in ("axis_label", "major_label") for k, v in _TEXT.items()},
}
_PLOT = {"outline_line_color": None, "background_fill_color": None}
_GRID = {"grid_line_color": "#e9edf1"}
_THEME = Theme(json={"attrs": {"Plot": _PLOT, "Axis": _AXIS, "Grid": _GRID}})


def smooth(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return the mean of the finite values in a centred window of an odd `width`.

    By hand: pandas' rolling mean has other last bits, and takes 0.4 s to import.

    Parameters
    ----------
    values : (n,) float, n >= width

    Examples
    --------
    >>> smooth(np.array([1.0, 3.0, np.nan, 4.0]), 3)
    array([2. , 2. , 3.5, 4. ])
    """
    finite = np.isfinite(values)
    window = np.ones(width)
    total = np.convolve(np.where(finite, values, 0.0), window, "same")
    n = np.convolve(finite, window, "same")
    return np.where(n > 0.5, total / np.maximum(n, 1), np.nan)


def choose_smoothing(history: Sequence[Round]) -> int:
    """Return the odd number of rounds that `smooth` averages over."""
    return max(len(history) // 15, 1) | 1


def choose_rounds_per_bar(history: Sequence[Round]) -> int:
    """Return the number of rounds that one bar stands for."""
    return math.ceil(len(history) / _MOST_BARS)


def list_confusions(scores: SplitScores) -> list[tuple[int, int, int, int]]:
    """Return each true and predicted label, its images, and all images of the true label.

    The most frequent confusion comes first.
    """
    n_true: Counter[int] = Counter()
    for true, _, n in scores.confusion:
        n_true[true] += n
    wrong = [(t, p, n, n_true[t]) for t, p, n in scores.confusion if t != p]
    return sorted(wrong, key=lambda entry: (-entry[2], entry))


def choose_fewest_drawn(scores: SplitScores) -> int:
    """Return the fewest images of a confusion that is drawn.

    A cut among confusions of the same number would favour some classes.
    """
    beyond = list_confusions(scores)[_MOST_CELLS:]
    return beyond[0][2] + 1 if beyond else 1


# --- plots ---------------------------------------------------------------------------------------


def make_figure(y_label: str, x_label: str | None = "round", **options: Any) -> Any:
    """Make an empty plot in the pages' look."""
    # A plot that takes every drag would keep a phone's page from scrolling.
    options = {"height": 250, "sizing_mode": "stretch_width", "active_drag": None} | options
    plot = Figure(x_axis_label=x_label, y_axis_label=y_label, tools="box_zoom,reset", **options)
    plot.toolbar.update(logo=None, autohide=True)
    return plot


def _get_column(history: Sequence[Round], name: str) -> NDArray[Any]:
    return np.array([getattr(row, name) for row in history])


def _make_source(columns: Mapping[str, NDArray[Any]]) -> Any:
    every = math.ceil(len(columns["round"]) / _MOST_ROUNDS) or 1
    return models.ColumnDataSource({name: column[::every] for name, column in columns.items()})


def _add_hover(plot: Any, renderer: Any, *names: str, mode: str = "vline") -> None:
    tooltips = [(name.removesuffix("_s").replace("_", " "), f"@{name}") for name in names]
    plot.add_tools(models.HoverTool(tooltips=tooltips, renderers=[renderer], mode=mode))


def _draw_lines(
    history: Sequence[Round], y_label: str, colors: Mapping[str, str], **options: Any
) -> Any:
    """Draw columns as lines over the rounds that have a value, with markers if only some do."""
    plot = make_figure(y_label, **options)
    for name, color in colors.items():
        value = _get_column(history, name)
        # Zero, as the spread of a single replica, has no place on a logarithmic axis.
        has = value > 0 if options.get("y_axis_type") == "log" else np.isfinite(value)
        source = _make_source({"round": _get_column(history, "round")[has], name: value[has]})
        line = plot.line("round", name, source=source, line_color=color, line_width=2)
        if has.sum() < min(len(history), _MOST_MARKERS) or len(history) == 1:
            plot.scatter("round", name, source=source, size=5, color=color)
        _add_hover(plot, line, "round", name)
    return plot


def _draw_loss(history: Sequence[Round]) -> Any:
    # A shard without training rows has no loss.
    shards = _get_column(history, "shard_loss")
    columns = {name: _get_column(history, name) for name in ("round", "epoch", "loss")} | {
        "smoothed": smooth(_get_column(history, "loss"), choose_smoothing(history)),
        "low": np.fmin.reduce(shards, axis=1),
        "high": np.fmax.reduce(shards, axis=1),
    }
    source, color = _make_source(columns), COLORS["test"]
    plot = _draw_lines(history, "loss (nats)", {"validation_loss": COLORS["validation"]})
    plot.varea("round", "low", "high", source=source, fill_color=color, fill_alpha=0.12)
    dots = plot.scatter("round", "loss", source=source, size=4, color=color, alpha=0.4)
    plot.line("round", "smoothed", source=source, line_color=color, line_width=2.5)
    _add_hover(plot, dots, "round", "epoch", "loss", "smoothed")
    return plot


def _draw_seconds(history: Sequence[Round]) -> Any:
    colors = {"step_s": COLORS["test"], "average_s": COLORS["wrong"], "wait_s": COLORS["grey"]}
    starts = np.arange(0, len(history), choose_rounds_per_bar(history))
    n_rounds = np.diff(starts, append=len(history))
    means = {
        name: np.add.reduceat(_get_column(history, name), starts) / n_rounds
        for name in ("round", *colors)
    }
    plot = make_figure("seconds")
    _draw_bars(plot, means, "round", colors, width=choose_rounds_per_bar(history))
    return plot


def draw_history(history: Sequence[Round], averaging_frequency: int) -> dict[str, Any]:
    """Draw the rounds of a training."""
    accuracies = {f"{split}_accuracy": COLORS[split] for split in SPLITS[:2]}
    updates = {"update_ratio": COLORS["test"], "spread": COLORS["wrong"]}
    plots = {
        "loss": _draw_loss(history),
        "accuracy": _draw_lines(history, "accuracy", accuracies),
        "updates": _draw_lines(history, "share of the norm", updates, y_axis_type="log"),
        "rate": _draw_lines(history, "learning rate", {"learning_rate": COLORS["test"]}),
        "seconds": _draw_seconds(history),
    }
    usual = models.BoxAnnotation(bottom=1e-3, top=1e-3 * averaging_frequency)
    usual.update(fill_color=COLORS["grey"], fill_alpha=0.2, line_color=None)
    plots["updates"].add_layout(usual)
    plots["rate"].y_range.start = 0
    return plots


def draw_gaps(comparison: Comparison, line_colors: Mapping[str, str]) -> Any:
    """Draw how far each way of training is above the optimum, over time."""
    logarithmic = {"x_axis_type": "log", "y_axis_type": "log"}
    plot = make_figure("above the optimum", "seconds", height=420, **logarithmic)
    # Over less than two decades Bokeh's ticks are equidistant, so nearly all at the right end.
    plot.xaxis.ticker = [m * 10.0**exponent for exponent in range(-3, 6) for m in (1, 2, 5)]
    optimum = comparison.contenders[0].objective
    for contender in comparison.contenders:
        curve = contender.curve or ((contender.seconds, contender.objective),)
        seconds, objective = np.array(curve).T
        above = objective / optimum - 1
        drawn = above > NEAREST
        columns = {"seconds": seconds[drawn], "above": above[drawn]}
        columns["way"] = np.full(drawn.sum(), contender.name)
        source, color = models.ColumnDataSource(columns), line_colors[contender.name]
        plot.line("seconds", "above", source=source, line_color=color, line_width=2)
        size = 5 if contender.curve else 11
        dots = plot.scatter("seconds", "above", source=source, size=size, color=color)
        _add_hover(plot, dots, "way", "seconds", "above", mode="mouse")
    return plot


def draw_probe(found: Probe, line_colors: Mapping[tuple[str, str], str]) -> Any:
    """Draw accuracies by the number of training images, with their error bars.

    Heads are drawn, and the votes of the fewest neighbours.
    """
    sizes = sorted({r.n_per_class for r in found.results if r.n_per_class})
    plot = make_figure(f"{found.split} accuracy", "training images of each class", height=420)
    plot.xaxis.ticker = list(range(len(sizes) + 1))
    plot.xaxis.major_label_overrides = dict(enumerate([*map(str, sizes), "all"]))
    plot.yaxis.formatter = models.NumeralTickFormatter(format="0%")
    for place, ((layer, normalize), color) in enumerate(line_colors.items()):
        of_way = [r for r in found.results if (r.layer, r.normalize) == (layer, normalize)]
        head, voting = list(dict.fromkeys(r.method for r in of_way))[:2]
        for method, dash in ((head, "solid"), (voting, "dashed")):
            drawn = sorted(
                (r for r in of_way if r.method == method), key=lambda r: r.n_per_class or math.inf
            )
            # Beside each other, so that no bar hides another.
            shift = 0.06 * (place - (len(line_colors) - 1) / 2)
            at = [sizes.index(r.n_per_class) if r.n_per_class else len(sizes) for r in drawn]
            columns: dict[str, Any] = {
                "x": [x + shift for x in at],
                **{name: [getattr(r, name) for r in drawn] for name in ("accuracy", "low", "high")},
                "way": [f"{layer}, {normalize}, {method}"] * len(drawn),
            }
            source = models.ColumnDataSource(columns)
            style = {"source": source, "color": color}
            plot.line("x", "accuracy", line_width=2, line_dash=dash, **style)
            plot.segment("x", "low", "x", "high", line_width=1.5, **style)
            dots = plot.scatter("x", "accuracy", size=7, **style)
            _add_hover(plot, dots, "way", "accuracy", "low", "high", mode="mouse")
    return plot


def draw_tuning(tuning: Tuning) -> dict[str, Any]:
    """Draw trials by their options, and their scores at each cut."""
    plots = {"options": _draw_options(tuning)}
    return {"rungs": _draw_rungs(tuning), **plots} if len(tuning.cuts) > 1 else plots


def _draw_rungs(tuning: Tuning) -> Any:
    plot = make_figure(tuning.metric.replace("_", " "), "epochs", height=320, x_axis_type="log")
    plot.xaxis.ticker = list(tuning.cuts)
    plot.xaxis.major_label_overrides = {cut: f"{cut:.3g}" for cut in tuning.cuts}
    for place, trial in reversed(list(enumerate(tuning.trials))):
        source = _make_trials_source([trial] * len(trial.rungs), trial.rungs, tuning.metric)
        color, width = (COLORS["grey"], 1.5) if place else (COLORS["test"], 3)
        plot.line("epoch", tuning.metric, source=source, line_color=color, line_width=width)
        dots = plot.scatter("epoch", tuning.metric, source=source, size=6, color=color)
        _add_hover(plot, dots, *source.data, mode="mouse")
    return plot


def _draw_options(tuning: Tuning) -> Any:
    label = tuning.metric.replace("_", " ")
    plot = make_figure(label, "learning rate", height=320, x_axis_type="log")
    trials = [trial for trial in tuning.trials if trial.rungs]
    source = _make_trials_source(trials, [trial.rungs[0] for trial in trials], tuning.metric)
    rates = sorted({trial.learning_rate for trial in trials})
    if len(rates) <= _MOST_RATES:
        plot.xaxis.ticker = rates
        plot.xaxis.major_label_overrides = {rate: f"{rate:g}" for rate in rates}
    # Colours follow the order of the penalties, because 0 has no logarithm.
    penalties = sorted({trial.l2 for trial in trials})
    names = [*source.data]
    source.data["order"] = np.array([penalties.index(trial.l2) for trial in trials])
    color = linear_cmap("order", RIGHT[PALEST:], 0, max(len(penalties) - 1, 1))
    dots = plot.scatter("learning_rate", tuning.metric, source=source, size=9, color=color)
    _add_hover(plot, dots, *names, mode="mouse")
    return plot


def _make_trials_source(trials: Sequence[Trial], rungs: Sequence[Rung], metric: str) -> Any:
    """Return the options of trials, and the scores of each at a rung of its own."""
    names = ("learning_rate", "l2", "dropout", "averaging_frequency")
    columns = {name: np.array([getattr(trial, name) for trial in trials]) for name in names}
    columns |= {k: np.array([getattr(rung, k) for rung in rungs]) for k in ("epoch", metric)}
    return models.ColumnDataSource(columns)


def _draw_bars(
    plot: Any, columns: Mapping[str, Any], x: str, colors: Mapping[str, str], width: float
) -> None:
    look = {"color": list(colors.values()), "line_color": None, "width": width}
    source = models.ColumnDataSource(dict(columns))
    bars = plot.vbar_stack(list(colors), x=x, source=source, **look)
    _add_hover(plot, bars[0], *(name for name in columns if name != "x"))
    plot.y_range.start = 0
    plot.xgrid.visible = False


def draw_classes(class_counts: Mapping[str, NDArray[np.int64]], names: Sequence[str]) -> Any:
    """Draw the images per class and split."""
    counts = {split: class_counts[split] for split in SPLITS if split in class_counts}
    order = np.argsort(-sum(counts.values()), kind="stable")
    columns: dict[str, Any] = {"x": np.arange(len(order)), "class": [names[k] for k in order]}
    columns |= {split: n[order] for split, n in counts.items()}
    plot = make_figure("images", None, height=320, x_range=(-0.7, len(order) - 0.3))
    _draw_bars(plot, columns, "x", {split: COLORS[split] for split in counts}, width=0.85)
    _name_classes(plot.xaxis[0], columns["class"])
    plot.xaxis.major_label_orientation = "vertical"
    return plot


def _name_classes(axis: Any, names: Sequence[str]) -> None:
    """Write class names at 0, 1, 2, ... of an axis, if there is room for them."""
    if len(names) > _MOST_TICKS:
        axis.update(major_label_text_alpha=0, major_tick_line_color=None)
        return
    axis.ticker = list(range(len(names)))
    # Plain text: Bokeh would take a name in $$ for TeX and fetch MathJax from the internet.
    axis.major_label_overrides = {
        k: models.PlainText(text=name if len(name) <= 18 else name[:17] + "…")
        for k, name in enumerate(names)
    }
    axis.update(major_label_policy=models.NoOverlap(), major_label_text_font_size="11px")


def draw_confusions(scores: SplitScores, class_names: Sequence[str]) -> Any:
    """Draw the images per true and predicted class."""
    true, predicted, n = np.array(scores.confusion, np.int64).reshape(-1, 3).T
    share = n / np.bincount(true, n)[true]
    drawn = n >= choose_fewest_drawn(scores)
    names = np.array(class_names, object)
    n_classes = len(class_names)
    ranges = {"x_range": (-0.5, n_classes - 0.5), "y_range": (n_classes - 0.5, -0.5)}
    square = {"width": 800, "height": 800, "sizing_mode": "scale_width"}
    plot = make_figure("true class", "predicted class", **square, **ranges)
    # Cells of 1000 classes would be smaller than a pixel; a mistake has to be visible.
    size = max(0.92, n_classes / 150)
    for rows, palette in ((drawn & (true != predicted), WRONG), (true == predicted, RIGHT)):
        source = models.ColumnDataSource(
            {
                "x": predicted[rows],
                "y": true[rows],
                "true": list(names[true[rows]]),
                "predicted": list(names[predicted[rows]]),
                "images": n[rows],
                "share_of_true": share[rows],
                "ink": ["white" if s > 0.5 else "black" for s in share[rows]],
            }
        )
        color = linear_cmap("share_of_true", palette, 0, 1)
        cells = plot.rect("x", "y", size, size, source=source, color=color, line_color=None)
        _add_hover(plot, cells, "true", "predicted", "images", "share_of_true", mode="mouse")
        if n_classes <= _MOST_CELL_TEXTS:
            look = {"text_font_size": "11px", "text_align": "center", "text_baseline": "middle"}
            plot.text("x", "y", "images", source=source, text_color="ink", **look)
    for axis in (plot.xaxis[0], plot.yaxis[0]):
        _name_classes(axis, class_names)
    plot.xaxis.major_label_orientation = "vertical"
    plot.grid.visible = n_classes <= _MOST_TICKS
    return plot


def draw_reliability(reliability: Mapping[str, Reliability]) -> Any:
    """Draw the share of right images against their probability, before and after a temperature."""
    ranges = {"x_range": (0, 1.02), "y_range": (0, 1.02)}
    square = {"width": 500, "height": 440, "sizing_mode": "scale_width"}
    plot = make_figure("share that is right", "probability that was given", **square, **ranges)
    plot.line([0, 1], [0, 1], line_color=COLORS["grey"], line_dash="dashed")
    colors = {"before": COLORS["wrong"], "after": COLORS["test"]}
    for when, color in colors.items():
        if (found := reliability.get(when)) is None:
            continue
        n, n_right, mean = (np.array(column) for column in zip(*found.bins, strict=True))
        pairs = zip(n_right.tolist(), n.tolist(), strict=True)
        low, high = np.array([find_interval(*pair) for pair in pairs]).T
        columns = {"probability": mean, "right": n_right / n, "images": n, "low": low, "high": high}
        columns["size"] = 5 + 12 * np.sqrt(n / n.sum())
        source = models.ColumnDataSource(columns)
        look: dict[str, Any] = {"line_color": color, "line_alpha": 0.5}
        bars = models.Whisker(base="probability", lower="low", upper="high", source=source, **look)
        for head in (bars.upper_head, bars.lower_head):
            head.update(size=6, **look)
        plot.add_layout(bars)
        look = {"size": "size", "color": color, "alpha": 0.8}
        dots = plot.scatter("probability", "right", source=source, **look)
        _add_hover(plot, dots, "probability", "right", "images", "low", "high", mode="mouse")
    return plot


def export_json(plot: Any, name: str) -> Any:
    """Return what `Bokeh.embed.embed_item` draws, with the same identifiers at every call."""
    ids: dict[str, str] = {}

    def renamed(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [renamed(part) for part in value]
        if not isinstance(value, dict):
            return value
        return {
            key: ids.setdefault(part, f"{name}-{len(ids)}")
            if key in ("id", "root_id")
            else renamed(part)
            for key, part in value.items()
        }

    # Bokeh counts its objects over the whole life of the process.
    return renamed(json_item(plot, theme=_THEME))
