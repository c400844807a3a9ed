"""Mixed batches: one adapter per sample, by ``adapter_names``, in one call per layer."""

import functools

import torch
from torch import Tensor

from ... import road_apply_batched
from ...ops.checks import VARIANTS
from . import _options

NO_ADAPTER = "__base__"


def mixed_batch_forward(original):
    @functools.wraps(original)
    def _mixed_batch_forward(self, x, *args, adapter_names, **kwargs):
        result = self.base_layer(x, *args, **kwargs)
        if type(result) is not Tensor:  # a subclass, with arithmetic of its own
            return original(self, x, *args, adapter_names=adapter_names, **kwargs)
        return apply_mixed_batch(self, result, adapter_names)

    return _mixed_batch_forward


def apply_mixed_batch(layer, result: Tensor, adapter_names: list[str]) -> Tensor:
    """``result`` [B, ..., D], sample b rotated by adapter_names[b]; untouched for "__base__" and unknown names.

    Written over ``result`` where no gradient is recorded, as PEFT does.
    """
    here = [name for name in dict.fromkeys(adapter_names) if name != NO_ADAPTER and name in layer.road_theta]
    for group_size in dict.fromkeys(layer.group_size[name] for name in here):
        names = tuple(name for name in here if layer.group_size[name] == group_size)
        theta, alpha, variant = stack(layer, names, group_size)
        recorded = torch.is_grad_enabled() and (result.requires_grad or theta.requires_grad or alpha.requires_grad)
        result = road_apply_batched(
            result,
            theta,
            alpha,
            adapter_ids(tuple(adapter_names), names, result.device),
            variant=variant,
            group_size=group_size,
            inplace=_options.inplace or (not recorded and result.is_contiguous()),
        )
    return result


def stack(layer, names: tuple[str, ...], group_size: int) -> tuple[Tensor, Tensor, str]:
    """theta and alpha of all ``names``, [A, P], packed as the widest variant among them; and that variant.

    Built in every call from the current parameters, so it cannot be stale, also when a CUDA graph replays it: writes
    through ``.data``, fused optimizers and sharding wrappers leave no trace that a cache could check. It costs, for 16
    adapters of D = 4096 in bfloat16 on one core of an AMD EPYC, 38 us more than a ready table, beside 2800 us for the
    base layer.
    """
    variants = {layer.variant[name] for name in names}
    variant = max(variants, key=VARIANTS.index)
    theta, alpha = (
        torch.stack([_widen(parameters[name], layer.variant[name], variant, group_size) for name in names])
        for parameters in (layer.road_theta, layer.road_alpha)
    )
    return theta, alpha, variant


def _widen(parameter: Tensor, variant: str, to: str, group_size: int) -> Tensor:
    """The same adapter in the packing of a wider variant: every road_1 is a road_2, and every road_2 a road_4."""
    if variant == "road_1" and to != "road_1":  # both rows of a pair: [D/g, g/2] -> [D/g, 2, g/2]
        parameter, variant = _twice(parameter, group_size // 2), "road_2"
    if variant == "road_2" and to == "road_4":  # both slots: [D/g, g] -> [D/g, 2, g]
        parameter = _twice(parameter, group_size)
    return parameter


def _twice(parameter: Tensor, run: int) -> Tensor:
    return parameter.reshape(-1, 1, run).expand(-1, 2, run).reshape(-1)


def adapter_ids(adapter_names: tuple[str, ...], names: tuple[str, ...], device: torch.device) -> Tensor:
    """int32 [B]: the place of each sample's adapter in ``names``, -1 for none.

    Shared by the layers of a model: copied to the device once per batch.
    """
    if torch.compiler.is_compiling():
        return _make_ids(adapter_names, names, device)
    return _cached_ids(adapter_names, names, device)


def _make_ids(adapter_names, names, device):
    place = {name: index for index, name in enumerate(names)}
    return torch.tensor([place.get(name, -1) for name in adapter_names], dtype=torch.int32, device=device)


@functools.lru_cache(maxsize=64)
def _cached_ids(adapter_names, names, device):
    with torch.inference_mode(False):  # an inference tensor could not be saved by a later call that records gradients
        return _make_ids(adapter_names, names, device)
