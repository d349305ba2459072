"""Errors of Dask itself, in words."""

from __future__ import annotations

import importlib
import shutil
from types import SimpleNamespace
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster
from distributed.client import FutureCancelledError, FuturesCancelledError
from distributed.comm.core import CommClosedError
from distributed.core import RPCClosed
from distributed.scheduler import KilledWorker

from dtl.cluster import losses
from dtl.cluster.losses import explain, start_local
from dtl.cluster.workers import MORE_MEMORY, SCHEDULER_LOST

WORKER: Any = SimpleNamespace(address="tcp://127.0.0.1:9")


@pytest.mark.parametrize(
    "error",
    [
        CommClosedError("in <TCP>: Stream is closed"),
        RPCClosed("RPC Closed"),
        FutureCancelledError("x", "scheduler-connection-lost"),
        FuturesCancelledError([]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_scheduler_that_is_lost(error: Exception) -> None:
    assert explain(error) == SCHEDULER_LOST


def test_workers_that_are_killed() -> None:
    assert "Most likely it had too little memory" in (explain(KilledWorker("x", WORKER, 3)) or "")


class Lacking:
    """What a process without a package cannot read."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return importlib.import_module, ("of_this_machine_only",)


def test_a_cluster_with_other_packages() -> None:
    with (
        LocalCluster(n_workers=0, processes=False, protocol="tcp", dashboard_address=":0") as local,
        Client(local) as client,
        pytest.raises(RuntimeError) as raised,
    ):
        client.submit(len, Lacking()).result()
    words = explain(raised.value) or ""
    assert "The cluster has other packages than this machine" in words
    assert "pack-environment" in words


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), KeyError("x"), RuntimeError()])
def test_an_error_that_is_not_the_clusters(error: Exception) -> None:
    assert explain(error) is None


OPTIONS = {"n_workers": 1, "processes": False, "dashboard_address": ":0", "silence_logs": 50}


def test_workers_that_cannot_keep_files() -> None:
    with (
        dask.config.set({"temporary-directory": "/dev/full/folder"}),
        pytest.raises(
            ConnectionError, match=r"this machine did not start: .*/dev/full/folder"
        ) as e,
    ):
        start_local(**OPTIONS)
    assert "or set DASK_TEMPORARY_DIRECTORY to another folder." in str(e.value)


def test_workers_whose_disk_is_full_or_that_lack_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("Cluster failed to start") from RuntimeError("Nanny failed to start")

    monkeypatch.setattr(losses, "LocalCluster", fail)
    with pytest.raises(ConnectionError) as told:
        start_local()
    assert str(told.value) == (
        f"The workers on this machine did not start: Nanny failed to start. {MORE_MEMORY}"
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with (
        dask.config.set({"temporary-directory": str(tmp_path)}),
        pytest.raises(
            ConnectionError, match=rf"{tmp_path}, where their files lie, cannot be writ.* no sp"
        ),
    ):
        start_local()
