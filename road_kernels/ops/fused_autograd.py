"""Gradients of the fused ops, wired once for every backend.

rotate_silu_mul has a kernel for its gradients. Of the other two the neighbour's gradient comes first: a norm's has a
kernel, and that of RoPE is RoPE by the opposite angles; then the rotation's own, rotate_backward.
"""

import torch

from ..python_fallback import rms_norm_weight_gradient
from . import fused_formula, schemas
from .autograd import BelowAutograd, backend_of_backward, below, needs_formula, wants_grad


class RotateSiluMul(torch.autograd.Function):
    """Saves x and nothing else of its size."""

    @staticmethod
    def forward(ctx, x, r1, r2, adapter_ids, group_size, backend):
        ctx.save_for_backward(x, r1, r2, adapter_ids)
        ctx.call = group_size, backend
        return backend.rotate_silu_mul(x, r1, r2, adapter_ids, group_size)

    @staticmethod
    def backward(ctx, grad):
        group_size, backend = ctx.call
        backend = backend_of_backward(backend, fused_formula)
        mask = list(ctx.needs_input_grad[:3])
        return *backend.rotate_silu_mul_backward(grad, *ctx.saved_tensors, group_size, mask), None, None, None


def _rotation_gradients(gh, x, r1, r2, adapter_ids, group_size, backend, mask):
    """Those of x, r1 and r2 from that of R x. x: None if no table needs one."""
    backend = backend_of_backward(backend)
    gh = gh.to(gh.dtype if x is None else x.dtype)
    x = gh if x is None else x
    return backend.rotate_backward(gh, x, r1, r2, adapter_ids, "table", group_size, False, mask)


def kept_of(x: torch.Tensor, r1: torch.Tensor, r2: torch.Tensor, inplace: bool) -> torch.Tensor | None:
    """The copy that an in-place call needs of x, through which x's gradient then flows: x itself is overwritten."""
    return x.clone() if inplace and (r1.requires_grad or r2.requires_grad) else None


class RotateAddRmsNorm(torch.autograd.Function):
    """Saves s, an output, and x (in place ``kept``) only where a table needs a gradient."""

    @staticmethod
    def forward(ctx, x, residual, weight, r1, r2, kept, adapter_ids, eps, group_size, inplace, backend):
        args = weight, r1, r2, adapter_ids, eps, group_size
        ctx.keeps = kept is not None
        if kept is None and (ctx.needs_input_grad[3] or ctx.needs_input_grad[4]):
            kept = x
        if inplace:
            backend.rotate_add_rms_norm_(x, residual, *args)
            ctx.mark_dirty(x, residual)
            y, s = x, residual
        else:
            y, s = backend.rotate_add_rms_norm(x, residual, *args)
        ctx.save_for_backward(kept, s, *args[:4])
        ctx.call = eps, group_size, backend
        return y, s

    @staticmethod
    def backward(ctx, gy, gs):
        x, s, weight, r1, r2, adapter_ids = ctx.saved_tensors
        eps, group_size, backend = ctx.call
        need_x, need_residual, need_weight, need_r1, need_r2 = ctx.needs_input_grad[:5]
        mask = [need_x, need_r1, need_r2]
        gx = gr1 = gr2 = gweight = None
        if need_residual or any(mask):
            gs = backend_of_backward(backend, fused_formula).add_rms_norm_backward(gy, gs, s, weight, eps)
        if any(mask):
            gx, gr1, gr2 = _rotation_gradients(gs, x, r1, r2, adapter_ids, group_size, backend, mask)
        if need_weight:
            gweight = rms_norm_weight_gradient(gy, s, eps).to(weight.dtype)
        gx, gkept = (None, gx) if ctx.keeps else (gx, None)
        return gx, gs if need_residual else None, gweight, gr1, gr2, gkept, None, None, None, None, None


class RotateRope(torch.autograd.Function):
    """Saves qkv (in place ``kept``) only where a table needs a gradient."""

    @staticmethod
    def forward(
        ctx, qkv, positions, cos_sin_cache, r1, r2, kept, adapter_ids, heads, is_neox, group_size, inplace, backend
    ):
        ctx.keeps = kept is not None
        if kept is None and (ctx.needs_input_grad[3] or ctx.needs_input_grad[4]):
            kept = qkv
        args = positions, cos_sin_cache, r1, r2, adapter_ids, *heads, is_neox, group_size
        if inplace:
            backend.rotate_rope_(qkv, *args)
            ctx.mark_dirty(qkv)
            z = qkv
        else:
            z = backend.rotate_rope(qkv, *args)
        ctx.save_for_backward(kept, positions, cos_sin_cache, r1, r2, adapter_ids)
        ctx.call = heads, is_neox, group_size, backend
        return z

    @staticmethod
    def backward(ctx, grad):
        qkv, positions, cos_sin_cache, r1, r2, adapter_ids = ctx.saved_tensors
        heads, is_neox, group_size, backend = ctx.call
        mask = [ctx.needs_input_grad[k] for k in (0, 3, 4)]
        gh = _unrotate_rope(grad, positions, cos_sin_cache, heads, is_neox, group_size, backend)
        gqkv, gr1, gr2 = _rotation_gradients(gh, qkv, r1, r2, adapter_ids, group_size, backend, mask)
        gqkv, gkept = (None, gqkv) if ctx.keeps else (gqkv, None)
        return gqkv, None, None, gr1, gr2, gkept, *[None] * 6


def _unrotate_rope(grad, positions, cos_sin_cache, heads, is_neox, group_size, backend):
    """RoPE transposed: RoPE by the opposite angles, of rows without an adapter."""
    head_dim, rotary_dim = heads[2], cos_sin_cache.shape[1]
    # Any group size would do. One whose pairs are RoPE's is the least work for a kernel.
    if not is_neox:
        group_size = 2
    elif head_dim % rotary_dim == 0:
        group_size = rotary_dim
    no_adapter, unread = positions.new_full((1,), -1), grad.new_ones((1, grad.shape[-1] // 2))
    rope = *_opposite(positions, cos_sin_cache), unread, unread, no_adapter, *heads, is_neox, group_size
    return backend_of_backward(backend, fused_formula).rotate_rope(grad.unsqueeze(0), *rope).squeeze(0)


def _opposite(positions, cos_sin_cache):
    """The positions, and a cache whose sines are negated, of the rows that they use if it has more."""
    if type(positions) is torch.Tensor and positions.numel() < cos_sin_cache.shape[0]:  # a DTensor's are sharded
        cache = cos_sin_cache.index_select(0, positions.reshape(-1))
        positions = torch.arange(positions.numel(), device=positions.device).view(positions.shape)
    else:
        cache = cos_sin_cache.clone()
    cache.narrow(1, cache.shape[1] // 2, cache.shape[1] // 2).neg_()
    return positions, cache


# Gradients of the ops themselves, for direct calls of torch.ops.road_kernels, for torch.compile and for DTensors.
for _op in (name for name in schemas.OPS if not hasattr(BelowAutograd, name)):
    setattr(BelowAutograd, _op, below(getattr(schemas, _op)))


def _silu_mul_autograd(x, r1, r2, adapter_ids, group_size):
    args = x, r1, r2, adapter_ids, group_size
    if needs_formula():
        return fused_formula.rotate_silu_mul(*args)
    if not wants_grad(x, r1, r2):
        return BelowAutograd.rotate_silu_mul(*args)
    return RotateSiluMul.apply(*args, BelowAutograd)


def _silu_mul_backward_autograd(grad, x, r1, r2, *rest):
    module = fused_formula if wants_grad(grad, x, r1, r2) else BelowAutograd
    return module.rotate_silu_mul_backward(grad, x, r1, r2, *rest)


def _add_rms_norm_autograd(x, residual, weight, r1, r2, *rest):
    args = x, residual, weight, r1, r2, *rest
    if needs_formula():
        return fused_formula.rotate_add_rms_norm(*args)
    if not wants_grad(x, residual, weight, r1, r2):
        return BelowAutograd.rotate_add_rms_norm(*args)
    return RotateAddRmsNorm.apply(*args[:5], None, *args[5:], False, BelowAutograd)


def _add_rms_norm_backward_autograd(*args):
    module = fused_formula if needs_formula() or wants_grad(*args[:4]) else BelowAutograd
    return module.add_rms_norm_backward(*args)


def _rope_autograd(qkv, positions, cos_sin_cache, r1, r2, adapter_ids, *rest):
    args = qkv, positions, cos_sin_cache, r1, r2, adapter_ids, *rest
    if needs_formula() or wants_grad(cos_sin_cache):
        return fused_formula.rotate_rope(*args)
    if not wants_grad(qkv, r1, r2):
        return BelowAutograd.rotate_rope(*args)
    *heads, is_neox, group_size = rest
    return RotateRope.apply(*args[:5], None, adapter_ids, tuple(heads), is_neox, group_size, False, BelowAutograd)


def _inplace_autograd(op: str):
    def call(*args):
        if wants_grad(*(t for t in args if isinstance(t, torch.Tensor) and t.is_floating_point())):
            raise RuntimeError(
                f"road_kernels::{op}_ has no gradient of its own: call road_kernels.{op}(..., inplace=True)"
            )
        getattr(BelowAutograd, op + "_")(*args)

    return call


for _op, _kernel in {
    "rotate_silu_mul": _silu_mul_autograd,
    "rotate_silu_mul_backward": _silu_mul_backward_autograd,
    "rotate_add_rms_norm": _add_rms_norm_autograd,
    "rotate_add_rms_norm_": _inplace_autograd("rotate_add_rms_norm"),
    "add_rms_norm_backward": _add_rms_norm_backward_autograd,
    "rotate_rope": _rope_autograd,
    "rotate_rope_": _inplace_autograd("rotate_rope"),
}.items():
    schemas.LIBRARY.impl(_op, _kernel, "Autograd")
