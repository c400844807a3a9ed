"""RoAd and LoRA on one linear layer, z = R h + s (x A^T) B^T: the rotation, and LoRA's second product added into it.

RoAd alone has 2 to 8 parameters for two features of the output; with LoRA beside it capacity is chosen by the rank.
"""

from typing import Any

import torch
from torch import Tensor

from ..backends.registry import choose
from ..distributed import dispatch as sharded
from ..ops import aliasing, checks, lora_checks
from ..ops.autograd import RotateAndAdd, is_transformed, wants_grad
from .lora_products import add_products, without_autocast
from .rotate import road_apply, road_apply_batched


def road_lora_apply(
    h: Tensor,
    x: Tensor,
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
) -> Tensor:
    """z = R(theta, alpha) h + scaling (x lora_a^T) lora_b^T, for h the output and x the input of a linear layer.

    What LoRA costs, and one rotation: lora_b's product is added into the memory that the rotation has written.

    Args:
        h: [..., D]. x: [..., in], the leading shape of h.
        theta, alpha, variant, group_size, backend: as in road_apply.
        lora_a: [r, in]. lora_b: [D, r]. The shapes of PEFT's lora_A.weight and lora_B.weight. All four parameters on
            h's device, each in any of the four dtypes.
        scaling: a number; PEFT's lora_alpha / r.
        inplace: write z into h and return h. Training then saves h's size less: what is rotated is recovered from z by
            a product of rank r, and rounding reaches the gradients of theta and alpha as in road_apply.

    Returns:
        z with the shape and dtype of h. R h is computed in float32 and rounded; the products are torch's in h's dtype,
        whatever autocast says, with x and both factors cast to it, and round once more as they are added.

    Gradients reach h, x and the four parameters, each in its dtype, to second order.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device or shape. DTensors are not taken.
        RuntimeError, ValueError: as in road_apply.

    Source: Liao & Monz, "3-in-1: 2D Rotary Adaptation", arXiv 2409.00119, which adds LoRA where RoAd alone runs out of
    capacity.
    """
    _check(h, x, theta, alpha, lora_a, lora_b, scaling, group_size, batched=False)
    if inplace and not is_transformed():
        aliasing.check_not_shared(h, x, lora_a, lora_b, name="h")  # the rest is checked by road_apply
    options: dict[str, Any] = {"variant": variant, "group_size": group_size, "backend": backend}
    with without_autocast(h):
        a, b = lora_a.to(h.dtype), lora_b.to(h.dtype)
        low = x.to(h.dtype).reshape(-1, x.shape[-1]) @ a.t()
        if inplace and not is_transformed() and wants_grad(h, theta, alpha, low, b):
            checks.check_angles(h, theta, alpha, variant, group_size)
            aliasing.check_inplace(h, "h")
            aliasing.check_recorded_inplace(h, "h")
            return RotateAndAdd.apply(h, theta, alpha, low, b, scaling, variant, group_size, choose(backend, h.device))
        inside = inplace and not is_transformed()
        z = road_apply(_kept(h, inplace and not inside), theta, alpha, inplace=inside, **options)
        z = _added(z, low, b.t(), scaling)
        return h.copy_(z) if inplace and z is not h else z


def road_lora_apply_batched(
    h: Tensor,
    x: Tensor,
    theta: Tensor,
    alpha: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    adapter_ids: Tensor,
    lora_ids: Tensor | None = None,
    *,
    scaling: float | Tensor = 1.0,
    variant: str = "road_1",
    group_size: int = 64,
    inplace: bool = False,
    backend: str | None = None,
) -> Tensor:
    """road_lora_apply with one RoAd and one LoRA per row, out of banks.

    Args:
        theta, alpha: [A, P]. lora_a: [L, r, in]. lora_b: [L, D, r]. Pad smaller ranks with zeros.
        adapter_ids: int32 or int64, its shape a prefix of h.shape[:-1]; -1: no rotation.
        lora_ids: the same for lora_a and lora_b; by default adapter_ids, with L = A. -1: no LoRA. A row without either
            passes bit for bit; on a GPU, and where the program is traced, up to the sign of a zero.
        scaling: a number, or [L].
        inplace: write z into h and return h. Training saves nothing by it here.
        The rest as in road_lora_apply. On a CPU the rows are grouped by their LoRA; elsewhere the factors are gathered,
            which reads nothing back from the device (docs/road_lora.md has what they cost).

    Raises:
        IndexError: an id outside -1 .. A-1 or -1 .. L-1 (on a GPU: a device-side assertion).
        The rest as in road_lora_apply.
    """
    _check(h, x, theta, alpha, lora_a, lora_b, scaling, group_size, batched=True)
    ids, name = (adapter_ids, "adapter_ids") if lora_ids is None else (lora_ids, "lora_ids")
    checks.check_ids(h, ids, name, "h")
    sharded.refuse("RoAd + LoRA", **{name: ids})
    checks.check_id_values(ids, lora_a.shape[0], name)
    options: dict[str, Any] = {"variant": variant, "group_size": group_size, "backend": backend}
    records = wants_grad(h, x, theta, alpha, lora_a, lora_b)
    if inplace and not is_transformed():
        aliasing.check_inplace(h, "h")
        others = (scaling, ids) if isinstance(scaling, Tensor) else (ids,)
        aliasing.check_not_shared(h, x, lora_a, lora_b, *others, name="h")
        if records:
            aliasing.check_recorded_inplace(h, "h")
    inside = inplace and not is_transformed() and not records
    with without_autocast(h):
        z = road_apply_batched(_kept(h, inplace and not inside), theta, alpha, adapter_ids, inplace=inside, **options)
        z = add_products(z, x.to(h.dtype), lora_a.to(h.dtype), lora_b.to(h.dtype), ids, scaling)
        return h.copy_(z) if inplace and z is not h else z


def _check(h, x, theta, alpha, lora_a, lora_b, scaling, group_size, batched: bool) -> None:
    """All but the shapes of theta and alpha, which the rotation checks."""
    checks.check_x(h, group_size, "h")
    lora_checks.check_lora(h, x, lora_a, lora_b, scaling, batched)
    for name, t in (("theta", theta), ("alpha", alpha)):
        checks.check_float_tensor(name, t)
    sharded.refuse("RoAd + LoRA", h=h, x=x, theta=theta, alpha=alpha, lora_a=lora_a, lora_b=lora_b)


def _added(z: Tensor, low: Tensor, bt: Tensor, scaling: float) -> Tensor:
    """z + scaling low @ bt, in the memory of z if nothing transforms the program and z can be seen as a matrix."""
    if is_transformed():
        return torch.addmm(z.reshape(low.shape[0], -1), low, bt, alpha=scaling).view(z.shape)
    try:
        z.view(-1, z.shape[-1]).addmm_(low, bt, alpha=scaling)
    except RuntimeError:  # a slice whose rows lie at no one distance
        return z.add_((low @ bt).view(z.shape), alpha=scaling)
    return z


def _kept(h: Tensor, overwritten: bool) -> Tensor:
    """What autograd may save of h: a copy, if the result is copied into it later."""
    return h.clone() if overwritten else h
