"""Declarations of what the input of a network's file wants, in a small TOML file beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dtl.config import parse_toml
from dtl.config.forms import check_known
from dtl.config.options import Rule, Section, above, option

EXAMPLE = """\
size = [224, 224]                  # height and width
order = "rgb"                      # or "bgr"
scale = 0.00392156862745098        # first, pixels of 0 to 255 are multiplied by it
mean = [0.485, 0.456, 0.406]       # then subtracted, by channel
deviation = [0.229, 0.224, 0.225]  # then divided by, by channel
"""
"""A declaration of most networks that PyTorch trained on ImageNet."""

_LEAST_SPAN, _MOST_SPAN = 0.1, 256.0
"""Range of a channel's values: one of 1 to 5 is usual, or 255 where pixels stay as they are."""


def _are_three(values: tuple[float, ...]) -> bool:
    return len(values) == 3 and all(map(math.isfinite, values))


# fmt: off


@dataclass(frozen=True)
class Declaration(Section):
    """Form that a network's input wants: values are (scale x pixel - mean) / deviation."""

    size: tuple[int, ...] = option((),
        "height and width; where the file does not fix them",
        Rule(lambda v: not v or (len(v) == 2 and min(v) > 0), "height and width, as [224, 224]"))
    order: Literal["rgb", "bgr"] = option("rgb", "order of the channels")
    scale: float = option(1.0, "factor of pixels of 0 to 255", above(0))
    mean: tuple[float, ...] = option((0.0, 0.0, 0.0),
        "subtracted from scaled pixels, by channel in the network's order",
        Rule(_are_three, "three numbers, one per channel"))
    deviation: tuple[float, ...] = option((1.0, 1.0, 1.0),
        "what they are divided by then",
        Rule(lambda v: _are_three(v) and min(v) > 0, "three numbers above 0, one per channel"))
    layout: Literal["auto", "nchw", "nhwc"] = option("auto",
        "whether channels come before height and width (nchw) or after (nhwc); auto: by the shape")

    # fmt: on

    @classmethod
    def get_name(cls) -> str:
        """Return no name: a declaration is the whole of its file."""
        return ""

    @property
    def offset(self) -> NDArray[np.float64]:
        """The pixels that become 0, (3,): values are (pixel - offset) / divisor."""
        return np.array(self.mean) / self.scale

    @property
    def divisor(self) -> NDArray[np.float64]:
        """The pixels that make 1, (3,)."""
        return np.array(self.deviation) / self.scale

    def _conflicts(self) -> Iterator[tuple[bool, str]]:
        low, high = -self.offset / self.divisor, (255 - self.offset) / self.divisor
        span = high - low
        is_wrong = (
            (span < _LEAST_SPAN) | (span > _MOST_SPAN) | (low > span) | (high < -span)
        ).any()  # fmt: skip
        yield bool(is_wrong), (
            f"With scale = {self.scale:g}, mean = {[*self.mean]} and deviation = "
            f"{[*self.deviation]}, pixels become {low.min():.3g} to {high.max():.3g}, which no "
            "network wants. Where mean and deviation are of pixels of 0 to 1, scale is "
            "0.00392156862745098; where they are of 0 to 255, it is 1."
        )


def parse(data: bytes) -> Declaration:
    """Read a declaration; an unknown key, or a value out of range, is a `UserError`.

    Examples
    --------
    >>> parse(b"mean = [104, 117, 123]").mean
    (104.0, 117.0, 123.0)
    >>> parse(b"means = [104, 117, 123]")
    Traceback (most recent call last):
        ...
    dtl.config.errors.UserError: Unknown key means. Did you mean mean? ...
    """
    table = parse_toml(data)
    for key in table:
        check_known(key, "", Declaration.__dataclass_fields__)
    return Declaration(**table)
