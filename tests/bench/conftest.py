"""What benches on the real photographs share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_results(request: pytest.FixtureRequest) -> Path:
    """The folder of a run on all photographs: `DTL_BENCH_RUN`, or one that is made."""
    given = os.environ.get("DTL_BENCH_RUN")
    return Path(given or request.getfixturevalue("real_run")[0])
