"""The model card of an exported classifier: what it is, how to use it, what it is worth."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jinja2

from dtl.config.text import printable
from dtl.evaluation.metrics import find_interval
from dtl.evaluation.values import Evaluation
from dtl.features.network.classifiers.formats import EXTRA_NAME, About

_MOST_LETTERS = 120
_MOST_CLASSES = 10
_SPECIAL = re.compile(r"([\\`*_\[\]<>&|~$@:#])")
"""Characters with a meaning within a line of Markdown; no name begins a line."""


@dataclass(frozen=True, eq=False)
class CardInput:
    """What a card tells of.

    Parameters
    ----------
    name : str
        Of the classifier's file or folder.
    kind : str
        One of `formats.ENDINGS`.
    about : About
    scores : Evaluation, optional
        Of its head.
    check : mapping, optional
        How far it is from the run, as `export` stores it.
    """

    name: str
    kind: str
    about: About
    scores: Evaluation | None
    check: Mapping[str, Any] | None


def render_card(card: CardInput) -> str:
    """Return a card as Markdown, in which no name has a meaning of its own.

    References
    ----------
    Mitchell et al. (2019), "Model cards for model reporting".
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dtl.report"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown has characters of its own: see `escape`
    )
    environment.filters |= {"text": escape, "python": repr}
    provenance = card.about.provenance
    return environment.get_template("model_card.jinja").render(
        card=card,
        about=card.about,
        scores=card.scores,
        check=card.check,
        extra=EXTRA_NAME,
        features=provenance.get("features", {}),
        training=provenance.get("train", {}),
        split=provenance.get("split", {}),
        hardest=_list_hardest(card.scores),
        interval=find_interval,
        height=2 * max(height for height, _ in card.about.inputs.values()),
        width=2 * max(width for _, width in card.about.inputs.values()),
        # Backticks of a fence that no value can end.
        provenance=json.dumps(provenance, indent=1).replace("`", "\\u0060"),
    )


def escape(value: object) -> str:
    r"""Return a value as text that Markdown and HTML show as it is, in one line.

    Examples
    --------
    >>> print(escape("a|<b>_x_"))
    a\|\<b\>\_x\_
    """
    shown = printable(str(value))
    if len(shown) > _MOST_LETTERS:
        shown = f"{shown[:_MOST_LETTERS]}…"
    return _SPECIAL.sub(r"\\\1", shown)


def _list_hardest(scores: Evaluation | None) -> list[tuple[str, Mapping[str, float]]]:
    """List the classes with the lowest recall on the test images."""
    if scores is None or "test" not in scores.scores:
        return []
    classes = [item for item in scores.scores["test"].classes.items() if item[1]["n_images"]]
    return sorted(classes, key=lambda item: (item[1]["recall"], item[0]))[:_MOST_CLASSES]
