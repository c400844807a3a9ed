"""What the tests of AdapterBank share: a bank of four layers, adapters for it, and comparing all its tables."""

import torch
from common import make_params

from road_kernels.adapter import Adapter
from road_kernels.bank import AdapterBank

WIDTHS = {"layers.0.qkv": 24, "layers.0.down": 16, "layers.1.qkv": 24, "layers.1.down": 16}
G = 8


def make_adapter(seed=1, variant="road_1", widths=WIDTHS, group_size=G, dtype=torch.float32) -> Adapter:
    layers = {
        name: make_params(variant, None, width, dtype, seed=100 * seed + k)
        for k, (name, width) in enumerate(widths.items())
    }
    return Adapter(layers, variant, group_size)


def make_bank(capacity=3, **kw) -> AdapterBank:
    return AdapterBank(WIDTHS, capacity, group_size=G, **kw)


def contents(bank) -> list[torch.Tensor]:
    """A copy of every table."""
    return [table.clone() for layer in bank.widths for table in bank.tables(layer)]


def unchanged(bank, before, slots=slice(None)) -> bool:
    return all(torch.equal(a[slots], b[slots]) for a, b in zip(contents(bank), before, strict=True))
