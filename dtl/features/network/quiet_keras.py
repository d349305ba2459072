"""Keras, imported quietly and without what we do not use of it; no other module imports it."""

from __future__ import annotations

import os
import sys

__all__ = ["GPUS", "keras"]

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is first imported
# TensorFlow writes lines about absent GPUs straight to standard error, whatever its own settings.
_stderr = os.dup(2)
with open(os.devnull, "wb") as nowhere:
    os.dup2(nowhere.fileno(), 2)
# Keras imports scikit-learn where it is installed, and that SciPy and pandas: a second a worker.
_hidden = "sklearn" not in sys.modules
if _hidden:
    sys.modules["sklearn"] = None  # type: ignore[assignment]  # so that its import fails
try:
    import keras

    if keras.backend.backend() == "torch":  # of which Keras lists no devices
        import torch

        GPUS = [f"gpu:{k}" for k in range(torch.cuda.device_count())]
    else:
        GPUS = keras.distribution.list_devices("gpu")
finally:
    if _hidden:
        del sys.modules["sklearn"]
    os.dup2(_stderr, 2)
    os.close(_stderr)
