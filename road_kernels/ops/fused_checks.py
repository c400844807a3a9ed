"""The rules for the arguments of the fused ops: what checks.py says of x, its tables and ids, and of the rest here."""

from typing import NoReturn

import torch
from torch import Tensor

from ..python_fallback.fused import position_error
from .aliasing import check_not_shared, shares_memory
from .checks import FUSED, INTEGERS, check_arguments, check_float_tensor, check_group_size
from .extension import EXTENSION


def _check_rotation(x, r1, r2, adapter_ids, group_size, name: str = "x") -> None:
    if EXTENSION is None or torch.compiler.is_compiling():
        return check_arguments(x, r1, r2, adapter_ids, FUSED, group_size, name=name)
    if not EXTENSION.is_valid(x, r1, r2, adapter_ids, "table", group_size, adapter_ids is not None):
        check_arguments(x, r1, r2, adapter_ids, FUSED, group_size, name=name)


def check_silu_mul(x, r1, r2, adapter_ids, group_size) -> None:
    _check_rotation(x, r1, r2, adapter_ids, group_size)
    if x.shape[-1] % (2 * group_size):
        raise ValueError(
            f"group_size must divide half of the last dimension of x ({x.shape[-1]}), because gate and up are rotated "
            f"apart, got {group_size}"
        )


def check_silu_mul_grad(grad: Tensor, x: Tensor) -> None:
    shape = (*x.shape[:-1], x.shape[-1] // 2)
    if grad.shape != shape or grad.dtype != x.dtype or grad.device != x.device:
        raise ValueError(
            f"grad must be {list(shape)} {x.dtype} on {x.device}, got {list(grad.shape)} {grad.dtype} on {grad.device}"
        )


def check_add_rms_norm(x, residual, weight, r1, r2, adapter_ids, eps, group_size) -> None:
    _check_rotation(x, r1, r2, adapter_ids, group_size)
    _check_like("residual", residual, "x", x)
    _check_norm(x, weight, eps)


def check_add_rms_norm_grads(gy: Tensor, gs: Tensor, s: Tensor, weight: Tensor, eps) -> None:
    check_float_tensor("s", s)
    if s.dim() == 0:
        raise ValueError("s must be [..., D], got a tensor without dimensions")
    _check_like("gy", gy, "s", s)
    _check_like("gs", gs, "s", s)
    _check_norm(s, weight, eps)


def _check_like(name: str, t, of: str, x: Tensor) -> None:
    check_float_tensor(name, t)
    if t.shape != x.shape or t.dtype != x.dtype or t.device != x.device:
        raise ValueError(
            f"{name} must match {of}, {list(x.shape)} {x.dtype} on {x.device}, "
            f"got {list(t.shape)} {t.dtype} on {t.device}"
        )


def _check_norm(x: Tensor, weight, eps) -> None:
    check_float_tensor("weight", weight)
    if weight.shape != x.shape[-1:] or weight.device != x.device:
        raise ValueError(
            f"weight must be {list(x.shape[-1:])} on {x.device}, got {list(weight.shape)} on {weight.device}"
        )
    if isinstance(eps, bool) or not isinstance(eps, (int, float, torch.SymFloat)):
        raise TypeError(f"eps must be a number, got {type(eps).__name__}")
    if not eps >= 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    if isinstance(eps, int) and eps > torch.finfo(torch.float32).max:
        raise ValueError("eps must be a float32 number, got one that is larger")


def refuse_one_memory() -> NoReturn:
    raise ValueError("residual shares memory with x, so both cannot be written in place: use inplace=False")


def check_written_apart(x: Tensor, residual: Tensor, *read: Tensor) -> None:
    """The rule of rotate_add_rms_norm_ for memory."""
    if not torch.compiler.is_compiling() and shares_memory(x, residual):
        refuse_one_memory()
    for name, t in (("x", x), ("residual", residual)):
        check_not_shared(t, *read, name=name)


def check_rope(
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
) -> None:
    _check_rotation(qkv, r1, r2, adapter_ids, group_size, "qkv")
    for name, n in (("num_heads", num_heads), ("num_kv_heads", num_kv_heads), ("head_dim", head_dim)):
        if isinstance(n, bool) or not isinstance(n, (int, torch.SymInt)):
            raise TypeError(f"{name} must be an int, got {type(n).__name__}")
        if n < 1:
            raise ValueError(f"{name} must be positive, got {n}")
    if not isinstance(is_neox, bool):
        raise TypeError(f"is_neox must be a bool, got {type(is_neox).__name__}")
    width = (num_heads + 2 * num_kv_heads) * head_dim
    if qkv.shape[-1] != width:
        raise ValueError(
            f"the last dimension of qkv must be (num_heads + 2 num_kv_heads) head_dim = "
            f"({num_heads} + 2 * {num_kv_heads}) * {head_dim} = {width}, got {qkv.shape[-1]}"
        )
    check_group_size(group_size, head_dim, "head_dim, because every head is rotated apart,")
    _check_positions(qkv, positions)
    _check_cache(qkv, cos_sin_cache, head_dim)


def _check_positions(qkv: Tensor, positions) -> None:
    if not isinstance(positions, Tensor):
        raise TypeError(f"positions must be a torch.Tensor, got {type(positions).__name__}")
    if positions.dtype not in INTEGERS or positions.layout is not torch.strided:
        raise TypeError(f"positions must be a dense int32 or int64 tensor, got {positions.dtype}")
    if positions.device != qkv.device:
        raise ValueError(f"positions must be on the device of qkv ({qkv.device}), got {positions.device}")
    leading, shape = qkv.shape[:-1], positions.shape
    suffix = leading[len(leading) - len(shape) :]
    if len(shape) > len(leading) or any(n not in (1, m) for n, m in zip(shape, suffix, strict=True)):
        raise ValueError(
            f"positions must be {list(leading)} (qkv without its last dimension) or broadcast to it, got {list(shape)}"
        )


def _check_cache(qkv: Tensor, cos_sin_cache, head_dim: int) -> None:
    check_float_tensor("cos_sin_cache", cos_sin_cache)
    if cos_sin_cache.dtype not in (torch.float32, qkv.dtype):
        raise TypeError(f"cos_sin_cache must be float32 or {qkv.dtype}, the dtype of qkv, got {cos_sin_cache.dtype}")
    if cos_sin_cache.device != qkv.device:
        raise ValueError(f"cos_sin_cache must be on the device of qkv ({qkv.device}), got {cos_sin_cache.device}")
    shape = cos_sin_cache.shape
    if len(shape) != 2 or shape[1] < 2 or shape[1] % 2 or shape[1] > head_dim:
        raise ValueError(
            f"cos_sin_cache must be [max_position, rotary_dim] with an even rotary_dim of at most head_dim = "
            f"{head_dim}, got {list(shape)}"
        )


def check_apart(qkv: Tensor, *read: Tensor) -> None:
    """The rule of rotate_rope_ for memory."""
    check_not_shared(qkv, *read, name="qkv")


def refuse_position(position: int, place: int, max_position: int) -> NoReturn:
    raise position_error(position, place, max_position)
