"""Keras' networks as OpenVINO's, in a process that imports both."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtl.features.network.files.source import NetworkSource
from dtl.features.network.keras_network import Network
from dtl.features.network.network_file import NetworkFile
from dtl.features.network.openvino_network import write_model
from dtl.features.network.quiet_openvino import core, openvino
from dtl.features.values import NetworkSpec


def convert(spec: NetworkSpec, made_from: Mapping[str, Any], path: Path) -> NetworkFile:
    """Write Keras' network, with its weights, to files of this machine, `path` with suffixes."""
    network = Network(spec)
    return write_model(convert_keras(network), path, network.weights_sha256, made_from)


def convert_file(
    source: NetworkSource, spec: NetworkSpec, made_from: Mapping[str, Any], path: Path
) -> NetworkFile:
    """Write the network of a file of Keras', the source in `spec`, as `convert`."""
    assert source == spec.name
    return convert(spec, made_from, path)


def convert_keras(network: Network) -> openvino.Model:
    """Return a network of Keras' as OpenVINO's, in the form that `network_file` says."""
    with tempfile.TemporaryDirectory(prefix="dtl-") as folder:
        path = Path(folder) / "network.xml"
        network.export_openvino(path)
        return core.read_model(path)
