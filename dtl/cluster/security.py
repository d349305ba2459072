"""Protection of a cluster: addresses, certificates and folders that nobody else can use.

A scheduler or worker runs whatever code reaches it, as the user who started it. So its port must
ask for a certificate, and only this user may write the folder that workers unpickle from.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
from pathlib import Path

import dask
from distributed.security import Security

from dtl.config.errors import UserError

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"

_PAGE = "deploy/README.md"

_TLS_FILES = {
    "tls_ca_file": "DASK_DISTRIBUTED__COMM__TLS__CA_FILE",
    "tls_client_cert": "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT",
    "tls_client_key": "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY",
}
"""Attributes of `Security` for a client, and the variables that Dask reads them from."""


def keep_local(address: str) -> str:
    """Return where a page is served: on this machine alone, unless a host is given.

    Examples
    --------
    >>> keep_local(":8787"), keep_local("0.0.0.0:8787")
    ('127.0.0.1:8787', '0.0.0.0:8787')
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise UserError(
            "`cluster.dashboard_address` must be host:port, or :port for this machine alone. "
            f"Received: {address!r}."
        )
    return f"{host or LOOPBACK}:{port}"


def make_private_folder() -> str:
    """Make, or find, the folder of this user's workers on this disk, which no other user can enter.

    A folder of Dask's own name may be another user's, who could put other data in place of what
    workers spilled; they unpickle it. Where Dask's ``temporary-directory`` is set, that is taken.

    Raises
    ------
    UserError
        If others made, or can change, a folder of this name.
    """
    if own := dask.config.get("temporary-directory", None):
        return str(own)
    folder = Path(tempfile.gettempdir(), f"dtl-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UserError(
            f"{folder} must be a folder that only you can enter, for workers keep data there. "
            "Remove it, or set the environment variable TMPDIR to another place."
        )
    return str(folder)


def load_certificate(address: str) -> Security:
    """Load what Dask's configuration says of TLS for a scheduler's address.

    Raises
    ------
    UserError
        If the address needs a certificate, and a file of it is not set, or not readable.
    """
    security = Security()
    if not address.startswith("tls://"):
        if security.require_encryption:
            raise UserError(
                f"{address} is not encrypted, which Dask's configuration asks for "
                "(distributed.comm.require-encryption). Give an address of tls://."
            )
        log.warning(
            "%s is not encrypted and asks for no certificate: whoever reaches that scheduler, or "
            "one of its workers, can run code as its user, and read your data. Use tls:// on a "
            "network that others use: see %s.", address, _PAGE,
        )  # fmt: skip
        return security
    # A key may stand in the file of its certificate.
    needed = {k: name for k, name in _TLS_FILES.items() if k != "tls_client_key"}
    if missing := [name for key, name in needed.items() if not getattr(security, key)]:
        raise UserError(
            f"{address} asks for a certificate. Set the environment variables "
            f"{', '.join(missing)} to its files: see {_PAGE}."
        )
    try:
        security.get_connection_args("client")
    except OSError as error:  # ssl's own among them
        files = ", ".join(f"{name} = {getattr(security, key)}" for key, name in _TLS_FILES.items())
        raise UserError(f"The certificate cannot be read: {error}. Check {files}.") from error
    return security
