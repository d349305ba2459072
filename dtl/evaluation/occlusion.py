"""Where in a picture a decision lies: what covering a part of it takes from the answer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dtl.cluster.chunks import map_chunks
from dtl.evaluation.values import Mistake, Occluded
from dtl.features import extraction
from dtl.features.extraction import Extractor
from dtl.head import blas
from dtl.head.model import Head
from dtl.images.decoding.reading import open_images
from dtl.storage import Extent

log = logging.getLogger(__name__)

N_WINDOWS = 7
"""Places of the patch along a side; it is two cells of `N_WINDOWS` + 1 wide, and moves by one."""

N_PASSES = N_WINDOWS**2 + 1
"""Images that the network sees for each picture: covered in each place, and whole."""

_GREY = 128


def cover(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture (height, width, 3) whole, then with a grey patch in each place, by rows."""
    covered = np.repeat(pixels[None], N_PASSES, axis=0)
    for image, (rows, columns) in zip(covered[1:], _list_windows(*pixels.shape[:2]), strict=True):
        image[rows, columns] = _GREY
    return covered


def _list_windows(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    edges = [[round(k * side / (N_WINDOWS + 1)) for k in range(N_WINDOWS + 2)]
             for side in (height, width)]  # fmt: skip
    for row in range(N_WINDOWS):
        for column in range(N_WINDOWS):
            yield (
                slice(edges[0][row], edges[0][row + 2]),
                slice(edges[1][column], edges[1][column + 2]),
            )


def spread(drop: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the mean of the patches that cover each cell.

    Parameters
    ----------
    drop : (7, 7) float
        Of each place of the patch.

    Returns
    -------
    (8, 8) float

    Examples
    --------
    >>> one = np.zeros((7, 7)); one[0, 0] = 1
    >>> spread(one)[:2, :2]
    array([[1.  , 0.5 ],
           [0.5 , 0.25]])
    """
    total, n = np.zeros((2, N_WINDOWS + 1, N_WINDOWS + 1))
    for row in (0, 1):
        for column in (0, 1):
            at = np.s_[row : row + N_WINDOWS, column : column + N_WINDOWS]
            total[at] += drop
            n[at] += 1
    mean: NDArray[np.float64] = total / n
    return mean


def occlude(
    mistakes: Sequence[Mistake],
    files: Sequence[str | Extent],
    head: Head,
    extractor: Extractor,
    client: Client,
) -> tuple[Occluded, ...]:
    """Slide a grey patch over the pictures of mistakes, on the workers; 50 passes for each.

    Pictures that cannot be read any more are left out, with a warning.

    References
    ----------
    Zeiler, Fergus (2014), "Visualizing and understanding convolutional networks", section 4.2.
    """
    tasks = [
        (k, file, head.class_names.index(mistake.predicted))
        for k, (mistake, file) in enumerate(zip(mistakes, files, strict=True))
    ]
    found: dict[int, NDArray[np.float64]] = {}
    for k, probability, error in map_chunks(
        client, _occlude_picture, tasks, extractor=extractor, head=head
    ):
        if error:
            log.warning("%s is left out, for it cannot be read: %s", mistakes[k].path, error)
        else:
            found[k] = probability
    return tuple(_describe(mistakes[k], found[k]) for k in sorted(found))


def _occlude_picture(
    task: tuple[int, str | Extent, int], *, extractor: Extractor, head: Head
) -> tuple[int, NDArray[np.float64], str]:
    """Return the probabilities (50,) of a class, of the whole picture first."""
    k, file, label = task
    network = extraction.load_network(extractor.network)
    with open_images([file], extractor.sizes, extractor.images, n_ahead=1) as images:
        image = next(images)
    if image.error:
        return k, np.empty(0), image.error
    layer, n = head.provenance["layer"], extractor.batch_images
    sizes = [cover(pixels) for pixels in image.pixels]
    parts = []
    with network.lock:
        for start in range(0, N_PASSES, n):
            batches = [np.zeros((n, *covered.shape[1:]), np.uint8) for covered in sizes]
            for batch, covered in zip(batches, sizes, strict=True):
                part = covered[start : start + n]
                batch[: len(part)] = part
            parts.append(extractor.views.compute(network, batches)[layer])
    features = np.concatenate(parts)[:N_PASSES]
    with blas.one_blas_thread():
        logits = head.logits(features)
    return k, np.exp(head.log_probabilities(logits))[:, label], ""


def _describe(mistake: Mistake, probability: NDArray[np.float64]) -> Occluded:
    whole, covered = probability[0], probability[1:]
    cells = spread((whole - covered).reshape(N_WINDOWS, N_WINDOWS))
    rounded = tuple(tuple(round(value, 4) for value in row) for row in cells.tolist())
    return Occluded(
        mistake.path, mistake.true, mistake.predicted, float(whole), float(covered.min()), rounded
    )
