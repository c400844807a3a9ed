"""Refuses bad input before anything is computed, naming the argument, what it got and what it needs.

Every public call passes through here. With the extension, csrc/binding/validate.cpp checks the same conditions in one
call, and the functions below only run to explain a refusal (tests/test_errors.py holds the two together).
"""

import torch
from torch import Tensor

from ._extension import EXTENSION

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
INTEGERS = frozenset({torch.int32, torch.int64})
VARIANTS = ("road_1", "road_2", "road_4")
_NEEDS_FLOAT = "float16, bfloat16, float32 or float64"


def check_float_tensor(name: str, t) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    if t.dtype not in FLOATS:
        raise TypeError(f"{name} must be {_NEEDS_FLOAT}, got {t.dtype}")
    if t.layout is not torch.strided or t.is_nested:
        raise TypeError(f"{name} must be a dense (strided) tensor, got {'a nested one' if t.is_nested else t.layout}")


def check_x(x, group_size) -> int:
    """Returns D, the width of a row."""
    check_float_tensor("x", x)
    if x.dim() == 0:
        raise ValueError("x must be [..., D], got a tensor without dimensions")
    dim = x.shape[-1]
    check_group_size(group_size, dim, "the last dimension of x")
    return dim


def check_group_size(group_size, dim: int, what: str) -> None:
    if isinstance(group_size, bool) or not isinstance(group_size, (int, torch.SymInt)):
        raise TypeError(f"group_size must be an int, got {type(group_size).__name__}")
    if group_size < 2 or group_size % 2 or dim % group_size or dim < 2:
        raise ValueError(f"group_size must be even, positive and divide {what} ({dim}), got {group_size}")


def check_variant(variant) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"variant must be 'road_1', 'road_2' or 'road_4', got {variant!r}")


def packed_width(variant: str, dim: int) -> int:
    """P, the length of theta and alpha."""
    return dim // 2 if variant == "road_1" else dim if variant == "road_2" else 2 * dim


def _check_pair(x: Tensor, names: tuple[str, str], p, q, widths: tuple[int, ...], batched: bool, why: str) -> None:
    for name, t in zip(names, (p, q), strict=True):
        check_float_tensor(name, t)
        if t.device != x.device:
            raise ValueError(f"{name} must be on the device of x ({x.device}), got {t.device}")
        if t.dim() != (2 if batched else 1) or all(t.shape[-1] != width for width in widths):
            wanted = " or ".join(f"[A, {w}]" if batched else f"[{w}]" for w in widths)
            raise ValueError(f"{name} must be {wanted} {why}, got {list(t.shape)}")
    if p.shape != q.shape:
        raise ValueError(f"{names[1]} must have the shape of {names[0]}, {list(p.shape)}, got {list(q.shape)}")


def _passes(x, p, q, adapter_ids, form, group_size, batched: bool) -> bool:
    """True if the extension is there and sees nothing wrong. torch.compile traces the Python checks instead."""
    if EXTENSION is None or torch.compiler.is_compiling():
        return False
    return EXTENSION.is_valid(x, p, q, adapter_ids, form, group_size, batched)


def check_angles(x, theta, alpha, variant, group_size) -> None:
    if variant != "table" and _passes(x, theta, alpha, None, variant, group_size, False):
        return
    _check_angles(x, theta, alpha, variant, group_size, batched=False)


def check_angles_batched(x, theta, alpha, adapter_ids, variant, group_size) -> None:
    if variant != "table" and _passes(x, theta, alpha, adapter_ids, variant, group_size, True):
        return
    _check_angles(x, theta, alpha, variant, group_size, batched=True)
    _check_ids(x, adapter_ids)


def check_tables(x, r1, r2, group_size) -> None:
    if not _passes(x, r1, r2, None, "table", group_size, False):
        _check_tables(x, r1, r2, group_size, batched=False)


def check_tables_batched(x, r1, r2, adapter_ids, group_size) -> None:
    if not _passes(x, r1, r2, adapter_ids, "table", group_size, True):
        _check_tables(x, r1, r2, group_size, batched=True)
        _check_ids(x, adapter_ids)


def _check_angles(x, theta, alpha, variant, group_size, batched: bool) -> None:
    check_variant(variant)
    dim = check_x(x, group_size)
    why = f"for variant {variant!r} and D = {dim}"
    _check_pair(x, ("theta", "alpha"), theta, alpha, (packed_width(variant, dim),), batched, why)


def _check_tables(x, r1, r2, group_size, batched: bool) -> None:
    dim = check_x(x, group_size)
    _check_pair(x, ("r1", "r2"), r1, r2, (dim, dim // 2), batched, f"for D = {dim}")


def _check_ids(x: Tensor, adapter_ids) -> None:
    """Type, device and shape. The values are checked by the backend: on a GPU reading them here would synchronise."""
    if not isinstance(adapter_ids, Tensor):
        raise TypeError(f"adapter_ids must be a torch.Tensor, got {type(adapter_ids).__name__}")
    if adapter_ids.dtype not in INTEGERS:
        raise TypeError(f"adapter_ids must be int32 or int64, got {adapter_ids.dtype}")
    if adapter_ids.device != x.device:
        raise ValueError(f"adapter_ids must be on the device of x ({x.device}), got {adapter_ids.device}")
    leading = x.shape[:-1]
    if adapter_ids.dim() > len(leading) or adapter_ids.shape != leading[: adapter_ids.dim()]:
        raise ValueError(
            f"the shape of adapter_ids must be a prefix of {list(leading)} (x without its last dimension), "
            f"got {list(adapter_ids.shape)}"
        )


def check_inplace(x: Tensor, name: str = "x") -> None:
    if x.requires_grad and x.is_leaf and torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} is a leaf tensor that requires grad, so it cannot be written in place: use inplace=False"
        )
    if not x.is_contiguous() and not torch.compiler.is_compiling() and _may_overlap(x):
        raise ValueError(
            f"{name} of shape {list(x.shape)} and strides {list(x.stride())} may hold several elements in one place "
            "(it was expanded, or made by as_strided or unfold), so it cannot be written in place: use inplace=False"
        )


def check_recorded_inplace(x: Tensor) -> None:
    """Refuses a write that autograd could not record, which it would itself say only after the write."""
    if EXTENSION is not None:
        EXTENSION.check_inplace(x)
    elif x._is_view():
        x.narrow(-1, 0, 0).zero_()  # writes nothing, and is refused as writing all of x would be


def _may_overlap(x: Tensor) -> bool:
    """False if each stride, smallest first, steps over all that the smaller ones reach."""
    reach = 0
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size == 0:
            return False
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def check_packed(theta, alpha, variant: str, group_size) -> None:
    """theta and alpha without an x beside them: the width D follows from their length."""
    for name, t in (("theta", theta), ("alpha", alpha)):
        check_float_tensor(name, t)
        if t.dim() not in (1, 2):
            raise ValueError(f"{name} must be [P] or [A, P], got {list(t.shape)}")
    if theta.shape != alpha.shape:
        raise ValueError(f"alpha must have the shape of theta, {list(theta.shape)}, got {list(alpha.shape)}")
    if theta.device != alpha.device:
        raise ValueError(f"alpha must be on the device of theta ({theta.device}), got {alpha.device}")
    width = theta.shape[-1]
    dim = 2 * width if variant == "road_1" else width if variant == "road_2" else width // 2
    check_group_size(group_size, dim, f"D, here {dim} as theta is {width} long,")
    if packed_width(variant, dim) != width:
        raise ValueError(f"theta must be [2 D] for variant 'road_4', got {list(theta.shape)}")


def check_layer(weight, bias, group_size) -> None:
    check_float_tensor("weight", weight)
    if weight.dim() != 2:
        raise ValueError(f"weight must be [out, in], got {list(weight.shape)}")
    check_group_size(group_size, weight.shape[0], "the first dimension of weight")
    if bias is None:
        return
    check_float_tensor("bias", bias)
    if bias.shape != weight.shape[:1] or bias.device != weight.device:
        raise ValueError(
            f"bias must be {list(weight.shape[:1])} on {weight.device}, got {list(bias.shape)} on {bias.device}"
        )


def check_tables_of(dim, group_size, **named) -> None:
    """Pairs (r1, r2) without an x beside them, to be used together: [W] or [A, W] with W = dim or dim / 2."""
    if isinstance(dim, bool) or not isinstance(dim, (int, torch.SymInt)):
        raise TypeError(f"dim must be an int, got {type(dim).__name__}")
    check_group_size(group_size, dim, "dim")
    adapters = device = None
    for name, tables in named.items():
        if not isinstance(tables, (tuple, list)) or len(tables) != 2:
            raise TypeError(f"{name} must be a pair (r1, r2), got {type(tables).__name__}")
        for part, t in zip(("r1", "r2"), tables, strict=True):
            check_float_tensor(f"{part} of {name}", t)
            if t.dim() not in (1, 2) or t.shape[-1] not in (dim, dim // 2):
                raise ValueError(
                    f"{part} of {name} must be [{dim}], [{dim // 2}], [A, {dim}] or [A, {dim // 2}] "
                    f"for dim = {dim}, got {list(t.shape)}"
                )
            if device not in (None, t.device):
                raise ValueError(f"all tables must be on one device, got {device} and {t.device}")
            device = t.device
        if tables[0].shape != tables[1].shape:
            shapes = f"{list(tables[0].shape)} and {list(tables[1].shape)}"
            raise ValueError(f"r1 and r2 of {name} must have one shape, got {shapes}")
        if tables[0].dim() == 2:
            if adapters not in (None, tables[0].shape[0]):
                raise ValueError(f"banks must have one number of adapters, got {adapters} and {tables[0].shape[0]}")
            adapters = tables[0].shape[0]
