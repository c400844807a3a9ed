"""How much memory a training step takes."""

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """What autograd saves for the backward, each storage once, without the parameters and buffers of the model."""
    held = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}
    alive = []  # so that no address is reused

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in held:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(t.detach())
        return t.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        forward()
    return sum(saved.values())


def resident_growth(work: Callable[[], None]) -> int | None:
    """Peak growth of the process's resident memory in bytes; None where it cannot be measured."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory that malloc keeps would be reused without being counted
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    except (OSError, AttributeError):
        return None
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    return 1024 * int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
