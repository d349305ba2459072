"""The page of a probe: what features are worth with few training images and with all."""

from __future__ import annotations

import itertools

from bokeh.palettes import Category10

from dtl.report import plots
from dtl.report.page import fill
from dtl.training.values import Probe


def render_probe(found: Probe, title: str) -> str:
    """Return a probe as one HTML file; `title` names the photographs."""
    ways = dict.fromkeys((r.layer, r.normalize) for r in found.results)
    line_colors = dict(zip(ways, itertools.cycle(Category10[10])))
    rows = dict.fromkeys((r.layer, r.normalize, r.method) for r in found.results)
    of_row = {
        row: {r.n_per_class: r for r in found.results if (r.layer, r.normalize, r.method) == row}
        for row in rows
    }
    options = found.provenance["probe"]
    return fill(
        "probe.html",
        {"probe": plots.draw_probe(found, line_colors)},
        found=found,
        title=title,
        line_colors=line_colors,
        rows=of_row,
        sizes=sorted({r.n_per_class for r in found.results if r.n_per_class}),
        n_draws=max(r.n_draws for r in found.results),
        options=options,
        chosen=sorted({r.l2 for r in found.results if r.l2}),
    )
