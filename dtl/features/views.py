"""Several views of each image, combined to one row of features: sizes, and mirrored pictures.

Simonyan & Zisserman (2014), Very deep convolutional networks for large-scale image recognition,
appendix B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dtl.config import FeaturesConfig

if TYPE_CHECKING:  # which imports this
    from dtl.features.values import Network

MIRROR = "mirror"


@dataclass(frozen=True)
class Views:
    """The views of each image.

    Parameters
    ----------
    sizes : tuple of (height, width)
        Of the pictures that the network sees; empty for its own size alone.
    mirror : bool
        Whether it sees each of them mirrored, too.
    stack : bool
        Whether the features of several sizes stand side by side in a row, or are averaged.
    """

    sizes: tuple[tuple[int, int], ...] = ()
    mirror: bool = False
    stack: bool = False

    @classmethod
    def of(cls, features: FeaturesConfig) -> Views:
        """Return the views that the options say, from the smallest to the largest size."""
        sides = sorted(int(view) for view in features.views if view != MIRROR)
        sizes = tuple((side, side) for side in sides)
        return cls(sizes, MIRROR in features.views, len(sizes) > 1 and features.combine == "stack")

    def widen(self, n_features: Mapping[str, int]) -> dict[str, int]:
        """Return how many features are in a row, by layer, from those of a single view.

        Examples
        --------
        >>> Views(((224, 224), (320, 320)), stack=True).widen({"block5_pool": 512})
        {'block5_pool': 1024}
        """
        n_stacked = len(self.sizes) if self.stack else 1
        return {layer: n * n_stacked for layer, n in n_features.items()}

    @property
    def fingerprint(self) -> dict[str, str]:
        """All that the features follow from; empty for a single view of the network's own size.

        Examples
        --------
        >>> Views.of(FeaturesConfig(views=("mirror", "320", "224"))).fingerprint
        {'views': '224,320,mirror', 'combine': 'average'}
        >>> Views.of(FeaturesConfig(views=("mirror",))).fingerprint
        {'views': 'mirror'}
        """
        names = [*(str(height) for height, _ in self.sizes), *[MIRROR] * self.mirror]
        found = {"views": ",".join(names)} if names else {}
        if len(self.sizes) > 1:
            found["combine"] = "stack" if self.stack else "average"
        return found

    def describe(self, input_size: tuple[int, int]) -> str:
        """Say in words what the network sees, of which `input_size` is the own size.

        Examples
        --------
        >>> Views(((224, 224), (320, 320)), mirror=True).describe((224, 224))
        'images of 224 x 224 and 320 x 320, each mirrored, too; their features averaged'
        """
        sizes = self.sizes or (input_size,)
        words = "images of " + " and ".join(f"{height} x {width}" for height, width in sizes)
        words += (", each mirrored, too" if self.sizes[1:] else ", mirrored, too") * self.mirror
        if self.stack:
            return f"{words}; the features of each size side by side"
        return f"{words}; their features averaged" if self.mirror or self.sizes[1:] else words

    def compute(
        self, network: Network, batches: Sequence[NDArray[np.uint8]]
    ) -> dict[str, NDArray[np.float32]]:
        """Compute features (n_images, n_features) by layer of a batch of images.

        Parameters
        ----------
        batches : sequence of (n_images, height, width, 3) uint8
            The same images in each of the sizes.
        """
        views = [self._compute_size(network, batch) for batch in batches]
        if len(views) == 1:
            return views[0]
        combine = np.hstack if self.stack else _average
        return {layer: combine([view[layer] for view in views]) for layer in views[0]}

    def _compute_size(
        self, network: Network, batch: NDArray[np.uint8]
    ) -> dict[str, NDArray[np.float32]]:
        plain = network.compute(batch)
        if self.mirror:
            mirrored = network.compute(np.ascontiguousarray(batch[:, :, ::-1]))
            plain = {layer: _average([values, mirrored[layer]]) for layer, values in plain.items()}
        return plain


def _average(views: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    total = views[0].copy()
    for view in views[1:]:  # in this order, whatever NumPy does: the bits depend on it
        total += view
    return total / np.float32(len(views))
