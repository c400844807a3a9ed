"""Copies of the inputs, so that successive calls do not find their data in the cache."""

import os
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

Inputs = SimpleNamespace  # the tensors of a call by name, and anything else it needs


def copied(inputs: Inputs) -> Inputs:
    """The same values in new memory."""

    def copy(value):
        return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value

    return Inputs(**{name: copy(value) for name, value in vars(inputs).items()})


def held_bytes(inputs: Inputs) -> int:
    return sum(value.nbytes for value in vars(inputs).values() if isinstance(value, Tensor))


def sets_needed(touched: int, held: int, working_set: int, memory: int, most: int = 256) -> int:
    """How many copies of the inputs it takes until the data of the calls exceed ``working_set`` bytes.

    A call touches ``touched`` bytes of a set that holds ``held`` (most of a bank of a thousand adapters stays
    untouched); all sets together stay below ``memory``. At most ``most``: calls so tiny that this is not enough are
    timed on cached data, which is where a model's previous op leaves it, and the result says so.
    """
    wanted = -(-working_set // max(1, touched))
    return max(1, min(wanted, most, memory // max(1, held)))


def working_set(device: torch.device) -> int:
    """More than twice the last level of cache: half of what a call reads may be left over from the previous one. On a
    GPU enough for the largest calls to have two sets too: a cache may keep part of what does not fit."""
    return max(512 << 20, 3 * cache_bytes(device)) if device.type == "cuda" else 3 * cache_bytes(device)


def cache_bytes(device: torch.device) -> int:
    """The last level of cache: L2 of a GPU, L3 of a CPU (32 MiB where the system does not report it)."""
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
