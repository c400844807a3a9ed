"""Tables of coefficients, and folding an adapter into the weights of its layer."""

import torch
from torch import Tensor

from . import _validate, python_fallback


def road_tables(
    theta: Tensor, alpha: Tensor, *, variant: str = "road_1", group_size: int = 64
) -> tuple[Tensor, Tensor]:
    """(r1, r2), the coefficients that rotate and rotate_batched take: built once, used for many calls.

    Args:
        theta, alpha: [P], or [A, P] for a bank of A adapters, packed as ``variant`` says (see road_apply).

    Returns:
        r1 = alpha cos(theta), r2 = alpha sin(theta), float32 (float64 if a parameter is); compact [..., D/2] for
        "road_1", [..., D] for "road_2" and "road_4". Differentiable.

    Raises:
        TypeError, ValueError: not floating tensors of one shape [P] or [A, P], or P does not fit group_size.
    """
    _validate.check_variant(variant)
    _validate.check_packed(theta, alpha, variant, group_size)
    return python_fallback.road_tables(theta, alpha, variant, group_size)


def road_merge(
    weight: Tensor, bias: Tensor | None, theta: Tensor, alpha: Tensor, *, variant: str = "road_1", group_size: int = 64
) -> tuple[Tensor, Tensor | None]:
    """(R W, R b): the linear layer that does the adapter's work itself.

    Args:
        weight: [out, in]; its rows are mixed in pairs, D = out. bias: [out] or None.
        The rest as in road_apply.

    Returns:
        New tensors in the dtypes of weight and bias; arithmetic in float32 or wider, rounded once.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device or shape.
    """
    _check_layer(weight, bias, theta, alpha, variant, group_size)
    with torch.no_grad():
        return python_fallback.road_merge(weight, bias, theta, alpha, variant, group_size)


def road_unmerge(
    weight: Tensor, bias: Tensor | None, theta: Tensor, alpha: Tensor, *, variant: str = "road_1", group_size: int = 64
) -> tuple[Tensor, Tensor | None]:
    """(R^-1 W, R^-1 b) by the closed-form inverse of each 2x2 block: undoes road_merge up to rounding.

    In bfloat16 a merge and an unmerge each round the weight once (relative error up to 2^-9 each): keep the original
    weights where that matters. Arguments and errors as in road_merge; also ValueError, naming the feature pair and
    the determinant, for a block that cannot be inverted.
    """
    _check_layer(weight, bias, theta, alpha, variant, group_size)
    with torch.no_grad():
        return python_fallback.road_unmerge(weight, bias, theta, alpha, variant, group_size)


def _check_layer(weight, bias, theta, alpha, variant, group_size):
    _validate.check_layer(weight, bias, group_size)
    _validate.check_angles(weight.t(), theta, alpha, variant, group_size)
