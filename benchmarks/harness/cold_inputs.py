"""Inputs several times over, so that successive calls do not find their data in the cache."""

import os
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

Inputs = SimpleNamespace  # named tensors, and anything else, of one call


def copied(inputs: Inputs) -> Inputs:
    """The same values in memory of their own."""

    def copy(value):
        return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value

    return Inputs(**{name: copy(value) for name, value in vars(inputs).items()})


def held_bytes(inputs: Inputs) -> int:
    return sum(value.nbytes for value in vars(inputs).values() if isinstance(value, Tensor))


def sets_needed(touched: int, held: int, working_set: int, memory: int, most: int = 256) -> int:
    """How many sets of inputs make the calls' data exceed ``working_set`` bytes.

    A call touches ``touched`` bytes of a set that holds ``held`` (a bank of a thousand adapters is mostly not touched);
    all sets together stay below ``memory``. At most ``most``: beyond, tiny calls are timed on data in the cache, where
    they would find it in a model too, just written; the result then says so.
    """
    wanted = -(-working_set // max(1, touched))
    return max(1, min(wanted, most, memory // max(1, held)))


def working_set(device: torch.device) -> int:
    """More than twice the last level of cache: half of what a call reads may be left from the call before. On a GPU
    so much that the largest calls have two sets, too: a cache may keep a part of what no longer fits."""
    return max(512 << 20, 3 * cache_bytes(device)) if device.type == "cuda" else 3 * cache_bytes(device)


def cache_bytes(device: torch.device) -> int:
    """The last level of cache: L2 of a GPU, L3 of a CPU (32 MiB where the system does not say)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
        return int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]]
    except (OSError, KeyError, ValueError):
        return 32 << 20


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
