"""TensorFlow, imported as quietly as Keras; no other module imports it."""

from __future__ import annotations

from dtl.features.network import quiet_keras  # noqa: F401  (before TensorFlow, which it quietens)

import tensorflow as tf  # isort: skip

__all__ = ["tf"]
