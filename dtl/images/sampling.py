"""A sample of the images, read and decoded on each worker before the work starts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dtl.cluster.workers import known_workers, try_on_each_worker
from dtl.config import ImagesConfig
from dtl.config.errors import Fault, refuse
from dtl.config.text import printable
from dtl.images import tars
from dtl.images.decoding.reading import open_images
from dtl.images.values import ImageList
from dtl.storage import Extent

_PER_WORKER, _MOST = 16, 512
"""Images that a worker reads, and all of them."""

_SIZE = (32, 32)
"""Pictures are thrown away: a small size costs least."""

_N_NAMED, _MOST_LETTERS = 3, 200


def check_sample(client: Client, images: ImageList, config: ImagesConfig) -> int:
    """Read some images on each worker, others on each; return how many were read.

    Rows are in random order, so the first are a fair sample.

    Raises
    ------
    FaultsError
        With the check ``sample``: if a worker does not reach the storage, or more of the sample
        than the share ``images.max_skipped`` is unreadable.
    """
    workers = sorted(known_workers(client))
    per_worker = max(1, min(_PER_WORKER, _MOST // len(workers)))
    rows = deal_rows(workers, per_worker, len(images))
    args_of = {worker: (tars.locate_listed(images, rows[worker]), config) for worker in workers}
    found, failed = try_on_each_worker(client, read_sample, args_of)
    faults = [
        Fault("sample", f"It cannot read the images: {error}", "Check its way to the storage: the "
              "network, its credentials, and that the folder is mounted there.", worker)
        for worker, error in sorted(failed.items())
    ]  # fmt: skip
    errors = {
        str(images.path[row]): error
        for worker, of_worker in found.items()
        for row, error in zip(rows[worker], of_worker, strict=True)
        if error
    }
    n_read = min(len(workers) * per_worker, len(images))
    if len(errors) > config.max_skipped * n_read:
        named = "; ".join(
            f"{printable(path)[:_MOST_LETTERS]}: {error}"
            for path, error in [*errors.items()][:_N_NAMED]
        )
        more = f", and {len(errors) - _N_NAMED} more" if len(errors) > _N_NAMED else ""
        faults.append(Fault(
            "sample",
            f"{len(errors)} of {n_read} images of a sample cannot be used ({named}{more}); more "
            f"than {config.max_skipped:.1%} of all end a run.",
            "Mend or remove them, or set `images.max_skipped` = "
            f"{min(2 * len(errors) / n_read, 1):.2g}.",
        ))  # fmt: skip
    refuse(faults)
    return n_read


def deal_rows(workers: Sequence[str], n_each: int, n_images: int) -> dict[str, NDArray[np.intp]]:
    """Return rows for each worker, the first of all; begun again where there are too few.

    Examples
    --------
    >>> deal_rows(["a", "b"], 2, 3)
    {'a': array([0, 1]), 'b': array([2, 0])}
    """
    rows = np.arange(len(workers) * n_each) % n_images
    return dict(zip(workers, np.split(rows, len(workers)), strict=True))


def read_sample(files: Sequence[str | Extent], config: ImagesConfig) -> list[str]:
    """Read and decode images, on a worker; return why each cannot be used, if so."""
    with open_images(files, [_SIZE], config, n_ahead=len(files)) as images:
        return [image.error for image in images]
