"""Every test that takes `backend` runs once per backend that this machine can use."""

import os

import cuda_shim
import pytest
import torch
from common import usable_backends

from road_kernels import _backends

if (reason := cuda_shim.unavailable()) is None:
    _backends._loaded["cuda_shim"] = cuda_shim.backend(), None
else:
    _backends._loaded["cuda_shim"] = None, reason

REQUIRED = os.environ.get("ROAD_KERNELS_REQUIRE", "").split(",")


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        wiring = metafunc.definition.get_closest_marker("wiring")
        metafunc.parametrize("backend", [name for name in usable_backends() if not (wiring and name == "cuda_shim")])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_sessionstart(session):
    """ROAD_KERNELS_REQUIRE=cpu,python: a machine that should have a backend must not pass by skipping it."""
    if missing := [name for name in REQUIRED if name and name not in usable_backends()]:
        pytest.exit(f"required backends are missing: {', '.join(missing)}", returncode=1)
