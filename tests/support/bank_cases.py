"""A bank of four layers, adapters and checkpoints that fit it, and a copy of all its tables."""

import json

import torch
from support.problems import make_params

from road_kernels import Adapter, AdapterBank

WIDTHS = {"layers.0.qkv": 24, "layers.0.down": 16, "layers.1.qkv": 24, "layers.1.down": 16}
G = 8


def make_layers(form, seed=7, dtype=torch.float32) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What AdapterBank.update takes: parameters or, for "table" and "table_half", ready tables."""
    return {
        name: make_params(form, None, width, dtype, seed=100 * seed + k)
        for k, (name, width) in enumerate(WIDTHS.items())
    }


def make_adapter(seed=1, variant="road_1", widths=WIDTHS, group_size=G, dtype=torch.float32) -> Adapter:
    layers = {
        name: make_params(variant, None, width, dtype, seed=100 * seed + k)
        for k, (name, width) in enumerate(widths.items())
    }
    return Adapter(layers, variant, group_size)


def make_bank(capacity=3, **kw) -> AdapterBank:
    return AdapterBank(WIDTHS, capacity, group_size=G, **kw)


def contents(bank) -> list[torch.Tensor]:
    """A copy of every table of the bank."""
    return [table.clone() for layer in bank.widths for table in bank.tables(layer)]


def unchanged(bank, before, slots=slice(None)) -> bool:
    return all(torch.equal(a[slots], b[slots]) for a, b in zip(contents(bank), before, strict=True))


CONFIG = {"peft_type": "ROAD", "variant": "road_1", "group_size": G, "target_modules": ["qkv", "down"]}


def write_checkpoint(folder, adapter=None, config=(), extra=None, prefix="base_model.model."):
    """A folder as PEFT's save_pretrained writes it, which test_adapters_that_peft_saved checks."""
    adapter = adapter or make_adapter()
    from safetensors.torch import save_file  # only tests of checkpoints need it

    folder.mkdir(exist_ok=True)
    given = {**CONFIG, "variant": adapter.variant, "group_size": adapter.group_size, **dict(config)}
    (folder / "adapter_config.json").write_text(json.dumps(given))
    weights = {}
    for name, (theta, alpha) in adapter.layers.items():
        weights[f"{prefix}{name}.road_theta"], weights[f"{prefix}{name}.road_alpha"] = theta, alpha
    save_file({**weights, **(extra or {})}, folder / "adapter_model.safetensors")
    return folder
