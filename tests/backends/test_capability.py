"""A GPU for which the CUDA kernels were not built: backend_info says so, and Triton serves it."""

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import road_kernels as rk
from road_kernels.backends import capability, cuda, registry, triton

pytestmark = pytest.mark.cpu_only
DEFAULT = "8.0;9.0;10.0+PTX"


@pytest.mark.parametrize(
    ("architectures", "served", "not_served"),
    [
        (DEFAULT, [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 1)], [(7, 0), (7, 5)]),
        ("8.0;9.0+PTX", [(8, 6), (9, 0), (10, 0), (12, 0)], [(7, 5)]),
        ("8.6", [(8, 6), (8, 9)], [(8, 0), (9, 0), (7, 5)]),
        ("7.5 9.0", [(7, 5), (9, 0)], [(7, 0), (8, 0), (10, 0)]),
        ("9.0a", [(9, 0)], [(8, 9), (10, 0)]),
        ("9.0a+PTX", [(9, 0)], [(10, 0)]),
        ("10.0f", [(10, 0), (10, 3)], [(12, 0), (9, 0)]),
        ("Hopper", [(7, 5), (9, 0)], []),  # unknown notation: not ours to refuse
    ],
)
def test_what_runs_where(architectures, served, not_served):
    assert [c for c in served if not capability.serves(architectures, c)] == []
    assert [c for c in not_served if capability.serves(architectures, c)] == []


@pytest.fixture
def machine(monkeypatch):
    """machine(all GPUs, those that CUDA sees, initialised): what NVML and CUDA say of the GPUs here."""

    def make(by_nvml, by_cuda=None, initialised=False):
        def ask_cuda():
            assert by_cuda is not None, "CUDA would have been initialised"
            return by_cuda

        monkeypatch.setattr(capability, "of_the_machine", lambda: by_nvml)
        monkeypatch.setattr(capability, "of_the_visible", ask_cuda)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialised)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    return make


T4, A100 = (7, 5), (8, 0)


@pytest.mark.parametrize(
    ("by_nvml", "by_cuda", "initialised", "served"),
    [
        ([A100], None, False, True),
        ([T4, T4], None, False, False),
        ([A100, T4], [A100], False, True),  # CUDA_VISIBLE_DEVICES hides the other one
        ([A100, T4], [T4, A100], False, False),
        ([A100, T4], [T4], True, False),
        (None, None, False, True),  # nobody knows: as before
        (None, [T4], True, False),
    ],
)
def test_the_gpus_here(machine, by_nvml, by_cuda, initialised, served):
    machine(by_nvml, by_cuda, initialised)
    reason = capability.why_unserved(DEFAULT)
    assert (reason is None) == served
    if not served:
        assert reason.startswith(f"built for compute capability {DEFAULT}, but a GPU here has 7.5: ")
        assert "TORCH_CUDA_ARCH_LIST='7.5'" in reason


def test_triton_takes_over(machine, monkeypatch):
    """As the table is filled when road_kernels is imported, with an extension that has CUDA kernels."""
    build = {"cuda": "13.0", "cuda_architectures": DEFAULT}
    monkeypatch.setattr(cuda, "EXTENSION", SimpleNamespace(build_info=lambda: build))
    monkeypatch.setattr(triton, "unavailable", lambda: None)
    chosen = {}
    for gpu in (A100, T4):
        machine([gpu])
        table = {name: registry._load(name) for name in registry.TABLE}
        monkeypatch.setattr(registry, "_loaded", table)
        info = rk.backend_info()
        chosen[gpu] = info["automatic"]["cuda"], info["backends"]["cuda"]["reason"]
    assert chosen[A100] == ("cuda", None)
    assert chosen[T4] == ("triton", capability.why_unserved(DEFAULT))
    with pytest.raises(RuntimeError, match=r"backend 'cuda' is not usable here: built for compute capability 8\.0;"):
        rk.set_backend("cuda")


def test_registered_ops_are_replaced_without_a_warning():
    """torch.compile and torch.export call the registered ops: what the extension registered must give way."""
    script = """
import warnings
warnings.simplefilter("error")
import torch, road_kernels as rk
from road_kernels.backends import registry
from road_kernels.ops import schemas
ours = registry._loaded["python"][0]
reached = []
spy = type("Spy", (), {op: staticmethod(getattr(ours, op)) for op in schemas.OPS})
spy.rotate = staticmethod(lambda *a: reached.append(1) or ours.rotate(*a))
x, r1, r2 = torch.randn(2, 8), torch.ones(8), torch.zeros(8)
schemas.rotate(x, r1, r2, None, "table", 2)
assert not reached
schemas.register_backend(spy, "CPU")
schemas.rotate(x, r1, r2, None, "table", 2)
assert reached
"""
    subprocess.run([sys.executable, "-c", script], check=True)


NVML = """
extern "C" {
int nvmlInit_v2() { return 0; }
int nvmlDeviceGetCount_v2(unsigned* n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned k, void** d) { *d = (void*)(0x7f0000000000 + k); return 0; }
int nvmlDeviceGetCudaComputeCapability(void* d, int* major, int* minor) {
  *major = 7 + (int)((long)d & 1), *minor = (long)d & 1 ? 0 : 5;
  return (long)d >> 32 ? 0 : 2;
}
}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="NVML's name is Linux's")
def test_nvml(tmp_path):
    """With a stand-in for the library: handles of 64 bits, a result of 0."""
    ask = "from road_kernels.backends import capability; print(capability.of_the_machine())"
    library = tmp_path / "libnvidia-ml.so.1"
    (tmp_path / "nvml.cpp").write_text(NVML)
    command = ["c++", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "nvml.cpp")]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        pytest.skip("no C++ compiler")
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True)
    assert run.stdout == "[(7, 5), (8, 0)]\n", run.stderr


def test_without_nvml(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert capability.of_the_machine() is None
