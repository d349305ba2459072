"""A converted network in files: a graph (.xml), its weights (.bin), and what it is (.json).

Every network that OpenVINO runs has this one form, wherever it came from. Its input takes RGB
images, uint8 (n_images, height, width, 3), of any number. Its outputs are named after the layers,
and are float32 (n_images, n_features). What is done to pixels, and pooling, lie in the graph.

A ``url`` is that of the three files without their suffixes. This module does without OpenVINO, for
drivers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dtl import storage
from dtl.config.errors import UserError
from dtl.config.plain import from_plain
from dtl.config.provenance import differences
from dtl.storage.ledger import parse_object, read_parsed

_MEND = (
    "Put back copies of its .xml, .bin and .json, or run the featurize stage with `repair`, which "
    "makes them again."
)


@dataclass(frozen=True)
class NetworkFile:
    """Description of a converted network, as its .json holds it.

    Parameters
    ----------
    sha256 : str
        Of the graph and its weights.
    source_sha256 : str
        Of the weights that it was converted from.
    input_size : (height, width)
    n_features : dict
        By layer, in order.
    weights_bytes : int
        Memory of the weights in float32.
    made_from : dict
        What the files follow from: its fingerprint.
    guard : dict
        How features differ from those of the network that was quantized; empty for that one.
    activation_bytes : int
        Memory of the operation with most inputs and outputs, for one image, in float32.
    is_quantized : bool
        Whether it computes in int8.
    """

    sha256: str
    source_sha256: str
    input_size: tuple[int, int]
    n_features: dict[str, int]
    weights_bytes: int
    made_from: dict[str, Any]
    guard: dict[str, Any] = field(default_factory=dict)
    activation_bytes: int = 0
    is_quantized: bool = False


def find(
    url: str, made_from: Mapping[str, Any] | None = None, *, check: bool = False
) -> NetworkFile | None:
    """Return the description of the network at a URL; None if none is there, or none is whole.

    With `made_from`, one that follows from other things counts as none. With `check`, its files are
    read, and one with a damaged file counts as none; otherwise a damaged .json is a `UserError`.
    """
    try:
        found = read_parsed(f"{url}.json", _parse, _MEND)
        if found is not None and check:
            with local_files(url, found.sha256):
                pass
    except UserError:
        if check:
            return None
        raise
    if found is None or (made_from is not None and differences(made_from, found.made_from)):
        return None
    return found


@contextlib.contextmanager
def local_files(url: str, sha256: str) -> Iterator[tuple[Path, Path]]:
    """Yield the paths of a network's .xml and .bin on this machine, copies if need be.

    Files that are gone, or have another SHA-256, are a `UserError`.
    """
    with ExitStack() as stack:
        try:
            xml, weights = (
                Path(stack.enter_context(storage.local_copy(url + suffix)))
                for suffix in (".xml", ".bin")
            )
        except FileNotFoundError as error:
            raise UserError(f"{error} It is of a converted network. {_MEND}") from error
        if (found := hash_files(xml, weights)) != sha256:
            raise UserError(
                f"{url}.xml and .bin are damaged, or those of another network: they have the "
                f"SHA-256 {found} instead of {sha256}. {_MEND}"
            )
        yield xml, weights


def put(path: Path, url: str, description: NetworkFile) -> None:
    """Copy a network's files from this machine into place, `path` with their suffixes.

    The description comes last: whoever is killed before begins again.
    """
    storage.remove(f"{url}.json")
    for suffix in (".bin", ".xml"):
        storage.put(str(path.with_suffix(suffix)), url + suffix)
    storage.write_bytes(f"{url}.json", (json.dumps(asdict(description), indent=1) + "\n").encode())


def hash_files(*paths: Path) -> str:
    """Return one SHA-256 of several files of this machine."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _parse(data: bytes) -> NetworkFile:
    parsed: NetworkFile = from_plain(NetworkFile, parse_object(data))
    return parsed
