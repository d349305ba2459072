"""A trial of the way from images to rows: some images on every worker, and nothing stored."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from distributed import Client

from dtl.cluster import processors
from dtl.cluster.workers import known_workers, try_on_each_worker
from dtl.config.errors import Fault, refuse
from dtl.features.arrays import count_stored_bytes
from dtl.features.extraction import Extractor, extract
from dtl.images import tars
from dtl.images.sampling import deal_rows
from dtl.images.values import ImageList
from dtl.storage import Extent


@dataclass(frozen=True)
class Trial:
    """Times and sizes that a worker measured.

    Parameters
    ----------
    n_images : int
        Images after the first batch, in `seconds`: read, decoded and computed.
    first_s : float
        Time of the first batch, in which the network is made ready.
    row_bytes, stored_bytes : float
        Of a row's features, in memory and as they are stored.
    """

    n_images: int
    seconds: float
    first_s: float
    row_bytes: float
    stored_bytes: float


def try_images(
    client: Client, images: ImageList, extractor: Extractor, dtype: str, n_batches: int
) -> dict[str, Trial]:
    """Compute some batches of images on all workers at the same time; nothing is stored.

    Raises
    ------
    FaultsError
        With the check ``network``: if a worker fails, or its features are not finite.
    """
    workers, batch = sorted(known_workers(client)), extractor.batch_images
    n_each = batch * (1 + n_batches)
    rows = deal_rows(workers, n_each, len(images))
    args_of = {
        worker: (tars.locate_listed(images, rows[worker]), extractor, dtype) for worker in workers
    }
    found, failed = try_on_each_worker(client, _try, args_of)
    faults = [Fault("network", f"{e}", "See its log.", w) for w, e in sorted(failed.items())]
    faults += [
        Fault(
            "network", f"Its features of {', '.join(extractor.n_features)} are not finite.",
            "Check the weights, or set `features.precision` = float32.", worker,
        )
        for worker, trial in sorted(found.items()) if trial is None
    ]  # fmt: skip
    refuse(faults)
    return found


def _try(files: Sequence[str | Extent], extractor: Extractor, dtype: str) -> Trial | None:
    """Compute features on a worker; None if they are not finite."""
    batch, began = extractor.batch_images, time.perf_counter()
    extract(files[:batch], extractor)
    first_s, began = time.perf_counter() - began, time.perf_counter()
    found = extract(files[batch:], extractor)
    seconds = time.perf_counter() - began
    layers = [values.astype(dtype) for values in found.features.values()]
    if not all(np.isfinite(values).all() for values in layers):
        return None
    n_images = len(files) - batch
    return Trial(
        n_images, seconds, first_s, sum(v.nbytes for v in layers) / n_images,
        sum(map(count_stored_bytes, layers)) / n_images,
    )  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """A worker process, as it computes."""

    instruction_set: str
    n_threads: int
    gpus: tuple[str, ...]


def describe_machine() -> Machine:
    """Describe this process, a worker that has loaded the network."""
    keras = sys.modules.get("dtl.features.network.quiet_keras")
    name = processors.INSTRUCTION_SETS[processors.find_instruction_set()]
    return Machine(name, processors.count_threads(), tuple(getattr(keras, "GPUS", ())))
