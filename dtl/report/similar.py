"""The page of images and the stored images that are most like them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence

from dtl.neighbours.values import Matched
from dtl.report.page import fill


def render_similar(
    found: Sequence[Matched],
    own: Mapping[str, bytes],
    stored: Mapping[str, bytes],
    title: str,
    layer: str,
    n_images: int,
) -> str:
    """Return images with their nearest stored ones as one HTML file.

    Parameters
    ----------
    own, stored : dict of path to bytes
        Small JPEGs of the images, and of the stored ones; some may be missing.
    title : str
        Name of the stored photographs.
    layer : str
        Of whose features the cosine is.
    n_images : int
        Images that were searched.
    """
    encoded = (
        {path: b64encode(jpeg).decode() for path, jpeg in pictures.items()}
        for pictures in (own, stored)
    )
    return fill(
        "similar.html", {}, found=found, own=next(encoded), stored=next(encoded), title=title,
        layer=layer, n_images=n_images,
    )  # fmt: skip
