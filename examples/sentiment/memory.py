"""Two measures of what training needs: the process's peak, and the bytes that one step keeps for its backward."""

import ctypes
import gc
from pathlib import Path

import torch
from torch import nn

MIB = 2**20


class PeakMemory:
    """with PeakMemory() as m: ...; then m.peak_mib is how far the process's resident memory rose above its start.

    Linux only (None elsewhere): the kernel's high-water mark is set back through /proc/self/clear_refs, after the
    allocator has returned what it kept from earlier work.
    """

    peak_mib: float | None = None

    def __enter__(self):
        gc.collect()
        try:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            self.start = resident("VmRSS")
        except (OSError, AttributeError, LookupError):
            self.start = None
        return self

    def __exit__(self, *_):
        if self.start is not None:
            self.peak_mib = (resident("VmHWM") - self.start) / MIB


def resident(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def kept_for_backward(forward, modules: list[nn.Module]) -> float:
    """MiB of distinct storages that ``forward()`` saves for the backward pass, the modules' own parameters left out."""
    own = {p.untyped_storage().data_ptr() for m in modules for p in (*m.parameters(), *m.buffers())}
    saved: dict[int, int] = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()  # holds the graph, so that no storage is freed and counted twice
    total = sum(saved.values()) / MIB
    del result
    return total
