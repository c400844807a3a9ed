"""Merging an adapter into the weights of its layer, and unmerging it."""

import torch
from torch import Tensor

from .. import python_fallback
from ..backends.registry import choose, is_traced_as_formula
from ..distributed import dispatch as sharded
from ..ops import aliasing, checks, formula, schemas
from ..ops.autograd import BelowAutograd, needs_formula
from .tables import tables_in


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
    """(R W, R b): the linear layer with the adapter merged into it.

    Each weight is read once and written once; no D x D matrix is built.

    Args:
        weight: [out, in]; its rows are mixed in pairs, D = out. bias: [out] or None.
        inplace: write into weight and bias, and return them. Their memory must not overlap.
        All four may be DTensors of one mesh; every rank of it makes the call. theta and alpha are gathered. Rows cut at
        multiples of group_size and columns stay where they are, others are redistributed and come back.
        The rest as in road_apply.

    Returns:
        Tensors in the dtypes of weight and bias, new ones unless ``inplace``; arithmetic in float32 or wider, rounded
        once. Without gradients: for a differentiable merge, rotate ``weight.t()``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device or shape. Nothing is written then.
        RuntimeError: ``backend`` is not usable here.
    """
    check_layer(weight, bias, theta, alpha, variant, group_size, inplace)
    with torch.no_grad():
        theta, alpha = _parameters(weight, bias, theta, alpha, backend)
        tables = tables_in(torch.float64, theta, alpha, variant, group_size, backend)
        return _merge_layer(weight, bias, tables, group_size, inplace, backend)


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

    Merging and unmerging round every weight once each. In float32 a pair (w_i, w_j) loses about 1e-7 of its length; in
    bfloat16 up to 2^-8 each way, times the condition of the block, and a chain of merges and unmerges drifts like a
    random walk. To avoid that, keep the original weights (or a float32 copy) and merge from them, or do not merge:
    rotating the output costs one pass over it.

    Arguments and errors as in road_merge; also ValueError, naming the feature pair and the determinant, for a block
    that cannot be inverted. Reading it synchronises with the device.
    """
    check_layer(weight, bias, theta, alpha, variant, group_size, inplace)
    with torch.no_grad():
        theta, alpha = _parameters(weight, bias, theta, alpha, backend)
        tables = python_fallback.unmerge_tables(weight.shape[0], theta, alpha, variant, group_size)
        return _merge_layer(weight, bias, tables, group_size, inplace, backend)


def check_layer(weight, bias, theta, alpha, variant, group_size, inplace):
    checks.check_layer(weight, bias, group_size)
    checks.check_angles(weight.t(), theta, alpha, variant, group_size)
    if inplace:
        with torch.no_grad():  # a parameter is a leaf that requires grad, and is meant to be written
            aliasing.check_inplace(weight, "weight")
            if bias is not None:
                aliasing.check_inplace(bias, "bias")
                if not sharded.is_sharded(weight, bias):  # whose memory is not theirs
                    aliasing.check_apart(weight, bias, ("weight", "bias"))


def _parameters(weight, bias, theta, alpha, backend):
    """theta and alpha, of a sharded layer in full on every rank, so that all of them refuse a singular block."""
    if not sharded.is_sharded(weight, bias, theta, alpha):
        return theta, alpha
    sharded.check(backend, weight=weight, bias=bias, theta=theta, alpha=alpha)
    return sharded.gathered(theta), sharded.gathered(alpha)


def _merge_sharded(weight, bias, tables, group_size, inplace):
    """Back in the placements of weight and bias, whichever the op needed: an optimizer or FSDP holds on to them."""
    tables = [sharded.replicated(t, weight) for t in tables]
    merged = BelowAutograd.merge(weight, *tables, group_size).redistribute(placements=weight.placements)
    if bias is not None:
        mixed = BelowAutograd.rotate(bias, *tables, None, "table", group_size).redistribute(placements=bias.placements)
    if not inplace:
        return merged, None if bias is None else mixed
    weight.copy_(merged)
    return weight, None if bias is None else bias.copy_(mixed)


def _merge_layer(weight, bias, tables, group_size, inplace, backend):
    if sharded.is_sharded(weight):
        return _merge_sharded(weight, bias, tables, group_size, inplace)
    if needs_formula():
        module = formula
    elif torch.compiler.is_compiling():
        module = formula if is_traced_as_formula(backend, weight.device) else schemas
    else:
        module = choose(backend, weight.device)
    args = *tables, None, "table", group_size
    if not inplace:
        return module.merge(weight, *tables, group_size), None if bias is None else module.rotate(bias, *args)
    module.merge_(weight, *tables, group_size)
    if bias is not None:
        module.rotate_(bias, *args, False)
    return weight, bias
