"""The logger "road_kernels": what a server finds there, and that nothing is printed unless asked for."""

import logging
import subprocess
import sys

import pytest
import torch

import road_kernels as rk
from road_kernels.backends import registry

ADAPTER = rk.Adapter({"q": (torch.zeros(32, device="cpu"), torch.ones(32, device="cpu"))})


def test_backends(caplog, monkeypatch):
    monkeypatch.setattr(registry, "_automatic", {})
    with caplog.at_level(logging.INFO, logger="road_kernels"):
        registry.choose(None, torch.device("cpu"))
        rk.set_backend("python")
        rk.set_backend(None)
    best = rk.backend_info()["automatic"]["cpu"]
    assert f"cpu tensors: backend {best}" in caplog.messages
    assert caplog.messages[-2:] == ["set_backend('python')", "set_backend(None)"]
    assert {record.name for record in caplog.records} == {"road_kernels.backends.registry"}


@pytest.mark.cpu_only
def test_banks(caplog):
    with caplog.at_level(logging.DEBUG, logger="road_kernels.serving"):
        bank = rk.AdapterBank({"q": 64}, capacity=2)
        bank.load("anna", ADAPTER)
        bank.update("anna", ADAPTER)
        bank.evict("anna")
    assert caplog.messages == ["wrote 'anna' to slot 0, 1 of 2 are free", "updated 'anna' in slot 0", "evicted 'anna'"]


@pytest.mark.parametrize("level", ["WARNING", "DEBUG"])
def test_at_import(level):
    code = f"import logging; logging.basicConfig(level=logging.{level}); import road_kernels"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = [line for line in run.stderr.splitlines() if "road_kernels" in line]
    assert bool(lines) == (level == "DEBUG")
    if lines:
        assert "DEBUG:road_kernels.backends.registry:backend python: usable" in lines
