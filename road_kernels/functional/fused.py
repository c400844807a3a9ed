"""The rotation inside the elementwise kernel that follows it in a decoder layer: no launch, no traffic of its own.

r1, r2 and adapter_ids as in rotate (without ids) and rotate_batched (with ids): tables [D] or compact [D/2], with ids
banks of them; id -1 is no adapter, and what follows the rotation happens to that row as to the others. Arithmetic is
float32 (float64 for float64 x), rounded once at the end, where the two kernels one after the other round twice.

Gradients reach every tensor but the positions and ids, to second order.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..backends.registry import choose, is_traced_as_formula
from ..distributed import dispatch as sharded
from ..ops import aliasing, fused_checks, fused_formula, schemas
from ..ops.autograd import BelowAutograd, needs_formula, wants_grad
from ..ops.extension import EXTENSION
from ..ops.fused_autograd import RotateAddRmsNorm, RotateRope, RotateSiluMul, kept_of


def _elsewhere(*_):
    return NotImplemented


# A whole call in one step of C++, or NotImplemented, as in rotate.py.
_silu_mul = EXTENSION.rotate_silu_mul if EXTENSION else _elsewhere
_add_rms_norm = EXTENSION.rotate_add_rms_norm if EXTENSION else _elsewhere
_rope = EXTENSION.rotate_rope if EXTENSION else _elsewhere
_is_dynamo_tracing = torch.compiler.is_dynamo_compiling  # is_compiling takes three times as long


def rotate_silu_mul(
    x: Tensor,
    r1: Tensor,
    r2: Tensor,
    adapter_ids: Tensor | None = None,
    *,
    group_size: int = 64,
    backend: str | None = None,
) -> Tensor:
    """silu(gate) * up for [gate, up] = R x: the output of a packed gate and up projection, rotated and activated.

    Args:
        x: [..., 2 I], gate in columns [0, I), up in [I, 2 I); any leading shape and strides; float16, bfloat16,
            float32 or float64.
        r1, r2: [2 I] or compact [I]; with adapter_ids [A, 2 I] or [A, I]. Any of the four dtypes.
        adapter_ids: int32 or int64, its shape a prefix of x.shape[:-1]; -1: no adapter.
        group_size: even, divides I.
        backend: as in rotate.

    Returns:
        [..., I], contiguous, in x's dtype. A backward saves x only: gate and up are computed again.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device or shape.
        IndexError: an id outside -1 .. A-1 (on a GPU: a device-side assertion).
        RuntimeError: ``backend`` is not usable here.
    """
    args = x, r1, r2, adapter_ids, group_size
    if not _is_dynamo_tracing() and (z := _silu_mul(*args, backend)) is not NotImplemented:
        return z
    if torch.compiler.is_compiling():
        return _traced(x, backend, fused_checks.check_silu_mul, args).rotate_silu_mul(*args)
    fused_checks.check_silu_mul(*args)
    if needs_formula():
        return fused_formula.rotate_silu_mul(*args)
    module = _module(backend, x=x, r1=r1, r2=r2, adapter_ids=adapter_ids)
    if wants_grad(x, r1, r2):
        return RotateSiluMul.apply(*args, module)
    return module.rotate_silu_mul(*args)


def rotate_add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    r1: Tensor,
    r2: Tensor,
    adapter_ids: Tensor | None = None,
    *,
    eps: float = 1e-6,
    group_size: int = 64,
    inplace: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, s): s = R x + residual and y = weight * s / sqrt(mean(s^2) + eps), the RMSNorm of the sum.

    Args:
        x: [..., D], the output of an attention's or MLP's last projection. dtypes and strides as in rotate_silu_mul.
        residual: the shape and dtype of x.
        weight: [D], any of the four dtypes.
        r1, r2, adapter_ids, backend: as in rotate_silu_mul, for D features.
        eps: added to the mean square.
        group_size: even, divides D.
        inplace: write y into x and s into residual, and return them. Their memory must not overlap, nor that of
            weight, r1 or r2. Training then keeps a copy of x where r1 or r2 needs a gradient.

    Returns:
        y and s in x's dtype, contiguous (x and residual themselves if ``inplace``). y is computed from s before s is
        rounded.

    Raises:
        As in rotate_silu_mul; RuntimeError for ``inplace`` on a leaf that requires grad.
    """
    args = x, residual, weight, r1, r2, adapter_ids, eps, group_size
    if not _is_dynamo_tracing() and (pair := _add_rms_norm(*args, inplace, backend)) is not NotImplemented:
        return pair
    if torch.compiler.is_compiling():
        y, s = _traced(x, backend, fused_checks.check_add_rms_norm, args).rotate_add_rms_norm(*args)
        if inplace and x is residual:  # other overlaps have no addresses here
            fused_checks.refuse_one_memory()
        return (x.copy_(y), residual.copy_(s)) if inplace else (y, s)
    fused_checks.check_add_rms_norm(*args)
    if inplace:
        aliasing.check_inplace(x)
        aliasing.check_inplace(residual, "residual")
    if needs_formula():
        y, s = fused_formula.rotate_add_rms_norm(*((x.clone(), residual.clone(), *args[2:]) if inplace else args))
        if not inplace:
            return y, s
        s = residual.copy_(s)  # first: a vmap over x alone refuses it
        return x.copy_(y), s
    module = _module(backend, x=x, residual=residual, weight=weight, r1=r1, r2=r2, adapter_ids=adapter_ids)
    if wants_grad(x, residual, weight, r1, r2):
        if inplace:
            aliasing.check_recorded_inplace(x)
            aliasing.check_recorded_inplace(residual, "residual")
        return RotateAddRmsNorm.apply(*args[:5], kept_of(x, r1, r2, inplace), *args[5:], inplace, module)
    if not inplace:
        return module.rotate_add_rms_norm(*args)
    module.rotate_add_rms_norm_(*args)
    return x, residual


def rotate_rope(
    qkv: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    r1: Tensor,
    r2: Tensor,
    adapter_ids: Tensor | None = None,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    is_neox: bool = True,
    group_size: int = 64,
    inplace: bool = False,
    backend: str | None = None,
) -> Tensor:
    """R on the output of a packed q, k and v projection, then RoPE on the heads of q and k.

    Args:
        qkv: [..., (num_heads + 2 num_kv_heads) head_dim]: the heads of q, of k, of v. dtypes and strides as in
            rotate_silu_mul.
        positions: int32 or int64, the shape of qkv.shape[:-1] or one that broadcasts to it; 0 .. max_position - 1.
        cos_sin_cache: [max_position, rotary_dim], cos in the first half of the columns, sin in the second;
            rotary_dim is even and at most head_dim, further features of a head are not turned. float32 or x's dtype.
        r1, r2, adapter_ids, backend: as in rotate_silu_mul, for all of qkv's features.
        is_neox: feature k of a head pairs with k + rotary_dim / 2 (Llama in transformers and vLLM); False: adjacent
            features pair (GPT-J).
        group_size: even, divides head_dim.
        inplace: write the result into qkv and return it. Training then keeps a copy of qkv where r1 or r2 needs a
            gradient.

    Returns:
        The shape and dtype of qkv, contiguous (qkv itself if ``inplace``).

    Raises:
        As in rotate_silu_mul; IndexError for a position out of the cache (on a GPU: a device-side assertion), which is
        never read; RuntimeError for ``inplace`` on a leaf that requires grad.
    """
    heads = num_heads, num_kv_heads, head_dim
    args = qkv, positions, cos_sin_cache, r1, r2, adapter_ids, *heads, is_neox, group_size
    if not _is_dynamo_tracing() and (z := _rope(*args, inplace, backend)) is not NotImplemented:
        return z
    if torch.compiler.is_compiling():
        z = _traced(qkv, backend, fused_checks.check_rope, args).rotate_rope(*args)
        return qkv.copy_(z) if inplace else z
    fused_checks.check_rope(*args)
    if inplace:
        aliasing.check_inplace(qkv, "qkv")
    if needs_formula() or wants_grad(cos_sin_cache):
        z = fused_formula.rotate_rope(*((qkv.clone(), *args[1:]) if inplace else args))
        return qkv.copy_(z) if inplace else z
    module = _module(
        backend, qkv=qkv, positions=positions, cos_sin_cache=cos_sin_cache, r1=r1, r2=r2, adapter_ids=adapter_ids
    )
    if wants_grad(qkv, r1, r2):
        if inplace:
            aliasing.check_recorded_inplace(qkv, "qkv")
        kept = kept_of(qkv, r1, r2, inplace)
        return RotateRope.apply(*args[:5], kept, adapter_ids, heads, is_neox, group_size, inplace, module)
    if not inplace:
        return module.rotate_rope(*args)
    module.rotate_rope_(*args)
    return qkv


def _module(backend: str | None, **tensors: Tensor | None):
    device = next(t.device for t in tensors.values() if t is not None)
    if not sharded.is_sharded(*tensors.values()):
        return choose(backend, device)
    sharded.check(backend, **tensors)
    return BelowAutograd


def _traced(x: Tensor, backend: str | None, check: Callable, args: tuple):
    """What torch.compile and torch.export see: the op, whose fake kernel checks the arguments, or the formula."""
    by_formula = is_traced_as_formula(backend, x.device) and not sharded.is_sharded(x)
    if not by_formula and not needs_formula():
        return schemas
    check(*args)
    return fused_formula
