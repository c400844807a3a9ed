"""RoAd and LoRA merged into the weights of their layer, and unmerged."""

import torch
from torch import Tensor

from ..distributed import dispatch as sharded
from ..ops import lora_checks
from ..python_fallback.road_lora import add_product
from ..python_fallback.tables import arithmetic_dtype
from .lora_products import without_autocast
from .merge import check_layer, road_merge, road_unmerge


def road_lora_merge(
    weight: Tensor,
    bias: Tensor | None,
    theta: Tensor,
    alpha: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    *,
    scaling: float = 1.0,
    variant: str = "road_1",
    group_size: int = 64,
    inplace: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(R W + s B A, R b): the linear layer with both adapters merged into it.

    Args as in road_merge and road_lora_apply. Computed in float32 or wider and rounded once; without gradients.
    """
    lora = lora_a, lora_b, scaling
    return _mixed(weight, bias, theta, alpha, lora, variant, group_size, inplace, backend, undo=False)


def road_lora_unmerge(
    weight: Tensor,
    bias: Tensor | None,
    theta: Tensor,
    alpha: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    *,
    scaling: float = 1.0,
    variant: str = "road_1",
    group_size: int = 64,
    inplace: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(R^-1 (W - s B A), R^-1 b): undoes road_lora_merge up to rounding; see road_unmerge on that, and on errors."""
    lora = lora_a, lora_b, scaling
    return _mixed(weight, bias, theta, alpha, lora, variant, group_size, inplace, backend, undo=True)


def _mixed(weight, bias, theta, alpha, lora, variant, group_size, inplace, backend, undo):
    _check(weight, bias, theta, alpha, *lora, variant, group_size, inplace)
    *factors, scaling = lora
    rotation = {"variant": variant, "group_size": group_size, "backend": backend}
    with torch.no_grad(), without_autocast(weight):
        wide = weight.to(arithmetic_dtype(weight))
        if undo:
            mixed, mixed_bias = road_unmerge(add_product(wide, *factors, -scaling), bias, theta, alpha, **rotation)
        else:
            mixed, mixed_bias = road_merge(wide, bias, theta, alpha, **rotation)
            mixed = add_product(mixed, *factors, scaling)
        if not inplace:
            return mixed.to(weight.dtype), mixed_bias
        return weight.copy_(mixed), None if bias is None else bias.copy_(mixed_bias)


def _check(weight, bias, theta, alpha, lora_a, lora_b, scaling, variant, group_size, inplace) -> None:
    check_layer(weight, bias, theta, alpha, variant, group_size, inplace)
    lora_checks.check_factors(lora_a, lora_b, weight.shape[1], weight.shape[0])
    lora_checks.check_number(scaling)
    sharded.refuse("RoAd + LoRA", weight=weight, lora_a=lora_a, lora_b=lora_b)
    for name, t in (("lora_a", lora_a), ("lora_b", lora_b)):
        if t.device != weight.device:
            raise ValueError(f"{name} must be on the device of weight ({weight.device}), got {t.device}")
