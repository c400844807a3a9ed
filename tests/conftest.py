"""Options, backends and markers of the tests. tests/README.md has them for whoever runs or writes one."""

import os
import zlib

# Before torch: threads that spin while they wait for work take the processor from the tests beside them. Three threads
# of test_bank_threads.py that each call kernels of two threads took 5 to 14 s on two cores, and take 0.7 s.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from support import cuda_shim, triton_interpreter
from support.backends import DEVICE, NO_BACKEND, usable_backends

from road_kernels.backends import registry

SKIPPED_ON_DEVICE = {  # markers, beside those of pyproject.toml
    "asserts_on_device": "a refusal that is a device-side assertion on a GPU, and ends the process: "
    "tests/gpu/test_assertions.py has it",
    "cpu_only": "says nothing about a GPU",
}


def pytest_addoption(parser):
    group = parser.getgroup("road_kernels")
    group.addoption(
        "--backend",
        action="append",
        default=[],
        metavar="NAME",
        help="only the tests that take a backend, on this one, which must be usable here; repeatable; "
        f"{NO_BACKEND}: the tests that take none",
    )
    group.addoption("--part", default="0/1", metavar="K/N", help="part K, from 0, of the tests split into N")


def pytest_configure(config):
    for name, meaning in SKIPPED_ON_DEVICE.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    if DEVICE != "cpu":  # before the test modules, which make tensors when they are imported
        torch.set_default_device(DEVICE)
    if triton_interpreter.INTERPRETED:
        triton_interpreter.mend()
    chosen = config.getoption("backend")
    reason = why_no_shim(chosen)
    registry._loaded["cuda_shim"] = (None, reason) if reason else (cuda_shim.backend(), None)
    for name in chosen:
        require(name)


def why_no_shim(chosen: list[str]) -> str | None:
    if DEVICE != "cpu":
        return f"the tests run on {DEVICE}"
    if chosen and "cuda_shim" not in chosen:
        return "--backend names others only"
    return cuda_shim.unavailable()


def require(name: str) -> None:
    """A machine that should have a backend must not pass by leaving its tests out."""
    if name == NO_BACKEND or name in usable_backends():
        return
    rows = registry.backend_info()["backends"]
    if name not in rows:
        raise pytest.UsageError(f"--backend {name}: must be one of {', '.join(rows)}, {NO_BACKEND}")
    reason = rows[name]["reason"] or f"it serves {', '.join(rows[name]['devices'])} tensors, and the tests use {DEVICE}"
    raise pytest.UsageError(f"--backend {name}: not usable here: {reason}")


def pytest_generate_tests(metafunc):
    """A test that takes `backend` runs once per backend that is usable here and, if --backend names some, named."""
    if "backend" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("backend")
        names = [name for name in usable_backends() if not chosen or name in chosen]
        if metafunc.definition.get_closest_marker("wiring"):
            names = [name for name in names if name != "cuda_shim"]
        metafunc.parametrize("backend", names)


def backend_of(item: pytest.Item) -> str:
    if marker := item.get_closest_marker("backend"):
        return marker.args[0]
    values = item.callspec.params if hasattr(item, "callspec") else {}
    return values.get("backend") or values.get("kernels") or NO_BACKEND


def pytest_collection_modifyitems(config, items):
    chosen = config.getoption("backend")
    part, parts = map(int, config.getoption("part").split("/"))

    def wanted(item):
        return zlib.crc32(item.nodeid.encode()) % parts == part and (not chosen or backend_of(item) in chosen)

    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = filter(wanted, items)
    for item in items:
        for name, meaning in SKIPPED_ON_DEVICE.items():
            if DEVICE != "cpu" and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=meaning))
        triton_interpreter.mark(item)
    if hasattr(config, "workerinput"):  # files with slow tests first, so that no worker is left with one at the end
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
