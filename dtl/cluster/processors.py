"""The instruction set that a process computes with, on which the last bits of features depend."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Collection
from pathlib import Path

_FLAGS = {
    "SSE41": "sse4_1",
    "AVX": "avx",
    "AVX2": "avx2",
    "AVX2_VNNI": "avx_vnni",
    "AVX512_CORE": "avx512bw",
    "AVX512_CORE_VNNI": "avx512_vnni",
    "AVX512_CORE_BF16": "avx512_bf16",
    "AVX512_CORE_FP16": "avx512_fp16",
    "AVX512_CORE_AMX": "amx_int8",
    "AVX512_CORE_AMX_FP16": "amx_fp16",
}
"""oneDNN's names, from the least to the most, and the flag in /proc/cpuinfo that tells each."""

INSTRUCTION_SETS = ("unknown", *_FLAGS, "ARM64")
"""A store holds the index: add new ones at the end."""

LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Variables by which oneDNN, in TensorFlow and OpenVINO, uses less than the processor has."""


@functools.cache
def find_instruction_set() -> int:
    """Return the index, in `INSTRUCTION_SETS`, of what this process computes with."""
    if platform.machine() in ("aarch64", "arm64"):
        return INSTRUCTION_SETS.index("ARM64")
    flags = _list_flags()
    has = [name for name, flag in _FLAGS.items() if flag in flags]
    limit = next((os.environ[name].upper() for name in LIMITS if name in os.environ), "")
    if limit in _FLAGS:
        names = [*_FLAGS]
        has = [name for name in has if names.index(name) <= names.index(limit)]
    return INSTRUCTION_SETS.index(has[-1] if has else "unknown")


def list_precisions() -> list[str]:
    """List the precisions that this processor computes at least as fast as float32, fastest first.

    Sums of int8 products would overflow without VNNI, besides.
    """
    found = [("int8", {"avx512_vnni", "avx_vnni"}), ("bfloat16", {"avx512_bf16", "amx_bf16"})]
    return [name for name, needed in found if needed & _list_flags()] + ["float32"]


def _list_flags() -> set[str]:
    cpu = Path("/proc/cpuinfo")
    return {*cpu.read_text().split()} if cpu.exists() else set()


def describe_mixture(names: Collection[str]) -> str:
    """Say what it means that features have several instruction sets; empty if they have one.

    Examples
    --------
    >>> describe_mixture({"AVX2"})
    ''
    >>> describe_mixture({"AVX512_CORE", "AVX2"})[:51]
    'Features were computed with several instruction set'
    """
    if len(names) < 2:
        return ""
    return (
        f"Features were computed with several instruction sets: {', '.join(sorted(names))}. The "
        "last bits of a feature depend on that, so the same images may give other bits on other "
        "workers. To have them alike, set ONEDNN_MAX_CPU_ISA to the least of them for every "
        "worker, and compute the features again."
    )


def count_threads() -> int:
    """Return how many threads the network of this process computes with.

    That is what dtl tells TensorFlow in workers that it starts, else the threads of the worker that
    runs this task, else all processors that the process may use.
    """
    if (given := os.environ.get("TF_NUM_INTRAOP_THREADS", "")).isdecimal() and int(given):
        return int(given)
    from distributed import get_worker  # workers have it; a driver may do without

    with contextlib.suppress(ValueError):  # no task of Dask's
        return int(get_worker().state.nthreads)
    return (
        os.process_cpu_count() if hasattr(os, "process_cpu_count") else len(os.sched_getaffinity(0))
    )
