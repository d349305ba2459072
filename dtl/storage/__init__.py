"""Bytes anywhere: files and byte ranges on any filesystem, ledgers of results, and the lock.

Other folders take functions on places, whole files, folders and ranges from here, `Ledger` and
`read_json` from `dtl.storage.ledger`, and ``hold`` from `dtl.storage.lock`. A ``url`` is any that
fsspec reads, or a path of this machine.
"""

from dtl.storage.files import *  # noqa: F403
from dtl.storage.guards import *  # noqa: F403
from dtl.storage.places import *  # noqa: F403
from dtl.storage.ranges import *  # noqa: F403
from dtl.storage.retries import *  # noqa: F403
from dtl.storage.slow import *  # noqa: F403
from dtl.storage.space import *  # noqa: F403
from dtl.storage.walking import *  # noqa: F403
