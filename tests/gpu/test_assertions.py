"""Errors that are device-side assertions, each in a process of its own, because they end it."""

import functools
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import asserting
import pytest

CHECKER = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
CHECKED = ("one too many", "beyond int32", "backward, far below", "silu_mul, beyond int32", "position beyond int32")
SINGULAR = ("zero alpha in place", "singular block in place")


@functools.cache
def ended(backend: str, checked: bool = False) -> dict[str, subprocess.CompletedProcess]:
    """How the process of each case ended. They run in parallel, because starting one takes seconds."""
    # Without torch's caching allocator, the memory past the bank belongs to no tensor.
    environment = os.environ | ({"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if checked else {})
    command = [*([CHECKER, "--tool", "memcheck"] if checked else []), sys.executable, asserting.__file__]

    def run(case):
        return subprocess.run([*command, case, backend], env=environment, capture_output=True, text=True, timeout=140)

    cases = CHECKED if checked else asserting.CASES
    with ThreadPoolExecutor(5) as pool:
        return dict(zip(cases, pool.map(run, cases), strict=True))


@pytest.mark.parametrize("case", asserting.CASES)
def test_the_process_ends_with_an_assertion(backend, case):
    process = ended(backend)[case]
    said = process.stdout + process.stderr
    assert process.returncode != 0 and "no assertion came" not in said, said
    assert "device-side assert" in said, said[-2000:]
    assert "illegal memory access" not in said
    if backend == "cuda" and case in SINGULAR:
        assert "road_kernels: inplace=True recovers the input from the output, but a block is singular" in said, said[
            -2000:
        ]
    if backend == "cuda" and case.startswith("position"):
        assert "road_kernels: positions holds one outside cos_sin_cache" in said, said[-2000:]
    elif backend != "python" and case not in SINGULAR and not case.startswith("position"):
        assert "road_kernels: adapter_ids holds an id outside -1 .. A-1" in said, said[-2000:]


@pytest.mark.skipif(CHECKER is None, reason="no compute-sanitizer")
@pytest.mark.parametrize("case", CHECKED)
def test_nothing_outside_the_bank_is_read(kernels, case):
    process = ended(kernels, checked=True)[case]
    said = process.stdout + process.stderr
    assert "no assertion came" not in said and "ssert" in said, said[-2000:]
    assert "Invalid __global__ read" not in said, said[-4000:]
