"""Which calls a mixed batch needs: the samples of equal group_size, and the place of each one's adapter."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...ops.checks import VARIANTS

NO_ADAPTER = "__base__"


class Run(NamedTuple):
    """The adapters of a batch that share a group_size: one call."""

    group_size: int
    variant: str  # the widest: every road_1 is a road_2, and every road_2 a road_4
    names: dict[str, list[str]]  # variant -> its adapters
    ids: Tensor  # int32 [B]: the place of each sample's adapter in all ``names``, -1 for none


def _make_plan(layer, adapter_names: list[str], device: torch.device) -> list[Run]:
    here = [name for name in dict.fromkeys(adapter_names) if name != NO_ADAPTER and name in layer.group_size]
    runs = []
    for group_size in dict.fromkeys(layer.group_size[name] for name in here):
        names: dict[str, list[str]] = {}
        for name in here:
            if layer.group_size[name] == group_size:
                names.setdefault(layer.variant[name], []).append(name)
        place = {name: index for index, name in enumerate(name for some in names.values() for name in some)}
        ids = torch.tensor([place.get(name, -1) for name in adapter_names], dtype=torch.int32, device=device)
        runs.append(Run(group_size, max(names, key=VARIANTS.index), names, ids))
    return runs


# The latest plans, each after copies of what it is for. The layers of a model share them, so that names are looked up
# and ids copied to the device once per batch.
_plans: list[tuple] = []
_MOST_PLANS = 8


def plan(layer, adapter_names: list[str], device: torch.device) -> list[Run]:
    global _plans
    if torch.compiler.is_compiling():
        return _make_plan(layer, adapter_names, device)
    for names, group_size, variant, on, runs in _plans:
        if names == adapter_names and group_size == layer.group_size and variant == layer.variant and on == device:
            return runs
    with torch.inference_mode(False):  # inference tensors could not be saved by a later call that records gradients
        runs = _make_plan(layer, adapter_names, device)
    made = list(adapter_names), dict(layer.group_size), dict(layer.variant), device, runs
    _plans = [made, *_plans[: _MOST_PLANS - 1]]
    return runs
