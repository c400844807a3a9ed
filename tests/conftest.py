"""Every test that takes `backend` runs once per backend that this machine can use."""

import os
import zlib

import pytest
import torch
from support import cuda_shim, triton_interpreter
from support.common import DEVICE, usable_backends

from road_kernels.backends import registry

if DEVICE != "cpu":  # before the test modules, which make tensors when they are imported
    torch.set_default_device(DEVICE)
    registry._loaded["cuda_shim"] = None, f"the tests run on {DEVICE}"
elif os.environ.get("ROAD_KERNELS_TEST_SHIM") == "0":  # building it takes minutes
    registry._loaded["cuda_shim"] = None, "ROAD_KERNELS_TEST_SHIM=0"
elif (reason := cuda_shim.unavailable()) is None:
    registry._loaded["cuda_shim"] = cuda_shim.backend(), None
else:
    registry._loaded["cuda_shim"] = None, reason

if triton_interpreter.INTERPRETED:
    triton_interpreter.mend()

REQUIRED = os.environ.get("ROAD_KERNELS_REQUIRE", "").split(",")
# "1/4": the second of four parts of the tests, for several processes beside each other.
PART, PARTS = map(int, os.environ.get("ROAD_KERNELS_TEST_PART", "0/1").split("/"))


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        wiring = metafunc.definition.get_closest_marker("wiring")
        metafunc.parametrize("backend", [name for name in usable_backends() if not (wiring and name == "cuda_shim")])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


MARKERS = {
    "asserts_on_device": "a refusal that on a GPU is a device-side assertion, which ends the process: "
    "tests/gpu/test_gpu_assertions.py has it",
    "cpu_only": "about the CPU",
}


def pytest_configure(config):
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if zlib.crc32(item.nodeid.encode()) % PARTS == PART]
    for item in items:
        for name, meaning in MARKERS.items():
            if DEVICE != "cpu" and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=meaning))
        if reason := triton_interpreter.too_long(item.name):
            item.add_marker(pytest.mark.skip(reason=f"too long for Triton's interpreter: {reason}"))


def pytest_sessionstart(session):
    """ROAD_KERNELS_REQUIRE=cpu,python: a machine that should have a backend must not pass by skipping it."""
    if missing := [name for name in REQUIRED if name and name not in usable_backends()]:
        pytest.exit(f"required backends are missing: {', '.join(missing)}", returncode=1)
