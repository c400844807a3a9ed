"""The ids of a batch: slots of an AdapterBank, one per request or token, -1 for none."""

import torch
from torch import Tensor

from ..ops import checks
from ..python_fallback.rotate import bank_index


def to_device(slots: list[int], out: Tensor | None, device: torch.device) -> Tensor:
    """The slots, int32 [len(slots)] on the device; or ``out`` filled with them and then with -1."""
    if out is None:
        out = torch.empty(len(slots), dtype=torch.int32, device=device)
    elif not isinstance(out, Tensor) or out.dtype not in checks.INTEGERS or out.device != device:
        raise TypeError(f"out must be an int32 or int64 tensor on {device}, got {_describe(out)}")
    elif out.dim() != 1 or len(out) < len(slots):
        raise ValueError(f"out must be [N] with N >= {len(slots)}, the number of names, got {list(out.shape)}")
    slots = slots + [-1] * (len(out) - len(slots))
    # Pinned memory, so that the copy does not synchronise.
    host = torch.tensor(slots, dtype=out.dtype, device="cpu", pin_memory=device.type == "cuda")
    return out.copy_(host, non_blocking=True)


def of_slots(slots: Tensor, filled: Tensor, out: Tensor | None) -> Tensor:
    """``slots`` with -1 for the empty ones. filled: int32 [capacity], a slot's own number or -1."""
    for name, t in (("slots", slots), ("out", out)):
        if name == "out" and t is None:
            continue
        if not isinstance(t, Tensor) or t.dtype not in checks.INTEGERS or t.device != filled.device:
            raise TypeError(f"{name} must be an int32 or int64 tensor on {filled.device}, got {_describe(t)}")
    if out is not None and out.shape != slots.shape:
        raise ValueError(f"out must have the shape of slots, {list(slots.shape)}, got {list(out.shape)}")
    capacity = len(filled)
    checks.check_id_values(slots, capacity)
    # -1 looks at slot 0, whose answer is not used; a slot outside becomes an index outside.
    found = filled.index_select(0, bank_index(slots, capacity).reshape(-1)).view(slots.shape)
    ids = torch.where(slots == -1, -1, found)
    return ids.to(slots.dtype) if out is None else out.copy_(ids)


def _describe(value) -> str:
    return f"{value.dtype} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
