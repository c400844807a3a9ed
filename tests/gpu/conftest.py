"""What only a GPU can show: run by make gpu-check; elsewhere these tests are collected and skipped.

A test that takes `kernels` runs once per backend that has kernels of its own on a GPU.
"""

from pathlib import Path

import pytest
from support.backends import DEVICE, usable_backends

NATIVE = ("cuda", "triton")


def pytest_generate_tests(metafunc):
    if "kernels" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("backend") or NATIVE
        usable = usable_backends() if DEVICE == "cuda" else NATIVE
        metafunc.parametrize("kernels", [name for name in NATIVE if name in chosen and name in usable])


def pytest_collection_modifyitems(items):
    if DEVICE == "cuda":
        return
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason="needs a GPU: make gpu-check"))
