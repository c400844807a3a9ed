"""The forward of PEFT's RoAd layers on these kernels. PEFT is not imported: the layer comes as an argument."""

import torch
from torch import Tensor

from .functional import road_apply, road_apply_batched


def forward(layer, x: Tensor, args: tuple, kwargs: dict) -> Tensor:
    """As PEFT's, with arithmetic in float32 that is rounded once, in one pass for each adapter, or for each kind of
    adapter of a mixed batch."""
    layer._check_forward_args(x, *args, **kwargs)
    names = kwargs.pop("adapter_names", None)
    if layer.disable_adapters and layer.merged:
        layer.unmerge()
    result = layer.base_layer(x, *args, **kwargs)
    if layer.disable_adapters or layer.merged:
        return result
    if names is not None:
        return _mixed(layer, result, names)
    active = [name for name in layer.active_adapters if name in layer.road_theta]
    dtype = result.dtype
    if len(active) > 1 and dtype.itemsize < 4:
        result = result.float()
    for name in active:
        theta, alpha = layer.road_theta[name], layer.road_alpha[name]
        result = road_apply(result, theta, alpha, variant=layer.variant[name], group_size=layer.group_size[name])
    return result.to(dtype)


def _mixed(layer, result: Tensor, names: list[str]) -> Tensor:
    """Sample b by the adapter names[b]; those of one variant and group_size in one call, which passes the others."""
    kinds: dict[tuple[str, int], list[str]] = {}
    for name in dict.fromkeys(names):
        if name in layer.road_theta:  # neither "__base__" nor an adapter of other layers
            kinds.setdefault((layer.variant[name], layer.group_size[name]), []).append(name)
    for (variant, group_size), of_kind in kinds.items():
        ids = torch.tensor(
            [of_kind.index(name) if name in of_kind else -1 for name in names], dtype=torch.int32, device=result.device
        )
        theta, alpha = (torch.stack([p[name] for name in of_kind]) for p in (layer.road_theta, layer.road_alpha))
        result = road_apply_batched(result, theta, alpha, ids, variant=variant, group_size=group_size)
    return result
