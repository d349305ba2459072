"""Tables of labels as CSV, in the form that ``images.labels`` takes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dtl.config import ImagesConfig
from dtl.images.values import NO_SPLIT, SPLITS, ImageList


def make_label_csv(
    images: ImageList,
    rows: NDArray[np.int64],
    config: ImagesConfig,
    more: Mapping[str, Sequence[str]],
) -> bytes:
    r"""Return a CSV file of some rows' paths, labels and splits, for a person to edit.

    Parameters
    ----------
    images : ImageList
    rows : (n,) int64
        Rows of `images`, in the order of the file. One without a class has an empty label.
    config : ImagesConfig
        Of which the names of the columns are read. That of splits is there if a row has one.
    more : mapping of str to sequence of n str
        Further columns, which ``images.labels`` does not read.

    Examples
    --------
    >>> paths = np.array(["a.jpg", "b.jpg"], np.dtypes.StringDType())
    >>> label, none = np.array([-1, 0], np.int32), np.full(2, NO_SPLIT, np.int8)
    >>> images = ImageList("/photos", paths, label, none, np.ones(2, np.int64), ("ant",))
    >>> make_label_csv(images, np.array([1, 0]), ImagesConfig(), {"guess": ["", "ant"]})
    b'path,label,guess\nb.jpg,ant,\na.jpg,,ant\n'
    """
    columns: dict[str, Sequence[str]] = {
        config.path_column: images.path[rows].tolist(),
        config.label_column: images.label_names()[rows].tolist(),
    }
    given = images.given_split[rows]
    if (given != NO_SPLIT).any():
        columns[config.split_column] = ["" if k == NO_SPLIT else SPLITS[k] for k in given.tolist()]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*columns, *more])
    table.writerows(zip(*columns.values(), *more.values(), strict=True))
    return text.getvalue().encode()
