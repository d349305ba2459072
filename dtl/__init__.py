"""Distributed transfer learning: folders of photographs to an image classifier, on Dask.

The stages, each a function to call with a `distributed.Client`: `dtl.listing.list_images`,
`dtl.features.featurize`, `dtl.listing.split_images`, `dtl.trainer.train`,
`dtl.evaluation.evaluate`. `python -m dtl.pipeline` runs them in order.

`dtl.SoftmaxRegression` is the same training as a scikit-learn classifier, on arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dtl.estimator import SoftmaxRegression

__all__ = ["SoftmaxRegression"]


def __getattr__(name: str) -> object:
    # A run needs neither scikit-learn nor Dask's arrays.
    if name == "SoftmaxRegression":
        from dtl.estimator import SoftmaxRegression

        return SoftmaxRegression
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
