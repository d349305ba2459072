"""Bytes anywhere: files and byte ranges on any filesystem, ledgers of results, and the lock.

Other folders take functions on whole files and on ranges from here, `Ledger` and `read_json` from
`dtl.storage.ledger`, and ``hold`` from `dtl.storage.lock`. A ``url`` is any that fsspec reads, or
a path of this machine.
"""

from dtl.storage.files import (
    absolute,
    asynchronous,
    check_writable,
    empty_folder,
    exists,
    filesystem,
    is_file,
    is_local,
    join,
    local_copy,
    open_at,
    put,
    read_bytes,
    read_start,
    remove,
    remove_partials,
    replaces_atomically,
    sha256,
    size,
    use_hdfs_client,
    walk,
    write_bytes,
)
from dtl.storage.ranges import Extent, Ranges, Reader, Window, read_ahead, read_file

__all__ = [
    "Extent", "Ranges", "Reader", "Window", "absolute", "asynchronous", "check_writable",
    "empty_folder", "exists", "filesystem", "is_file", "is_local", "join", "local_copy",
    "open_at", "put", "read_ahead", "read_bytes", "read_file", "read_start", "remove",
    "remove_partials", "replaces_atomically", "sha256", "size", "use_hdfs_client", "walk",
    "write_bytes",
]  # fmt: skip
