"""Images with their nearest stored images, by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Match:
    """A stored image that is near.

    `class_name` and `split` are empty where it has none; `cosine` is at most 1.
    """

    path: str
    class_name: str
    split: str
    cosine: float


@dataclass(frozen=True)
class Matched:
    """An image, and the stored images that are nearest, or the reason why there are none.

    Parameters
    ----------
    path : str
    matches : tuple of Match
        The nearest first.
    error : str
        Why the image could not be read; empty if it could.
    """

    path: str
    matches: tuple[Match, ...] = ()
    error: str = ""
