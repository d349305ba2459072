"""The process that reads the inputs: what hangs or crashes ends it alone.

Its argument is a JSON object; `fuzzing.fuzz` starts it. It keeps its place in a file before each
input, so that the input that ended it is known.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from readers import READERS, Reader

_MEMORY_BYTES = 1 << 30
"""Address space beyond what the process has once all is imported."""

_KEPT_OF_A_KIND = 3
_STATE_BYTES = 4096


def main(job: dict[str, Any]) -> None:
    """Have readers read the inputs of their seeds, until a time is over."""
    place = os.open(job["place"], os.O_RDWR | os.O_CREAT)
    counts: dict[str, Counter[str]] = {name: Counter() for name in job["seeds"]}

    def keep_place(name: str = "", seed: int = 0) -> None:
        state = json.dumps({"reader": name, "seed": seed, "counts": counts})
        os.pwrite(place, state.ljust(_STATE_BYTES).encode(), 0)

    logging.disable()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="dtl-fuzz-") as scratch:
        folder = Path(scratch, "input")
        for name in counts:
            _read(READERS[name], READERS[name].samples()[0], folder)
        _limit_memory()  # after all that these import
        for name, span in job["seeds"].items():
            kinds = Counter[str]()
            for seed in range(*span):
                keep_place(name, seed)
                if time.monotonic() > job["until"]:
                    break
                outcome, problem = _try(name, seed, folder, job["limit_s"])
                counts[name][outcome] += 1
                kind = problem.partition("\n")[0]
                kinds[kind] += 1
                if problem and kinds[kind] <= _KEPT_OF_A_KIND:
                    print(json.dumps([name, seed, problem]), flush=True)
        keep_place()


def _try(name: str, seed: int, folder: Path, limit_s: float) -> tuple[str, str]:
    """Return what became of an input, and the problem if it failed."""
    faulthandler.dump_traceback_later(limit_s, exit=True)
    problem = _read(READERS[name], READERS[name].make_input(name, seed), folder)
    faulthandler.cancel_dump_traceback_later()
    return (problem, "") if problem in ("read", "refused") else ("failed", problem)


def _read(reader: Reader, data: bytes, folder: Path) -> str:
    """Return "read", "refused", or what went wrong."""
    folder.mkdir()
    try:
        reader.read(data, folder)
    except reader.errors as error:
        said = str(error)
        if not said.strip():
            return f"{type(error).__name__} without a message"
        if reader.has_url and str(folder) not in said:
            return f"a message without the URL at {_locate(error)}\n{said}"
        return "refused"
    except BaseException as error:
        return f"{type(error).__name__} at {_locate(error)}\n{traceback.format_exc()}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return "read"


def _locate(error: BaseException) -> str:
    """Return where an error was raised, and the last line of ours above that."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/dtl/" in frame.filename] or frames[:1]
    places = dict.fromkeys(
        f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in (ours[-1], frames[-1])
    )
    return " < ".join(reversed(places))


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES, used + _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
