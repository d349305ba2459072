"""Distributed transfer learning: folders of photographs to an image classifier, on Dask.

The stages, each a function to call with a `distributed.Client`: `dtl.images.listing.list_images`,
`dtl.features.featurization.featurize`, `dtl.features.splitting.split_images`,
`dtl.training.trainer.train`,
`dtl.evaluation.scoring.evaluate`. `python -m dtl.pipeline` runs them in order.

`dtl.SoftmaxRegression` is the same training as a scikit-learn classifier, on arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dtl.training.estimator import SoftmaxRegression

__all__ = ["SoftmaxRegression"]


def __getattr__(name: str) -> object:
    # A run needs neither scikit-learn nor Dask's arrays.
    if name == "SoftmaxRegression":
        from dtl.training.estimator import SoftmaxRegression

        return SoftmaxRegression
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
