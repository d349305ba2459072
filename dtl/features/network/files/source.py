"""A network's file, wherever it lies: its hash, its declaration, and copies to read it from."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl import storage
from dtl.config import to_dict
from dtl.config.errors import UserError
from dtl.features.network import network_file
from dtl.features.network.apart import EndedError, run_apart
from dtl.features.network.files import declaration
from dtl.features.network.files.declaration import Declaration
from dtl.features.network.network_file import hash_files
from dtl.storage.ledger import read_parsed

if TYPE_CHECKING:
    from dtl.features.values import Description

_CPU_S = 900
"""Processor time of a process that reads a file and tries its network: VGG16 takes a minute."""

_MEMORY_BYTES = 8 << 30
"""Memory that such a process may hold, beside ten times the file."""


@dataclass(frozen=True)
class NetworkSource:
    """A network's file.

    Parameters
    ----------
    url : str
        Absolute; ends in .onnx, .keras or .xml.
    sha256 : str
        Of the file, and of those that hold its weights.
    declared : Declaration
    """

    url: str
    sha256: str
    declared: Declaration

    @property
    def kind(self) -> str:
        """The ending: onnx, keras or xml."""
        return self.url.rpartition(".")[2]

    @property
    def declaration_url(self) -> str:
        """Where its declaration lies."""
        return name_declaration(self.url)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that features follow from, wherever the file lies."""
        return {"network": f"{self.kind} file, SHA-256 {self.sha256}"} | {
            "input": to_dict(self.declared)
        }


def find(url: str) -> NetworkSource:
    """Hash a network's file, and read its declaration.

    Raises
    ------
    UserError
        Without a declaration, or for one that is wrong; for .xml without .bin.
    FileNotFoundError
        Without the file.
    """
    digests = b"".join(bytes.fromhex(storage.sha256(part)) for part in _list_parts(url))
    toml = name_declaration(url)
    declared = read_parsed(toml, declaration.parse, "Mend it.")
    if declared is None and _is_ours(url):
        declared = Declaration()
    if declared is None:
        raise UserError(
            f"{toml} is not there. It declares what the network's input wants, which the network's "
            "file does not tell. Most networks that PyTorch trained on ImageNet want this; write "
            f"it there, with your network's own values:\n\n{declaration.EXAMPLE}"
        )
    return NetworkSource(url, hashlib.sha256(digests).hexdigest(), declared)


def _is_ours(url: str) -> bool:
    """Whether dtl itself has converted the network: then it takes pixels as they are."""
    return url.endswith(".xml") and network_file.find(url.removesuffix(".xml")) is not None


def name_declaration(url: str) -> str:
    """Return where the declaration of a network's file lies.

    Examples
    --------
    >>> name_declaration("hdfs:///models/mine.onnx")
    'hdfs:///models/mine.toml'
    """
    return f"{url.rpartition('.')[0]}.toml"


@contextlib.contextmanager
def local_files(source: NetworkSource) -> Iterator[Path]:
    """Yield the path of the network's file on this machine, with no others beside it but its own.

    A file that is another than it was is a `UserError`.
    """
    with tempfile.TemporaryDirectory(prefix="dtl-network-") as folder, ExitStack() as stack:
        paths = []
        for part in _list_parts(source.url):
            copy = stack.enter_context(storage.local_copy(part))
            paths.append(Path(folder, storage.base_name(part)))
            _place(copy, paths[-1])
        if hash_files(*paths) != source.sha256:
            raise UserError(
                f"{source.url} is not the file that it was when the command began, or not the same "
                "on every worker. Start again; give all workers one file."
            )
        yield paths[0]


def read_apart(function: str, source: NetworkSource, *args: Any) -> Any:
    """Return what a function of a network's file returns, from a process with limits.

    What reads such files is written in C++: a damaged one can end its process, or take for ever.
    """
    try:
        return run_apart(f"{__name__}.run_limited", function, source, *args)
    except EndedError as error:
        raise UserError(
            f"{source.url} could not be read. {error} Otherwise it is damaged, or takes more than "
            f"{_CPU_S} s of processor time or {_MEMORY_BYTES >> 30} GiB: copy or export it again."
        ) from error


def describe(source: NetworkSource, layers: tuple[str, ...], pooling: str) -> Description:
    """Describe a network and its cut, read in another process."""
    module = "architecture" if source.kind == "keras" else "files.graph"
    found: Description = read_apart(
        f"dtl.features.network.{module}.describe", source, layers, pooling
    )
    return found


def run_limited(function: str, source: NetworkSource, *args: Any) -> Any:
    """Call a function, named as for `run_apart`, after limiting what this process may take."""
    n_bytes = sum(map(storage.size, _list_parts(source.url)))
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, _CPU_S)
    if sys.platform == "linux":  # address space is no measure: each thread reserves some
        _limit(resource.RLIMIT_DATA, _MEMORY_BYTES + 10 * n_bytes)
    module, _, name = function.rpartition(".")
    return getattr(importlib.import_module(module), name)(source, *args)


def _place(copy: str, path: Path) -> None:
    try:  # no symbolic link: OpenVINO reads weights only of files in the folder
        os.link(os.path.realpath(copy), path)
    except OSError:  # other file systems, or another user's file
        shutil.copyfile(copy, path)


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _list_parts(url: str) -> list[str]:
    """List the URLs of a network's file and of those that hold its weights."""
    if url.endswith(".xml"):
        weights = f"{url.removesuffix('.xml')}.bin"
        if storage.exists(url) and not storage.exists(weights):
            raise UserError(
                f"{weights} is not there. It holds the weights of {url}: copy it there, too."
            )
        return [url, weights]
    if url.endswith(".onnx"):  # weights beside it have one of these names as PyTorch writes them
        return [url, *filter(storage.exists, (f"{url}.data", f"{url}_data"))]
    return [url]
