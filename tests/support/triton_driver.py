"""A Triton driver that compiles for an H100, loads nothing, and records launches instead of making them."""

from types import SimpleNamespace

import pytest
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from road_kernels.triton import plan, prepare, prepare_fused

from .triton_aot import forget_launches

H100 = plan.Device(processors=132, lanes=32)
KERNELS = {
    name: kernel
    for module in (prepare, prepare_fused)
    for name, kernel in vars(module).items()
    if name.endswith("_kernel")
}


class RecordingDriver:
    def __init__(self):
        self.launches = []  # (name of the kernel, grid, its arguments)
        self.loaded = []  # names of kernels, one entry per compiled variant
        self.utils = SimpleNamespace(
            load_binary=self._load,
            unload_module=lambda module: None,
            get_device_properties=lambda device: {"max_shared_mem": 232448},
        )

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def launcher_cls(self, source, metadata):
        def launch(x, y, z, stream, function, *rest):
            self.launches.append((function, (x, y, z), rest[4:]))

        return launch

    def _load(self, name, *_):
        self.loaded.append(name)
        return "module", name, 32, 0, 1024


@pytest.fixture
def recorder(monkeypatch):
    """Calls of road_kernels.triton.ops on CPU tensors are planned for an H100 and reach a RecordingDriver."""
    recording = RecordingDriver()
    monkeypatch.setattr(driver, "_active", recording)
    monkeypatch.setattr(prepare, "device_of", lambda index: H100)
    forget_launches()
    for kernel in KERNELS.values():
        kernel.device_caches.clear()
    yield recording
    forget_launches()


def named(recorder, index: int = -1) -> tuple[tuple[int, int, int], dict]:
    """(grid, arguments by name) of a launch."""
    name, grid, values = recorder.launches[index]
    return grid, dict(zip(KERNELS[name].arg_names, values, strict=True))
