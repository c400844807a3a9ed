"""Refusals that are assertions on the device, each in a process of its own, since they end it."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asserting
import pytest
from common import DEVICE, usable_backends

BACKENDS = [n for n in ("cuda", "triton", "python") if DEVICE != "cuda" or n in usable_backends()]
RUNS = [(case, backend) for backend in BACKENDS for case in asserting.CASES]
CHECKER = shutil.which("compute-sanitizer")


def run(*command, **environment):
    return subprocess.run(
        [*command], env={**os.environ, **environment}, capture_output=True, text=True, timeout=150, check=False
    )


@pytest.fixture(scope="module")
def ended():
    """(case, backend): how its process ended. Starting one takes seconds, so they run beside each other."""
    with ThreadPoolExecutor(6) as pool:
        runs = pool.map(lambda r: run(sys.executable, asserting.__file__, *r), RUNS)
        return dict(zip(RUNS, runs, strict=True))


@pytest.mark.parametrize(("case", "by"), RUNS, ids=[f"{b}-{c}" for c, b in RUNS])
def test_the_process_ends_with_an_assertion(ended, case, by):
    process = ended[case, by]
    assert process.returncode != 0 and "no assertion came" not in process.stdout, process.stdout + process.stderr
    assert "device-side assert" in process.stderr, process.stderr[-2000:]
    assert "illegal memory access" not in process.stderr
    if by != "python" and case not in ("zero alpha in place", "singular block in place"):
        assert "road_kernels: adapter_ids holds an id outside -1 .. A-1" in process.stdout + process.stderr


@pytest.mark.skipif(CHECKER is None, reason="no compute-sanitizer on PATH")
@pytest.mark.parametrize("case", ["one too many", "beyond int32", "backward, far below"])
def test_nothing_outside_the_bank_is_read(kernels, case):
    """Without torch's caching allocator: what lies behind the bank then belongs to nobody."""
    checked = [CHECKER, "--tool", "memcheck", sys.executable, str(Path(asserting.__file__)), case, kernels]
    process = run(*checked, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    said = process.stdout + process.stderr
    assert "ssert" in said, said[-2000:]
    assert "Invalid __global__ read" not in said, said[-4000:]
