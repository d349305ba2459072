"""Fuzzing of the readers: in processes of their own, with limits of time and memory.

``python tests/fuzz/fuzzing.py [MINUTES]`` reads inputs of all readers in turn, from a seed on that
is new each time. ``python tests/fuzz/fuzzing.py READER SEED`` reads one again.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PATHS = [str(ROOT), str(HERE.parent), str(HERE)]
sys.path[:0] = PATHS  # as pytest does, for `helpers`

from readers import READERS  # noqa: E402

KEPT = ROOT / "build" / "fuzz"
"""Folder of inputs that failed."""

LIMIT_S = 180.0
"""Time of one input: HDF5 has 120 s of silence, others take milliseconds."""

_SLICE_S = 60.0
_MOST_INPUTS = 1 << 40


@dataclass
class Outcome:
    """What became of a reader's inputs, and each failure: the input's file, and what went wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def fuzz(seeds: Mapping[str, range], seconds: float = math.inf) -> dict[str, Outcome]:
    """Have readers read the inputs of their seeds, all of them or until a time is over.

    A process that hangs, crashes or is killed is replaced; its input has failed.
    """
    outcomes = {name: Outcome() for name in seeds}
    left, until = dict(seeds), time.monotonic() + min(seconds, 1e9)
    while left:
        state, failures, errors, status = _run_worker(left, until)
        for name, counts in state["counts"].items():
            outcomes[name].counts.update(counts)
        for name, seed, problem in failures:
            outcomes[name].failures.append(_keep(name, seed, problem))
        if status == 0:
            break
        name, seed = state["reader"], state["seed"]
        how = "hangs" if "Timeout (" in errors else f"ends its process ({status})"
        outcomes[name].counts["failed"] += 1
        outcomes[name].failures.append(_keep(name, seed, f"{how}\n{errors}"))
        names = list(left)
        later = {other: left[other] for other in names[names.index(name) + 1 :]}
        left = {name: range(seed + 1, left[name].stop), **later}
    return outcomes


def _run_worker(seeds: Mapping[str, range], until: float) -> tuple[dict[str, Any], Any, str, int]:
    """Return where a worker ended, the failures that it found, its stderr, and its status."""
    with tempfile.NamedTemporaryFile() as place, tempfile.TemporaryFile("w+") as said:
        spans = {name: (span.start, span.stop) for name, span in seeds.items()}
        job = {"seeds": spans, "until": until, "place": place.name, "limit_s": LIMIT_S}
        done = subprocess.run(
            [sys.executable, str(HERE / "worker.py"), json.dumps(job)],
            stdout=subprocess.PIPE, stderr=said, text=True, check=False, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(PATHS)},
        )  # fmt: skip
        said.seek(0)
        errors = said.read()[-3000:]
        if not (state := place.read()):
            raise RuntimeError(f"The worker of {', '.join(seeds)} did not begin:\n{errors}")
    failures = [json.loads(line) for line in done.stdout.splitlines()]
    return json.loads(state), failures, errors, done.returncode


def _keep(name: str, seed: int, problem: str) -> str:
    KEPT.mkdir(parents=True, exist_ok=True)
    file = KEPT / f"{name.replace(' ', '-')}-{seed}"
    file.write_bytes(READERS[name].make_input(name, seed))
    return f"{file} (python tests/fuzz/fuzzing.py '{name}' {seed}): {problem}"


def main(arguments: Sequence[str]) -> int:
    """Fuzz for some minutes, or read one input again; print counts and failures."""
    if len(arguments) == 2:
        name, seed = arguments[0], int(arguments[1])
        outcomes = fuzz({name: range(seed, seed + 1)})
    else:
        outcomes = _fuzz_all(60 * float(*arguments or ("60",)))
    for name, found in outcomes.items():
        counted = ", ".join(f"{n} {what}" for what, n in sorted(found.counts.items()))
        print(f"{name:<14} {counted}")
    failures = [failure for found in outcomes.values() for failure in found.failures]
    print(*failures, sep="\n\n")
    total = sum(found.counts.total() for found in outcomes.values())
    print(f"{total} inputs, {sum(o.counts['failed'] for o in outcomes.values())} failed")
    return bool(failures)


def _fuzz_all(seconds: float) -> dict[str, Outcome]:
    """Give each reader a slice of time after the other, from a seed on that is new each time."""
    first = time.time_ns() // 1_000_000
    outcomes = {name: Outcome() for name in READERS}
    until = time.monotonic() + seconds
    share = min(_SLICE_S, seconds / len(READERS))
    while time.monotonic() < until:
        for name, total in outcomes.items():
            start = first + total.counts.total()
            found = fuzz({name: range(start, start + _MOST_INPUTS)}, share)[name]
            total.counts.update(found.counts)
            total.failures += found.failures
            for failure in found.failures:
                print(f"{name}: {failure}", file=sys.stderr, flush=True)
    return outcomes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
