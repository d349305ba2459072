"""HDFS through hdfs-native: its errors as Python's own, and writes that are whole or not at all.

hdfs-native needs no JVM, reads ``HADOOP_CONF_DIR``, and itself waits with growing pauses for a
NameNode that does not answer, as long as ``dfs.client.failover.max.attempts`` (15, three minutes)
and its siblings in ``hdfs-site.xml`` say.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from fsspec.implementations.arrow import HadoopFileSystem
from hdfs_native import Client
from hdfs_native.fsspec import HdfsFileSystem

log = logging.getLogger(__name__)

_PATIENCE_S = 120.0
"""Time for which a transient error is retried: a NameNode in safe mode, lost DataNodes."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0

_AT_ONCE_S = 2.0
"""hdfs-native itself waits for a NameNode: what refuses sooner than this is a DataNode."""

_REFUSED = {
    "AccessControlException": "",
    "SafeModeException": "",
    "NSQuotaExceededException": "The quota of names is used up: ",
    "DSQuotaExceededException": "The quota of space is used up: ",
}
"""NameNode exceptions that become `PermissionError`, and how their messages begin."""

_FULL = re.compile(r"could only be (written|replicated) to 0 ")

_TRANSIENT = re.compile(
    r"^(?!.*turned on manually).*"
    r"(safe ?mode|RetriableException|StandbyException|OperationFailed|DataTransferError)",
    re.DOTALL | re.IGNORECASE,
)
"""Errors that pass without help; a safe mode that an administrator ordered does not."""

_RPC_ERROR = re.compile(r'RPCError\("(?P<exception>[\w.$]+)", "(?P<message>.*)"\)', re.DOTALL)


class UnreachableError(ConnectionError):
    """No NameNode answered for as long as ``hdfs-site.xml`` lets a client try."""


def find_server(url: str) -> str:
    """Return the root of the server of a URL, ``hdfs://…/``.

    Examples
    --------
    >>> find_server("hdfs://nameservice/user/me")
    'hdfs://nameservice/'
    """
    return "/".join(url.split("/")[:3]) + "/"


def ask_namenode(server: str) -> None:
    """Ask for the root of a server, ``hdfs://…/``, without the minutes of patience of a run.

    Raises `OSError`: an `UnreachableError` if no NameNode answers.
    """
    try:
        Client(server[:-1], {"dfs.client.failover.max.attempts": "1"}).get_file_info("/")
    except (RuntimeError, OSError) as error:
        raise translate(error, server) from error


def _retry(method: Callable[..., Any]) -> Callable[..., Any]:
    """Retry a method while its error is a transient one, then raise Python's own exception."""

    @functools.wraps(method)
    def call(self: Hdfs, path: str, *args: Any, **kwargs: Any) -> Any:
        deadline, pause = time.monotonic() + _PATIENCE_S, _FIRST_PAUSE_S
        url = self.unstrip_protocol(path)
        while True:
            began = time.monotonic()
            try:
                return method(self, path, *args, **kwargs)
            except FileNotFoundError as error:
                if error.errno is not None:
                    raise
                raise FileNotFoundError(f"No such file or folder: {url}") from None
            except (RuntimeError, OSError) as error:
                translated, now = translate(error, url), time.monotonic()
                # Translated, after all its tries, by a method that was called inside; or Python's
                # own, of a file on this machine. "From" itself, it would be its own cause.
                if translated is error or getattr(error, "errno", None) is not None:
                    raise
                transient = _TRANSIENT.search(str(error)) is not None
                if isinstance(translated, UnreachableError) and now - began < _AT_ONCE_S:
                    translated, transient = OSError(f"{url}: a DataNode is gone."), True
                if not transient or now > deadline:
                    raise translated from error
                log.warning("%s Trying again in %.1f s.", translated, pause)
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    return call


def translate(error: Exception, url: str) -> OSError:
    r"""Return Python's own exception for one of hdfs-native's, which are mostly `RuntimeError`.

    Examples
    --------
    >>> translate(RuntimeError('RPCError("org.apache.hadoop.security.AccessControlException",'
    ...     ' "Permission denied: user=me, access=WRITE\\n\\tat org.apache")'), "hdfs://n/a")
    PermissionError('hdfs://n/a: Permission denied: user=me, access=WRITE')
    """
    text = str(error)
    if isinstance(error, OSError) and text.startswith("hdfs://"):
        return error  # translated already
    if found := _RPC_ERROR.search(text):
        kind = found["exception"].rsplit(".", 1)[-1]
        message = re.split(r"\\n|\n", found["message"])[0]
        if message.endswith("(is not a directory)"):
            return NotADirectoryError(f"{url}: {message}")
        if kind in _REFUSED:
            advice = ". Remove files, or ask for a larger quota." if "Quota" in kind else ""
            return PermissionError(f"{url}: {_REFUSED[kind]}{message}{advice}")
        if _FULL.search(message):
            return OSError(
                f"{url} cannot be written: no DataNode takes it. Most likely they are full, see "
                f"`hdfs dfsadmin -report`: {message}"
            )
        return OSError(f"{url}: {kind}: {message}")
    if "Connection refused" in text or "timed out" in text.lower():
        return UnreachableError(f"{url}: the NameNode does not answer ({text}).")
    return OSError(f"{url}: {text}")


def _strip(url: str) -> str:
    # The clients' own take what follows a # or ? of a file's name for a fragment or a query.
    if "://" in url:
        url = "/" + url.split("://", 1)[1].partition("/")[2]
    return url.rstrip("/") or "/"


class PyarrowHdfs(HadoopFileSystem):  # type: ignore[misc]
    """Filesystem for ``hdfs://`` through pyarrow, which needs libhdfs and a JVM."""

    fsid = "hdfs"  # fsspec's own asks pyarrow for its host, which it does not tell

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return _strip(path)


class Hdfs(HdfsFileSystem):
    """Filesystem for ``hdfs://`` without a JVM; `_RETRIED` names methods that retry by themselves.

    Work of several calls, and on an open file, goes through `attempt`.
    """

    def __init__(self, *args: Any, asynchronous: bool = False, **storage_options: Any) -> None:
        # Zarr asks every filesystem for `asynchronous`; hdfs-native takes it for Hadoop's.
        super().__init__(*args, **storage_options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return _strip(path)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        """Write a whole file: readers find all of it, or the file before it."""
        partial = f"{path}.{uuid.uuid4().hex}.partial"
        try:
            self._create(partial, value)
            self.mv(partial, path, overwrite=True)
        except BaseException:
            # HDFS notices a full quota of space, say, only once it has made the empty file.
            with contextlib.suppress(OSError, RuntimeError):
                super().rm(partial)
            raise

    @_retry
    def attempt(self, path: str, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function that works on a file, and retry it as the methods are."""
        return work(*args, **kwargs)

    @_retry
    def _create(self, path: str, value: bytes) -> None:
        # Each attempt gets other DataNodes.
        with self.open(path, "wb") as file:
            file.write(value)


_RETRIED = ("info", "ls", "makedirs", "mv", "rm", "cat_file")
for _name in _RETRIED:
    setattr(Hdfs, _name, _retry(getattr(HdfsFileSystem, _name)))
