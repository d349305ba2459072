"""Several runs beside each other, as a table and as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dtl import config, storage
from dtl.config.errors import UserError
from dtl.config.provenance import flatten
from dtl.evaluation.pairing import Pairing, pair
from dtl.evaluation.values import Evaluation
from dtl.features.store import FeatureStore
from dtl.head.model import Head
from dtl.images.values import SPLITS
from dtl.pipeline.messages import name_flags, print_line
from dtl.pipeline.pictures import read_pictures
from dtl.pipeline.results import Results
from dtl.pipeline.run import Run
from dtl.pipeline.tables import format_pairings, format_runs
from dtl.report.side_by_side import (
    MOST_RUNS,
    SideBySide,
    list_pictures,
    list_unfairness,
    render_side_by_side,
)

_PICTURE_SIDE = 200
_HELD_OUT = SPLITS[1:]
_WHERE = {"out", "overwrite", "cluster", "yarn", "storage"}
"""Options that no result follows from."""


class _Shown(NamedTuple):
    """A finished run: its name, files, and what was made."""

    name: str
    results: Results
    store: FeatureStore
    head: Head
    evaluation: Evaluation


def compare_runs(run: Run, urls: Sequence[str], page: str) -> None:
    """Hold runs against the first of them, as lines and as a page, which has a default URL."""
    runs = _open_runs(urls)
    page = storage.absolute(page) if page else runs[0].results.side_by_side_page
    if storage.is_file(page) and not storage.base_name(page).endswith(".html"):
        raise UserError(f"{page} is a file that is no page. Choose another `page`.")
    common = [s for s in _HELD_OUT if all(s in r.evaluation.scores for r in runs)]
    split = common[-1] if common else ""
    pairings = _pair(run, runs, split) if split else []
    names = [r.name for r in runs]
    warnings = [
        said
        for pairing, name in zip(pairings, names[1:], strict=bool(pairings))
        for said in list_unfairness(pairing, names[0], name)
    ]
    if not split:
        warnings.append(
            "The runs have no split in common that was held out, so nothing tells which is better."
        )
    first = runs[0]
    images = run.options.images
    pictures = read_pictures(
        images.url, first.store, list_pictures(pairings), images.max_pixels, page="page",
        side=_PICTURE_SIDE,
    )  # fmt: skip
    shown = SideBySide(
        title=storage.base_name(config.hide(first.store.attrs["root"])),
        names=names,
        split=split,
        evaluations=[r.evaluation for r in runs],
        options=list_different([_list_options(r) for r in runs]),
        pairings=pairings,
        pictures=pictures,
        warnings=warnings,
    )
    storage.write_bytes(page, render_side_by_side(shown).encode())
    tables = [format_runs(shown.evaluations, names)]
    tables += [format_pairings(pairings, names)] if pairings else []
    said = "".join(f"\n\nWarning: {name_flags(warning)}" for warning in warnings)
    print_line("\n\n".join(tables) + f"{said}\n\nPage: {page}")


def _open_runs(urls: Sequence[str]) -> list[_Shown]:
    places = [Results(url) for url in urls]
    twice = [url for url, n in Counter(p.url for p in places).items() if n > 1]
    if twice or not 2 <= len(places) <= MOST_RUNS:
        raise UserError(
            f"Expected 2 to {MOST_RUNS} runs, each once. Received: {len(places)}"
            + (f", of which {twice[0]} twice." if twice else ".")
        )
    names = name_runs([config.hide(p.url) for p in places])
    return [_open(name, place) for name, place in zip(names, places, strict=True)]


def _open(name: str, results: Results) -> _Shown:
    store, head = results.store(), results.trained_head()
    return _Shown(name, results, store, head, results.evaluation_of(head))


def name_runs(urls: Sequence[str]) -> list[str]:
    """Name runs by the last parts of their URLs in which all of them differ.

    Examples
    --------
    >>> name_runs(["/runs/one", "/runs/two"]), name_runs(["/a/out", "hdfs:///b/out"])
    (['one', 'two'], ['a/out', 'b/out'])
    """
    parts = [url.rstrip("/").split("/") for url in urls]
    for n_parts in range(1, max(map(len, parts))):
        names = ["/".join(part[-n_parts:]) for part in parts]
        if len({*names}) == len(names):
            return names
    return list(urls)


def _pair(run: Run, runs: Sequence[_Shown], split: str) -> list[Pairing]:
    from dtl.evaluation.outcomes import find_outcomes  # with Dask, after all checks

    outcomes = (find_outcomes(r.store, r.head, run.client) for r in runs)
    first = next(outcomes)
    return [pair(first, other, split) for other in outcomes]


def _list_options(shown: _Shown) -> dict[str, Any]:
    """List what a run follows from: its options, and hashes of what they only point to."""
    options = config.build(shown.results.config())
    tables = config.hide_options(config.to_dict(options))
    flat = flatten({name: value for name, value in tables.items() if name not in _WHERE})
    made = shown.store.fingerprint
    return flat | {
        "list of images (SHA-256)": str(made.get("images", ""))[:16],
        "weights (SHA-256)": str(shown.store.attrs["weights_sha256"])[:16],
        "precision": made.get("precision", ""),
        "train.batch_size": shown.head.provenance["train"].get("batch_size"),
        "classes": len(shown.store.class_names),
    }


def list_different(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """List each option that differs between runs, with its value in each.

    Examples
    --------
    >>> list_different([{"seed": 0, "train.l2": 0.1}, {"seed": 0, "train.l2": 0.2}])
    [('train.l2', ['0.1', '0.2'])]
    """
    keys = dict.fromkeys(key for options in runs for key in options)
    values = {key: [_show(options.get(key)) for options in runs] for key in keys}
    return [(key, shown) for key, shown in values.items() if len({*shown}) > 1]


def _show(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "\N{EN DASH}"
    return "\N{EN DASH}" if value in (None, "") else str(value)
