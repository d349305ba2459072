"""Places on any filesystem that fsspec reaches: the filesystem of a URL, and the path on it."""

from __future__ import annotations

import getpass
import os
import re
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from dtl.config.errors import UserError
from dtl.config.secrets import is_hidden
from dtl.config.text import is_unicode, printable
from dtl.storage.hdfs import Hdfs, PyarrowHdfs
from dtl.storage.local import Local

__all__ = [
    "absolute", "base_name", "filesystem", "has_folders", "is_local", "join", "name_hdfs_client",
    "use_hdfs_client",
]  # fmt: skip

SCHEMES = ("file", "hdfs", "webhdfs", "s3", "gs", "abfs", "http", "https", "memory")
"""Schemes that messages offer; any other that fsspec knows works too."""

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<server>[^/]*)(?P<path>.*)", re.DOTALL)
_PATH_SCHEMES = ("file", "local")
_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")
_ARCHIVES = ("zip", "tar", "libarchive")
_WITHOUT_FOLDERS = ("http", "https", "data")


def filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URL, and the path on it.

    A path is all that follows the server, whatever characters are in it. (fsspec's own
    `url_to_fs` splits names at ``::``, and some of its filesystems do at ``#`` or ``?``.)

    Raises `UserError` for an unknown scheme, and `ImportError`, which names the package, for one
    whose package is not installed.
    """
    scheme, server, path = _split(url)
    # Names of files may have anything in them, those of pages on the web have keys.
    _refuse_hidden(f"{scheme}://{server}" if has_folders(url) else url)
    if scheme in _PATH_SCHEMES:
        return Local(auto_mkdir=True), _local_path(server + path)
    if scheme in _ARCHIVES:
        raise UserError(
            f"{url!r} is a place in an archive. Unpack that, and give the folder; or give a .tar "
            "file without tar://, which is read as it is."
        )
    if scheme not in {*fsspec.available_protocols(), *fsspec.registry}:
        raise UserError(f"Unknown scheme {scheme}:// in {url!r}. Known: {', '.join(SCHEMES)}.")
    kind = fsspec.get_filesystem_class(scheme)
    options: dict[str, Any] = kind._get_kwargs_from_urls(f"{scheme}://{server}/")
    if scheme in _OBJECT_STORES:
        options["use_listings_cache"] = False  # other processes write to them, too
    if scheme == "webhdfs" and "user" not in options:
        # Hadoop's own clients do the same where Kerberos is off.
        options["user"] = os.environ.get("HADOOP_USER_NAME") or getpass.getuser()
    fs = fsspec.filesystem(scheme, **options)
    if issubclass(kind, LocalFileSystem):
        return fs, _local_path(server + path)
    if issubclass(kind, MemoryFileSystem):
        inside = f"{server}{path}".strip("/")
        return fs, f"/{inside}" if inside else ""
    if "host" in options:
        return fs, path.rstrip("/") or "/"
    return fs, kind._strip_protocol(url)


def _refuse_hidden(url: str) -> None:
    if is_hidden(url):
        raise UserError(
            f"{url} lacks its password or key, which no file of a run keeps. Give the whole URL "
            "again, as the option that it is the value of."
        )


def _split(url: str) -> tuple[str, str, str]:
    """Return scheme, server or bucket, and the rest of a URL; a path's scheme is ``file``."""
    found = _URL.fullmatch(url)
    return ("file", "", url) if found is None else (found["scheme"], found["server"], found["path"])


def _local_path(path: str) -> str:
    path = os.path.expanduser(path)
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    if not path.startswith("/"):
        path = os.getcwd() if path in ("", ".") else f"{os.getcwd()}/{path}"
    return path.rstrip("/") or "/"


def use_hdfs_client(name: str) -> None:
    """Choose this process's client for ``hdfs://``: "native", or libhdfs through "pyarrow"."""
    global _hdfs_client
    client: type = PyarrowHdfs if name == "pyarrow" else Hdfs
    fsspec.register_implementation("hdfs", client, clobber=True)
    _hdfs_client = name


def name_hdfs_client() -> str:
    """Return the name of this process's client, for `use_hdfs_client` in another one."""
    return _hdfs_client


_hdfs_client = "native"
use_hdfs_client(_hdfs_client)


def absolute(url: str) -> str:
    """Return a URL that means the same place in every process, whatever its working directory.

    Raises `UserError` for one with ``::``, which other programs take for a chain of filesystems,
    and for one that is not UTF-8. (Names of files below a folder may have either.)

    Examples
    --------
    >>> absolute("/data/photos/")
    '/data/photos'
    >>> absolute("memory://photos")
    'memory://photos'
    >>> absolute("/data/a::b")
    Traceback (most recent call last):
        ...
    dtl.config.errors.UserError: '/data/a::b' has '::' in it, ... Rename that file or folder, ...
    """
    _refuse_hidden(url)
    _, path = filesystem(url)
    path = path if is_local(url) else url.rstrip("/")
    if "::" in path:
        raise UserError(
            f"{path!r} has '::' in it, which many programs take for a chain of filesystems. "
            "Rename that file or folder, or choose another."
        )
    if not is_unicode(path):
        raise UserError(f"'{printable(path)}' is not UTF-8. Rename that file or folder.")
    return path


def join(url: str, name: str) -> str:
    """Return the URL of a name in a folder."""
    return f"{url.rstrip('/')}/{name}"


def base_name(url: str) -> str:
    """Return the last part of a URL: the name of a file or folder.

    Examples
    --------
    >>> base_name("hdfs:///data/photos/")
    'photos'
    """
    return url.rstrip("/").rsplit("/", 1)[-1]


def is_local(url: str) -> bool:
    """Return whether a URL is a path of this machine, which other machines may not have."""
    return _split(url)[0] in _PATH_SCHEMES


def has_folders(url: str) -> bool:
    """Return whether there are folders to list at a URL's server: not on the web."""
    return _split(url)[0] not in _WITHOUT_FOLDERS
