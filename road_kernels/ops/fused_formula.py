"""The fused ops in plain PyTorch: python_fallback behind their signatures, as formula.py has rotate."""

from .. import python_fallback
from .fused_checks import check_apart, check_written_apart


def rotate_silu_mul(x, r1, r2, adapter_ids, group_size):
    return python_fallback.rotate_silu_mul(x, r1, r2, adapter_ids, group_size).contiguous()


def rotate_silu_mul_backward(grad, x, r1, r2, adapter_ids, group_size, output_mask):
    """Differentiable as well, which gives second-order gradients."""
    gx, gr1, gr2 = python_fallback.rotate_silu_mul_backward(grad, x, r1, r2, adapter_ids, group_size)
    return (
        gx.contiguous() if output_mask[0] else None,
        gr1.to(r1.dtype) if output_mask[1] else None,
        gr2.to(r2.dtype) if output_mask[2] else None,
    )


def rotate_add_rms_norm(x, residual, weight, r1, r2, adapter_ids, eps, group_size):
    y, s = python_fallback.rotate_add_rms_norm(x, residual, weight, r1, r2, adapter_ids, eps, group_size)
    return y.contiguous(), s.contiguous()


def rotate_add_rms_norm_(x, residual, weight, r1, r2, adapter_ids, eps, group_size):
    check_written_apart(x, residual, weight, r1, r2)
    y, s = rotate_add_rms_norm(x, residual, weight, r1, r2, adapter_ids, eps, group_size)
    x.copy_(y)
    residual.copy_(s)


def add_rms_norm_backward(gy, gs, s, weight, eps):
    """Differentiable as well."""
    return python_fallback.add_rms_norm_backward(gy, gs, s, weight, eps).contiguous()


def rotate_rope(
    qkv, positions, cos_sin_cache, r1, r2, adapter_ids, num_heads, num_kv_heads, head_dim, is_neox, group_size
):
    return python_fallback.rotate_rope(
        qkv,
        positions,
        cos_sin_cache,
        r1,
        r2,
        adapter_ids,
        num_heads,
        num_kv_heads,
        head_dim,
        is_neox,
        group_size,
    ).contiguous()


def rotate_rope_(qkv, positions, cos_sin_cache, r1, r2, *args):
    check_apart(qkv, cos_sin_cache, r1, r2)
    qkv.copy_(rotate_rope(qkv, positions, cos_sin_cache, r1, r2, *args))
