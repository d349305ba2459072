"""Keras, imported without TensorFlow's greeting; no other module imports it."""

from __future__ import annotations

import os

__all__ = ["GPUS", "keras"]

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is first imported
# TensorFlow writes lines about absent GPUs straight to standard error, whatever its own settings.
_stderr = os.dup(2)
with open(os.devnull, "wb") as nowhere:
    os.dup2(nowhere.fileno(), 2)
try:
    import keras

    if keras.backend.backend() == "torch":  # of which Keras lists no devices
        import torch

        GPUS = [f"gpu:{k}" for k in range(torch.cuda.device_count())]
    else:
        GPUS = keras.distribution.list_devices("gpu")
finally:
    os.dup2(_stderr, 2)
    os.close(_stderr)
