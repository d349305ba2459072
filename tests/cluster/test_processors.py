from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dtl.cluster import processors

ASK = "from dtl.cluster.processors import *; print(INSTRUCTION_SETS[find_instruction_set()])"


def ask(**environment: str) -> str:
    """The instruction set of a process with these variables."""
    plain = {k: v for k, v in os.environ.items() if not k.endswith("_MAX_CPU_ISA")}
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, env=plain | environment,
        check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wide() -> str:
    found = ask()
    if not found.startswith("AVX512"):
        pytest.skip(f"this processor has {found}, not AVX-512")
    return found


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_a_limit_is_what_is_used(wide: str, variable: str) -> None:
    assert ask(**{variable: "AVX2"}) == "AVX2"
    assert ask(**{variable: "avx512_core"}) == "AVX512_CORE"
    assert ask(**{variable: "DEFAULT"}) == wide
    assert ask(**{variable: "AVX512_CORE_AMX_FP16"}) == wide  # no more than the processor has


def test_a_mixture_is_described() -> None:
    names = processors.INSTRUCTION_SETS
    assert len(set(names)) == len(names)
    assert names[0] == "unknown"
    assert processors.describe_mixture([]) == processors.describe_mixture(["AVX2"]) == ""
    assert "AVX2, AVX512_CORE" in processors.describe_mixture({"AVX512_CORE", "AVX2"})
