"""Dask bags of decoded images, for work of one's own on a cluster."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import dask.bag as db
import numpy as np
from numpy.typing import NDArray

from dtl.config import ImagesConfig
from dtl.images.decoding.reading import open_images
from dtl.images.tars import locate_listed
from dtl.images.values import ImageList
from dtl.storage import Extent

LabelledImage: TypeAlias = tuple[str, int, NDArray[np.uint8] | None]

_N_AHEAD = 32
"""Images of a partition that are decoded ahead."""


def make_bag(
    images: ImageList,
    size: tuple[int, int],
    config: ImagesConfig | None = None,
    *,
    partition_images: int = 256,
    keep_unreadable: bool = False,
) -> db.Bag:
    """Make a Dask bag of the listed images: path, label and pixels, in the order of the list.

    A partition reads its images in threads, a few ahead of their use, and neighbours in a tar with
    one request. All workers must be able to read ``images.root``. The storage's `OSError` comes
    when the bag is computed.

    Parameters
    ----------
    size : (height, width)
    config : ImagesConfig, optional
        Its ``resize`` and ``max_pixels`` are used.
    partition_images : int
        Images per partition, whose pixels a worker holds at the same time.
    keep_unreadable : bool
        Give None as the pixels of an image that is damaged, gone, or may not be read, instead of
        leaving it out.

    Returns
    -------
    dask.bag.Bag of (str, int, (height, width, 3) uint8)
        Path relative to ``images.root``, index into ``images.class_names``, pixels in RGB.

    Examples
    --------
    The mean brightness of every photograph::

        listed = list_images(ImagesConfig(url="hdfs:///data/photographs"), seed=0)
        bag = make_bag(listed, (224, 224))
        means = bag.map(lambda row: (row[0], row[2].mean())).compute()
    """
    rows = zip(images.path.tolist(), images.label.tolist(), locate_listed(images), strict=True)
    return db.from_sequence(rows, partition_size=partition_images).map_partitions(
        _read_partition, size, config or ImagesConfig(), keep_unreadable
    )


def _read_partition(
    rows: Iterable[tuple[str, int, str | Extent]],
    size: tuple[int, int],
    config: ImagesConfig,
    keep_unreadable: bool,
) -> list[LabelledImage]:
    # A list: Dask cannot send a generator from worker to worker.
    rows = list(rows)
    with open_images([file for _, _, file in rows], [size], config, n_ahead=_N_AHEAD) as opened:
        return [
            (path, label, image.pixels[0] if image.pixels else None)
            for (path, label, _), image in zip(rows, opened, strict=True)
            if image.pixels or keep_unreadable
        ]
