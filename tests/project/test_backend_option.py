"""--backend of the tests themselves: what it selects, and that a backend which is not usable fails the run."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def collect(*options: str) -> tuple[int, list[str], str]:
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", *options]
    run = subprocess.run([*command, "tests/ops/test_tables.py"], cwd=ROOT, capture_output=True, text=True)
    names = [line.rpartition("::")[2] for line in run.stdout.splitlines() if "::" in line]
    return run.returncode, names, run.stderr


def test_only_tests_on_the_backends_asked_for():
    status, names, _ = collect("--backend", "python")
    assert status == 0 and names and all("[python" in name for name in names)


def test_a_backend_that_is_not_usable_fails_the_run(monkeypatch):
    monkeypatch.setenv("ROAD_KERNELS_TEST_DEVICE", "meta")
    status, names, said = collect("--backend", "python", "--backend", "cuda_shim")
    assert (status, names) == (pytest.ExitCode.USAGE_ERROR, [])
    assert "--backend cuda_shim: not usable here: the tests run on meta" in said
