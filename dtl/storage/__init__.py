"""Bytes anywhere: files and byte ranges on any filesystem, ledgers of results, and the lock.

Other folders take functions on whole files and on ranges from here, `Ledger` and `read_json` from
`dtl.storage.ledger`, and ``hold`` from `dtl.storage.lock`. A ``url`` is any that fsspec reads, or
a path of this machine.
"""

from dtl.storage.files import *  # noqa: F403
from dtl.storage.ranges import *  # noqa: F403
