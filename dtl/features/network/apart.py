"""Functions that run in a process of their own, so that what they import stays out of this one."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from dtl import storage
from dtl.config.errors import UserError


class EndedError(UserError):
    """A process ended without a result."""


def run_apart(function: str, *args: Any) -> Any:
    """Return what a function returns, from a new process, which ends with this one at the latest.

    It is named (``"package.module.function"``), so that this process does not import its module.
    Arguments, result and errors are pickled. (Dask's workers may not use `multiprocessing`.)

    Raises
    ------
    EndedError
        If the process ended without a result, as one that the system killed for its memory.
        Errors of the function pass through.
    """
    with tempfile.TemporaryDirectory(prefix="dtl-") as folder:
        job, result, said = (Path(folder, name) for name in ("job", "result", "said"))
        job.write_bytes(pickle.dumps((function, args, storage.name_hdfs_client())))
        with (
            said.open("wb") as output,
            subprocess.Popen(
                # Not from the working directory (-P), which may hold anything.
                [sys.executable, "-P", "-m", __name__, str(job), str(result)],
                stdin=subprocess.PIPE, stdout=output, stderr=output, env=_environment(),
            ) as process,
        ):  # fmt: skip
            try:
                process.wait()
            finally:
                process.kill()
        try:
            value, error = pickle.loads(result.read_bytes())
        except FileNotFoundError:
            last = said.read_text(errors="replace").strip().rpartition("\n")[2]
            raise EndedError(
                f"A process for {function} ended with status {process.returncode}. {last} "
                "If it was killed (-9), give the worker more memory."
            ) from None
    if error is not None:
        raise error
    return value


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


# --- in the process ------------------------------------------------------------------------------


def _end_with_parent() -> None:
    sys.stdin.buffer.read()  # nothing is ever written: it ends when the other process does
    os._exit(1)


def _main(job: str, result: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answer: tuple[Any, BaseException | None]
    try:
        name, args, hdfs_client = pickle.loads(Path(job).read_bytes())
        storage.use_hdfs_client(hdfs_client)
        module, _, function = name.rpartition(".")
        answer = getattr(importlib.import_module(module), function)(*args), None
    except Exception as error:
        answer = None, error
    data = pickle.dumps(answer)
    partial = Path(f"{result}.partial")
    partial.write_bytes(data)
    partial.rename(result)


if __name__ == "__main__":
    _main(*sys.argv[1:])
