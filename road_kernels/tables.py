"""Tables of coefficients, and folding an adapter into the weights of its layer."""

import torch
from torch import Tensor

from . import _ops, _validate, python_fallback
from ._autograd import needs_plain_formula
from ._backends import choose
from .backends import python as plain


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
    weight: Tensor,
    bias: Tensor | None,
    theta: Tensor,
    alpha: Tensor,
    *,
    variant: str = "road_1",
    group_size: int = 64,
    inplace: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(R W, R b): the linear layer that does the adapter's work itself.

    Each weight is read once and written once; no D x D matrix is made.

    Args:
        weight: [out, in]; its rows are mixed in pairs, D = out. bias: [out] or None.
        inplace: write into weight and bias, and return them.
        The rest as in road_apply.

    Returns:
        Tensors in the dtypes of weight and bias, new ones unless ``inplace``; arithmetic in float32 or wider, rounded
        once. Without gradients: for a merge that can be differentiated, rotate ``weight.t()``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device or shape. Nothing is written then.
        RuntimeError: ``backend`` is not usable here.
    """
    _check_layer(weight, bias, theta, alpha, variant, group_size, inplace)
    with torch.no_grad():
        tables = python_fallback.road_tables(theta, alpha, variant, group_size, dtype=torch.float64)
        return _mix_layer(weight, bias, tables, group_size, inplace, backend)


def road_unmerge(
    weight: Tensor,
    bias: Tensor | None,
    theta: Tensor,
    alpha: Tensor,
    *,
    variant: str = "road_1",
    group_size: int = 64,
    inplace: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(R^-1 W, R^-1 b) by the closed-form inverse of each 2x2 block: undoes road_merge up to rounding.

    Merging and unmerging each round every weight once. In float32 the pair loses about 1e-7 of the length of
    (w_i, w_j); in bfloat16 up to 2^-8 each way, times the condition of the block, and a chain of merges and unmerges
    drifts like a random walk. To avoid it keep the original weights (or a float32 copy) and merge from them, or do not
    merge: the rotation of the output costs one pass over it.

    Arguments and errors as in road_merge; also ValueError, naming the feature pair and the determinant, for a block
    that cannot be inverted. Reading it waits for the device.
    """
    _check_layer(weight, bias, theta, alpha, variant, group_size, inplace)
    with torch.no_grad():
        tables = python_fallback.unmerge_tables(weight.shape[0], theta, alpha, variant, group_size)
        return _mix_layer(weight, bias, tables, group_size, inplace, backend)


def _check_layer(weight, bias, theta, alpha, variant, group_size, inplace):
    _validate.check_layer(weight, bias, group_size)
    _validate.check_angles(weight.t(), theta, alpha, variant, group_size)
    if inplace:
        with torch.no_grad():  # a parameter is a leaf that requires grad, and merging into it is what is wanted
            _validate.check_inplace(weight, "weight")
            if bias is not None:
                _validate.check_inplace(bias, "bias")


def _mix_layer(weight, bias, tables, group_size, inplace, backend):
    module = choose(backend, weight.device)
    if needs_plain_formula():
        module = plain
    elif torch.compiler.is_compiling() and module is not plain:
        module = _ops
    args = *tables, None, "table", group_size
    if not inplace:
        return module.mix_rows(weight, *tables, group_size), None if bias is None else module.rotate(bias, *args)
    module.mix_rows_(weight, *tables, group_size)
    if bias is not None:
        module.rotate_(bias, *args, False)
    return weight, bias
