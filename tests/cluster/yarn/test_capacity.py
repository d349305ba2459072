"""Memory of a worker's container, checked without a YARN."""

from __future__ import annotations

import pytest

from dtl import config
from dtl.cluster.yarn import capacity


@pytest.mark.parametrize(
    ("cluster", "options", "message"),
    [
        ({}, {"worker_memory": "2GiB"},
         r"A worker with the network needs 2\.5 GiB, but yarn\.worker_memory gives it 2\.0 GiB\. "
         r"Raise `yarn\.worker_memory`\."),
        ({"memory_limit": "1GiB"}, {}, r"cluster\.memory_limit gives it 1\.0 GiB\. Raise "
         r"`cluster\.memory_limit`\."),
        ({"memory_limit": "5GiB"}, {}, r"cluster\.memory_limit = 5GiB is more than the container "
         r"has, yarn\.worker_memory = 4GiB: YARN would kill it\. Raise `yarn\.worker_memory`"),
    ],
)  # fmt: skip
def test_memory_that_does_not_suffice(
    cluster: dict[str, str], options: dict[str, str], message: str
) -> None:
    wanted = config.build({"cluster": cluster, "yarn": options})
    with pytest.raises(ValueError, match=message):
        capacity.check_worker_memory(wanted.cluster, wanted.yarn, lambda: 5 << 29)


def test_memory_that_suffices() -> None:
    wanted = config.build({})
    capacity.check_worker_memory(wanted.cluster, wanted.yarn, lambda: 5 << 29)
