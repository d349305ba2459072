"""The Python environment that runs, as one archive that works in any folder of another machine.

It holds the interpreter, its library and all installed packages, laid out like an installed Python,
so that they find each other in any folder. It still needs what the interpreter needs of the system
(its C library, OpenSSL and the like): pack on a machine like those of the cluster.

The archive has two files, a launcher and an inner archive, which the launcher unpacks at its first
run. A YARN without Hadoop's native library starts a process for each file that it unpacks, which
takes some ten minutes for TensorFlow alone.

Packed by hand, because conda-pack packs conda's environments only, and venv-pack leaves the
interpreter out.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import sys
import sysconfig
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from dtl import storage
from dtl.config.errors import UserError
from dtl.storage.ledger import read_json

log = logging.getLogger(__name__)

ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip")
"""File names' endings of archives that YARN unpacks."""

_LEFT_OUT = {"test", "ensurepip", "idlelib", "turtledemo", "site-packages", "dist-packages"}
"""Folders of the standard library that are not packed; its tests are a third of it."""

_FOR_COMPILERS = (".h", ".hpp", ".inc", ".inl", ".cuh")
"""A quarter of the files of an environment with TensorFlow, which nobody needs at run time."""

_INNER = "environment.tar.gz"
_LAUNCHER = f"""\
#!/bin/sh
# The interpreter of this archive, wherever it has been unpacked.
here=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
if [ ! -e "$here/unpacked" ]; then
    # The first process unpacks it; others wait for the lock.
    exec 9> "$here/lock" && flock 9 || exit
    if [ ! -e "$here/unpacked" ]; then
        tar -xzf "$here/{_INNER}" -C "$here" && touch "$here/unpacked" || exit
        rm -f "$here/{_INNER}"
    fi
    exec 9>&-
fi
export PYTHONHOME="$here" LD_LIBRARY_PATH="$here/lib${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
exec "$here/bin/INTERPRETER" "$@"
"""


def pack(url: str) -> bool:
    """Write the archive, unless it is there already and the environment has not changed.

    Parameters
    ----------
    url : str
        Ends in ``.tar``. A record is written beside it, to the same URL with ``.json`` appended.

    Returns
    -------
    bool
        Whether it was written.

    Raises
    ------
    UserError
        If the URL ends otherwise, a package other than dtl is installed in editable mode and so not
        in the environment, or the Python is conda's, which has libraries of its own.
    """
    if not url.endswith(".tar"):
        raise UserError(f"The environment's archive must end in .tar. Received: {url!r}.")
    if Path(sys.base_prefix, "conda-meta").is_dir():
        raise UserError(
            f"{sys.base_prefix} is conda's. Pack it with `conda pack` (conda-pack), with dtl "
            "installed without -e, and set `yarn.environment` to that archive."
        )
    if editable := [name for name in _list_editable() if name != "dtl"]:
        raise UserError(
            f"Installed in editable mode, so not in the environment: {', '.join(editable)}. "
            "Install without -e, and pack again."
        )
    files = dict(_find_files())
    fingerprint = _fingerprint(files)
    record = _read_record(url)
    if record.get("fingerprint") == fingerprint and _is_whole(url, record):
        return False
    n_bytes = sum(source.stat().st_size for source in files.values())
    log.info("packing %d files, %.1f GiB, of %s", len(files), n_bytes / 2**30, sys.prefix)
    with tempfile.TemporaryDirectory(prefix="dtl-pack-") as folder:
        with storage.naming_full(folder):
            archive = _write(Path(folder), files)
        record = {
            "fingerprint": fingerprint,
            "size_bytes": archive.stat().st_size,
            "python": platform.python_version(),
            "platform": sysconfig.get_platform(),
            "packed_from": sys.prefix,
        }
        log.info("writing %.2f GiB to %s", archive.stat().st_size / 2**30, url)
        storage.remove(f"{url}.json")  # it describes the archive that is replaced
        storage.put(str(archive), url)
    storage.write_bytes(f"{url}.json", json.dumps(record, indent=1).encode())
    return True


def check(url: str) -> None:
    """Refuse a missing or broken archive, before YARN is given it.

    Raises
    ------
    FileNotFoundError
        If there is none.
    UserError
        If its size differs from its record, or its first bytes are not those of an archive.
    """
    again = "Make it again with `conda pack`, or another one with `dtl pack-environment`."
    if url.endswith(".tar"):
        again = "Make it with `dtl pack-environment`."
    if not storage.exists(url):
        raise FileNotFoundError(f"yarn.environment: no such file: {url}. {again}")
    record = _read_record(url)
    if record and not _is_whole(url, record):
        raise UserError(
            f"yarn.environment: {url} has {storage.size(url)} bytes, but was packed with "
            f"{record['size_bytes']}. It is broken. {again}"
        )
    if not _starts_as_archive(url, storage.read_start(url, 1 << 16)):
        raise UserError(f"yarn.environment: {url} is not an archive, or broken. {again}")


def _starts_as_archive(url: str, start: bytes) -> bool:
    if url.endswith(".zip"):
        return start.startswith(b"PK\x03\x04")
    try:
        if url.endswith("gz"):
            start = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS).decompress(start)
        tarfile.TarInfo.frombuf(start[: tarfile.BLOCKSIZE], tarfile.ENCODING, "surrogateescape")
    except (zlib.error, tarfile.HeaderError):
        return False
    return True


def _read_record(url: str) -> dict[str, Any]:
    return read_json(f"{url}.json") or {}


def _is_whole(url: str, record: dict[str, Any]) -> bool:
    return storage.exists(url) and storage.size(url) == record["size_bytes"]


def _list_editable() -> list[str]:
    return [
        distribution.name
        for distribution in importlib.metadata.distributions()
        if json.loads(distribution.read_text("direct_url.json") or "{}")
        .get("dir_info", {})
        .get("editable")
    ]


def _find_files() -> Iterator[tuple[str, Path]]:
    """Yield the path in the archive, and the place on this machine, of every file."""
    version = sysconfig.get_python_version()
    library = f"lib/python{version}"
    interpreter = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    yield f"bin/{interpreter.name}", interpreter
    for shared in Path(sysconfig.get_config_var("LIBDIR")).glob("libpython*.so*"):
        yield f"lib/{shared.name}", shared
    standard = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
    yield from _find_below(standard, library, _LEFT_OUT)
    for kind in ("purelib", "platlib"):
        yield from _find_below(Path(sysconfig.get_path(kind)), f"{library}/site-packages")
    # dtl itself may be installed in editable mode, or run from its folder.
    yield from _find_below(Path(__file__).parents[1], f"{library}/site-packages/dtl")


def _find_below(
    folder: Path, name: str, left_out: Collection[str] = ()
) -> Iterator[tuple[str, Path]]:
    for above, folders, files in os.walk(folder, followlinks=True):
        place = Path(above).relative_to(folder)
        if place == Path():
            folders[:] = [f for f in folders if f not in left_out and not f.startswith("config-")]
        folders.sort()
        for file in sorted(files):
            if not file.startswith("__editable__") and not file.endswith(_FOR_COMPILERS):
                yield Path(name, place, file).as_posix(), Path(above, file)


def _fingerprint(files: dict[str, Path]) -> str:
    """Hash paths, sizes and times of change; compiled files follow from their sources."""
    digest = hashlib.sha256(sys.version.encode())
    for name, source in sorted(files.items()):
        if "__pycache__" not in name:
            found = source.stat()
            digest.update(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _write(folder: Path, files: dict[str, Path]) -> Path:
    inner, launcher, archive = folder / _INNER, folder / "python", folder / "archive.tar"
    # The quickest level: a higher one takes longer to compress than it saves in copying.
    with tarfile.open(inner, "w:gz", compresslevel=1) as tar:
        for name, source in files.items():
            tar.add(source.resolve(), name, recursive=False)
    interpreter = next(iter(files)).removeprefix("bin/")
    launcher.write_text(_LAUNCHER.replace("INTERPRETER", interpreter))
    launcher.chmod(0o755)
    with tarfile.open(archive, "w") as tar:
        tar.add(launcher, "bin/python")
        tar.add(inner, _INNER)
    inner.unlink()
    return archive
