"""The rotation and what a decoder does with its result next: SiLU times up, add and RMSNorm, RoPE.

Everything is computed in float32 (float64 for float64 x) and rounded once, at the end: the rotated features
themselves are never rounded.
"""

import torch
from torch import Tensor
from torch.nn.functional import silu

from .gradients import rotate_backward, rotate_batched_backward
from .rotate import bank_index, first_outside, rotate, rotate_batched
from .tables import arithmetic_dtype, split_last


def rotate_silu_mul(
    x: Tensor, r1: Tensor, r2: Tensor, adapter_ids: Tensor | None = None, group_size: int = 64
) -> Tensor:
    """silu(gate) * up, [..., I], for [gate, up] = R x. x: [..., 2 I]; adapter_ids None: r1, r2 are of one adapter."""
    gate, up = rotated(x, r1, r2, adapter_ids, group_size).chunk(2, dim=-1)
    return (silu(gate) * up).to(x.dtype)


def rotate_silu_mul_backward(
    grad: Tensor, x: Tensor, r1: Tensor, r2: Tensor, adapter_ids: Tensor | None, group_size: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(gx, gr1, gr2) from x alone: gate and up are computed again."""
    gz = grad.to(arithmetic_dtype(x))
    gate, up = rotated(x, r1, r2, adapter_ids, group_size).chunk(2, dim=-1)
    sigmoid = gate.sigmoid()
    gh = torch.cat((gz * up * sigmoid * (1 + gate * (1 - sigmoid)), gz * gate * sigmoid), dim=-1)
    if adapter_ids is None:
        gx, gr1, gr2 = rotate_backward(gh, x, r1, r2, group_size)
    else:
        gx, gr1, gr2 = rotate_batched_backward(gh, x, r1, r2, adapter_ids, group_size)
    return gx.to(x.dtype), gr1, gr2


def rotate_add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    r1: Tensor,
    r2: Tensor,
    adapter_ids: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """(y, s): s = R x + residual, y = weight * s / sqrt(mean(s^2) + eps). x, residual: [..., D]; weight: [D]."""
    s = rotated(x, r1, r2, adapter_ids, group_size) + residual
    y = weight.to(s.dtype) * (s * inverse_rms(s, eps))
    return y.to(x.dtype), s.to(x.dtype)


def inverse_rms(s: Tensor, eps: float) -> Tensor:
    return (s.square().mean(-1, keepdim=True) + eps).rsqrt()


def add_rms_norm_backward(gy: Tensor, gs: Tensor, s: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The gradient of s, which is that of R x and of the residual, from those of y and of s itself. In s's dtype."""
    dtype, result = arithmetic_dtype(s), s.dtype
    gy, gs, s = gy.to(dtype), gs.to(dtype), s.to(dtype)
    scale = inverse_rms(s, eps)
    gn = gy * weight.to(dtype)  # of the normalised row s * scale
    through_scale = (gn * s).mean(-1, keepdim=True) * scale.pow(3)
    return (gs + gn * scale - s * through_scale).to(result)


def rms_norm_weight_gradient(gy: Tensor, s: Tensor, eps: float) -> Tensor:
    """The gradient of weight, summed over all rows in float32 or wider."""
    dtype = arithmetic_dtype(s)
    s = s.to(dtype)
    per_row = gy.to(dtype) * s * inverse_rms(s, eps)
    return per_row if s.dim() == 1 else per_row.sum(tuple(range(s.dim() - 1)))


def rotate_rope(
    qkv: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    r1: Tensor,
    r2: Tensor,
    adapter_ids: Tensor | None = None,
    num_heads: int = 1,
    num_kv_heads: int = 1,
    head_dim: int = 64,
    is_neox: bool = True,
    group_size: int = 64,
) -> Tensor:
    """R on all of qkv [..., (num_heads + 2 num_kv_heads) head_dim], then RoPE on the heads of q and k.

    RoPE is a rotation of pairs too: by cos_sin_cache[position], of the first rotary_dim features of a head, feature k
    with k + rotary_dim / 2 (is_neox) or with its neighbour.
    """
    rotary_dim = cos_sin_cache.shape[-1]
    heads = split_last(rotated(qkv, r1, r2, adapter_ids, group_size), head_dim)
    qk, v = heads.split((num_heads + num_kv_heads, num_kv_heads), dim=-2)
    cos, sin = cos_and_sin(positions, cos_sin_cache)
    qk, rest = qk.split((rotary_dim, head_dim - rotary_dim), dim=-1)
    qk = torch.cat((rotate(qk, cos, sin, rotary_dim if is_neox else 2), rest), dim=-1)
    return torch.cat((qk, v), dim=-2).reshape(qkv.shape).to(qkv.dtype)


def cos_and_sin(positions: Tensor, cos_sin_cache: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of each position, [..., 1, rotary_dim / 2]; an index error for a position out of the cache."""
    index = bank_index(torch.where(positions == -1, -2, positions), cos_sin_cache.shape[0])  # -1 is no position
    try:
        rows = cos_sin_cache.index_select(0, index.reshape(-1))
    except IndexError:
        raise position_error(*first_outside(positions, index, cos_sin_cache), cos_sin_cache.shape[0]) from None
    cos, sin = rows.reshape(*positions.shape, 1, cos_sin_cache.shape[1]).chunk(2, dim=-1)
    return cos, sin


def position_error(position: int, place: int, max_position: int) -> IndexError:
    return IndexError(
        f"positions holds {position} (flat position {place}), but cos_sin_cache has positions 0 to {max_position - 1}"
    )


def rotated(x: Tensor, r1: Tensor, r2: Tensor, adapter_ids: Tensor | None, group_size: int) -> Tensor:
    """R x in float32 or wider, before any rounding."""
    x = x.to(arithmetic_dtype(x))
    if adapter_ids is None:
        return rotate(x, r1, r2, group_size)
    return rotate_batched(x, r1, r2, adapter_ids, group_size)
