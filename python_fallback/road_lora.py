"""RoAd and LoRA on one linear layer: z = R h + s (x A^T) B^T, where h is the output and x the input of the layer."""

import torch
from torch import Tensor

from .merge import road_merge
from .rotate import road_apply, road_apply_batched, select_rows
from .tables import arithmetic_dtype


def road_lora_apply(
    h: Tensor,
    x: Tensor,
    theta: Tensor,
    alpha: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float = 1.0,
    variant: str = "road_1",
    group_size: int = 64,
) -> Tensor:
    """h: [..., D]; x: [..., in]; lora_a: [r, in] and lora_b: [D, r], as PEFT keeps them.

    Computed in float32 (float64 for float64 h) and rounded once; z has the dtype of h.
    """
    dtype = arithmetic_dtype(h)
    rotated = road_apply(h.to(dtype), theta, alpha, variant, group_size)
    product = x.to(dtype) @ lora_a.to(dtype).t() @ lora_b.to(dtype).t()
    return (rotated + scaling * product).to(h.dtype)


def road_lora_apply_batched(
    h: Tensor,
    x: Tensor,
    theta: Tensor,
    alpha: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    adapter_ids: Tensor,
    lora_ids: Tensor | None = None,
    scaling: float | Tensor = 1.0,
    variant: str = "road_1",
    group_size: int = 64,
) -> Tensor:
    """The same with one adapter per row, out of banks: lora_a [L, r, in], lora_b [L, D, r], scaling a number or [L].

    lora_ids: which LoRA a row has, by default that of adapter_ids; -1 for none.
    """
    dtype = arithmetic_dtype(h)
    z = road_apply_batched(h.to(dtype), theta, alpha, adapter_ids, variant, group_size)
    ids, name = (adapter_ids, "adapter_ids") if lora_ids is None else (lora_ids, "lora_ids")
    ids = ids.reshape(ids.shape + (1,) * (h.dim() - ids.dim()))
    scales = torch.as_tensor(scaling, dtype=dtype, device=h.device).expand(lora_a.shape[0])
    scales = select_rows(scales[:, None], ids, name).expand(*h.shape[:-1], 1)
    ids = ids[..., 0].expand(h.shape[:-1])
    for k in range(lora_a.shape[0]):
        rows = ids == k
        product = x[rows].to(dtype) @ lora_a[k].to(dtype).t() @ lora_b[k].to(dtype).t()
        z = z.index_put((rows,), z[rows] + scales[rows] * product)
    return z.to(h.dtype)


def road_lora_merge(
    weight: Tensor,
    bias: Tensor | None,
    theta: Tensor,
    alpha: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float = 1.0,
    variant: str = "road_1",
    group_size: int = 64,
) -> tuple[Tensor, Tensor | None]:
    """(R W + s B A, R b): the linear layer with both merged into it."""
    mixed, bias = road_merge(weight.to(arithmetic_dtype(weight)), bias, theta, alpha, variant, group_size)
    return add_product(mixed, lora_a, lora_b, scaling).to(weight.dtype), bias


def add_product(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """W + s B A in the dtype of W. weight: [D, in]."""
    return torch.addmm(weight, lora_b.to(weight.dtype), lora_a.to(weight.dtype), alpha=scaling)
