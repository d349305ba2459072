"""Versions of what computes, which all processes of a run should have alike."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from distributed import Client

from dtl.cluster.workers import run_on_each_worker
from dtl.config.errors import Fault, refuse

_PACKAGES = (
    "dask", "distributed", "cloudpickle", "numpy", "keras", "tensorflow", "openvino", "zarr",
    "numcodecs", "pillow", "fsspec", "hdfs-native",
)  # fmt: skip
"""What workers unpickle with, compute with, or write results with."""


@cache
def list_versions() -> dict[str, str]:
    """List the versions of this process, by package; the code of dtl by its hash."""
    found = {"python": platform.python_version(), "dtl": f"code {_hash_code()}"}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def _hash_code() -> str:
    digest = hashlib.sha256()
    folder = Path(__file__).parents[1]
    for file in sorted(folder.rglob("*.py")):
        digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return digest.hexdigest()[:8]


def check_versions(client: Client) -> None:
    """Refuse workers with other versions than this process.

    Raises
    ------
    FaultsError
        With the check ``versions``, a fault for each worker.
    """
    compare(list_versions(), run_on_each_worker(client, list_versions))


def compare(driver: Mapping[str, str], workers: Mapping[str, Mapping[str, str]]) -> None:
    """Raise a `FaultsError` for the workers whose versions differ from the driver's."""
    faults = []
    for worker, found in sorted(workers.items()):
        differ = {name: v for name, v in found.items() if v != driver.get(name)}
        if not differ:
            continue
        listed = ", ".join(f"{n} {v} (the driver: {driver.get(n)})" for n, v in differ.items())
        wanted = [f"{n}=={driver[n]}" for n in differ if n not in ("python", "dtl")]
        advice = f"On it, type: pip install {' '.join(wanted)}" if wanted else ""
        if "dtl" in differ or "python" in differ:
            advice = (
                "Give it the Python and the packages that the driver has: on YARN with "
                "`yarn.environment`, elsewhere install the same dtl and start the worker again."
            )
        faults.append(Fault("versions", f"It has {listed}.", advice, worker))
    refuse(faults)


def describe(versions: Mapping[str, str]) -> str:
    """Name those that matter most to people."""
    shown = Counter(versions)
    return ", ".join(f"{name} {shown[name]}" for name in ("python", "dask", "keras", "numpy"))
