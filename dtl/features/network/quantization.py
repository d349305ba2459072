"""Networks in int8, made by NNCF from images that calibrate them, and held against float32.

Jacob et al. (2018), Quantization and training of neural networks for efficient
integer-arithmetic-only inference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.features.network.guard import measure_distance
from dtl.features.network.network_file import NetworkFile
from dtl.features.network.openvino_network import OpenVinoNetwork, read_files, write_model
from dtl.features.network.quiet_openvino import import_nncf

_BATCH_IMAGES = 8


def quantize(
    network: tuple[Path, Path], source_sha256: str, made_from: Mapping[str, Any], folder: Path
) -> NetworkFile:
    """Write the int8 network of a float32 one to files of this machine, and compare the two.

    Parameters
    ----------
    network : (path, path)
        The float32 network's .xml and .bin.
    folder : path
        With ``calibration.npy`` and ``held_out.npy``, uint8 (n_images, height, width, 3), and
        ``label.npy``, (n_images,), of the images that are held out. ``int8.xml`` and ``int8.bin``
        are written there.
    """
    nncf = import_nncf()
    calibration = np.load(folder / "calibration.npy", mmap_mode="r")
    model = read_files(*network)
    quantized = nncf.quantize(
        model,
        nncf.Dataset([image[None] for image in calibration]),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(calibration),
    )
    path = folder / "int8"
    found = write_model(quantized, path, source_sha256, made_from)
    held_out, label = (np.load(folder / f"{name}.npy") for name in ("held_out", "label"))
    exact = _compute(network, "float32", held_out)
    int8 = _compute((path.with_suffix(".xml"), path.with_suffix(".bin")), "int8", held_out)
    guard = {"n_calibration": len(calibration), **measure_distance(exact, int8, label)}
    return replace(found, guard=guard)


def _compute(
    network: tuple[Path, Path], precision: str, images: NDArray[np.uint8]
) -> dict[str, NDArray[np.float32]]:
    compiled = OpenVinoNetwork(read_files(*network), "", precision, _BATCH_IMAGES)
    parts = [
        compiled.compute(images[i : i + _BATCH_IMAGES])
        for i in range(0, len(images), _BATCH_IMAGES)
    ]
    return {layer: np.concatenate([part[layer] for part in parts]) for layer in parts[0]}
