"""The folder of a command, and the workers that write to it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from distributed import Client

from dtl import config, storage
from dtl.pipeline.run import Run
from dtl.storage.lock import LostLockError


def write(client: Client, url: str) -> None:
    client.submit(storage.write_bytes, url, b"1", pure=False).result()


def test_workers_write_only_while_the_command_holds_the_folder(
    processes: Client, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    options = config.build({"out": out})
    with ExitStack() as stack:
        run = Run(options, stack)
        run._client = processes
        run.claim_folder()
        write(processes, f"{out}/1")
        (tmp_path / "out" / ".dtl-lock").rename(tmp_path / "lock")
        with pytest.raises(LostLockError, match="belongs to nobody now"):
            write(processes, f"{out}/2")
        (tmp_path / "lock").rename(tmp_path / "out" / ".dtl-lock")
    write(processes, f"{out}/2")  # as a notebook does, of which no command holds the folder
    stack = ExitStack()
    run = Run(options, stack)
    run._client = processes
    run.claim_folder()
    error = ZeroDivisionError()
    assert not stack.__exit__(type(error), error, None)
    with pytest.raises(LostLockError):
        write(processes, f"{out}/3")  # work that goes on after its driver
