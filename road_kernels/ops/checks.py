"""The rules for arguments, and the messages for those that break them: the argument, what it got and what it needs.

Every call is checked before anything is computed. With the extension, csrc/binding/check.cpp decides by the same rules
in one call, and asks the functions here for the message of a refusal (tests/ops/test_errors.py holds the two
together). Without it, and while torch.compile traces, they decide too.
"""

from typing import NoReturn

import torch
from torch import Tensor

from ..python_fallback.rotate import id_error
from .extension import EXTENSION

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
INTEGERS = frozenset({torch.int32, torch.int64})
VARIANTS = ("road_1", "road_2", "road_4")  # each contains the ones before it
FORMS = (*VARIANTS, "table")
FUSED = "table of a fused op"  # "table" to the functions here, for calls that have one name with and without ids
_NEEDS_FLOAT = "float16, bfloat16, float32 or float64"


def check_float_tensor(name: str, t) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    if t.dtype not in FLOATS:
        raise TypeError(f"{name} must be {_NEEDS_FLOAT}, got {t.dtype}")
    if t.layout is not torch.strided or t.is_nested:
        raise TypeError(f"{name} must be a dense (strided) tensor, got {'a nested one' if t.is_nested else t.layout}")


def check_x(x, group_size, name: str = "x") -> int:
    """Returns D, the width of a row."""
    check_float_tensor(name, x)
    if x.dim() == 0:
        raise ValueError(f"{name} must be [..., D], got a tensor without dimensions")
    dim = x.shape[-1]
    check_group_size(group_size, dim, f"the last dimension of {name}")
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


def packed_dim(variant: str, width: int) -> int:
    """D, the features that P = ``width`` parameters are for."""
    return 2 * width if variant == "road_1" else width if variant == "road_2" else width // 2


def _check_pair(x: Tensor, p, q, form: str, dim: int, batched: bool, of: str) -> None:
    if form in ("table", FUSED):
        names, widths, why = ("r1", "r2"), (dim, dim // 2), f"for D = {dim}"
        functions = "rotate", "rotate_batched"
    else:
        names, widths, why = ("theta", "alpha"), (packed_width(form, dim),), f"for variant {form!r} and D = {dim}"
        functions = "road_apply", "road_apply_batched"
    for name, t in zip(names, (p, q), strict=True):
        check_float_tensor(name, t)
        if t.device != x.device:
            raise ValueError(f"{name} must be on the device of {of} ({x.device}), got {t.device}")
        if t.dim() != (2 if batched else 1) or all(t.shape[-1] != width for width in widths):
            wanted = " or ".join(f"[A, {w}]" if batched else f"[{w}]" for w in widths)
            hint = ""
            if t.dim() == (1 if batched else 2):
                hint = f" (for one adapter use {functions[0]})" if batched else f" (for a bank use {functions[1]})"
                if form == FUSED:
                    hint = f" (adapter_ids {'is for a bank' if batched else 'says which of a bank'})"
            raise ValueError(f"{name} must be {wanted} {why}, got {list(t.shape)}{hint}")
    if p.shape != q.shape:
        raise ValueError(f"{names[1]} must have the shape of {names[0]}, {list(p.shape)}, got {list(q.shape)}")


def check_ids(x: Tensor, adapter_ids, name: str = "adapter_ids", of: str = "x") -> None:
    """Type, device and shape. The values are checked by the backend: on a GPU reading them here would synchronise."""
    if not isinstance(adapter_ids, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(adapter_ids).__name__}")
    if adapter_ids.dtype not in INTEGERS:
        raise TypeError(f"{name} must be int32 or int64, got {adapter_ids.dtype}")
    if adapter_ids.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got {adapter_ids.layout}")
    if adapter_ids.device != x.device:
        raise ValueError(f"{name} must be on the device of {of} ({x.device}), got {adapter_ids.device}")
    leading = x.shape[:-1]
    if adapter_ids.dim() > len(leading) or adapter_ids.shape != leading[: adapter_ids.dim()]:
        raise ValueError(
            f"the shape of {name} must be a prefix of {list(leading)} ({of} without its last dimension), "
            f"got {list(adapter_ids.shape)}"
        )


def check_arguments(x, p, q, adapter_ids, form: str, group_size, batched: bool | None = None, name: str = "x") -> None:
    """The rules of rotate, rotate_ and rotate_backward. batched: whether ids are needed; default: if given."""
    batched = adapter_ids is not None if batched is None else batched
    dim = check_x(x, group_size, name)
    if form not in FORMS and form != FUSED:
        raise ValueError(f"form must be 'road_1', 'road_2', 'road_4' or 'table', got {form!r}")
    _check_pair(x, p, q, form, dim, batched, name)
    if batched:
        check_ids(x, adapter_ids, of=name)


def _decided_in_cpp(x, p, q, adapter_ids, form, group_size, batched: bool) -> bool:
    """True if the extension is there and accepts the arguments. While torch.compile traces, Python decides."""
    if EXTENSION is None or torch.compiler.is_compiling():
        return False
    return EXTENSION.is_valid(x, p, q, adapter_ids, form, group_size, batched)


def check_traced(variant, has_ids: bool) -> None:
    """What an op's own checks cannot see: the form of another function, and no ids where ids are needed."""
    if variant == "table":
        check_variant(variant)
    if not has_ids:
        raise TypeError("adapter_ids must be a torch.Tensor, got NoneType")


def check_angles(x, theta, alpha, variant, group_size) -> None:
    if variant == "table" or not _decided_in_cpp(x, theta, alpha, None, variant, group_size, False):
        check_variant(variant)
        check_arguments(x, theta, alpha, None, variant, group_size, batched=False)


def check_angles_batched(x, theta, alpha, adapter_ids, variant, group_size) -> None:
    if variant == "table" or not _decided_in_cpp(x, theta, alpha, adapter_ids, variant, group_size, True):
        check_variant(variant)
        check_arguments(x, theta, alpha, adapter_ids, variant, group_size, batched=True)


def check_tables(x, r1, r2, group_size) -> None:
    if not _decided_in_cpp(x, r1, r2, None, "table", group_size, False):
        check_arguments(x, r1, r2, None, "table", group_size, batched=False)


def check_tables_batched(x, r1, r2, adapter_ids, group_size) -> None:
    if not _decided_in_cpp(x, r1, r2, adapter_ids, "table", group_size, True):
        check_arguments(x, r1, r2, adapter_ids, "table", group_size, batched=True)


def refuse_id(id: int, position: int, adapters: int, name: str = "adapter_ids") -> NoReturn:
    raise id_error(id, position, adapters, name)


def check_id_values(adapter_ids: Tensor, adapters: int, name: str = "adapter_ids") -> None:
    """Raises IndexError for an id outside -1 .. adapters - 1, where values can be read without waiting for a device.

    Under torch.func transforms and vmap, whose own error would be a RuntimeError, they are those of the tensor inside.
    Where the program is traced there are none.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or torch.jit.is_tracing():
        return
    while torch._C._functorch.is_functorch_wrapped_tensor(adapter_ids):
        adapter_ids = torch._C._functorch.get_unwrapped(adapter_ids)
    if not adapter_ids.is_cpu or type(adapter_ids) is not Tensor:
        return
    outside = (adapter_ids < -1) | (adapter_ids >= adapters)
    if outside.any():
        position = outside.flatten().nonzero()[0].item()
        refuse_id(adapter_ids.flatten()[position].item(), position, adapters, name)


def refuse_singular(adapter: int | None, i: int, j: int, determinant: float) -> NoReturn:
    """adapter: its index in a bank, or None."""
    who = "the adapter has" if adapter is None else f"adapter {adapter} has"
    raise ValueError(
        f"inplace=True recovers the input from the output, but {who} a singular block: features ({i}, {j}), "
        f"determinant {determinant:g}. Use inplace=False, or keep alpha away from zero"
    )


def check_grad(grad: Tensor, saved: Tensor) -> None:
    """The rule of rotate_backward for its two tensors of the size of x."""
    if grad.shape != saved.shape or grad.dtype != saved.dtype or grad.device != saved.device:
        raise ValueError(
            f"grad must match the saved tensor, {list(saved.shape)} {saved.dtype} on {saved.device}, "
            f"got {list(grad.shape)} {grad.dtype} on {grad.device}"
        )


def check_matrix(w: Tensor) -> None:
    """The rule of merge for w."""
    if w.dim() != 2:
        raise ValueError(f"w must be [D, N], got {list(w.shape)}")


def check_packed(theta, alpha, variant: str, group_size) -> None:
    """The rules of tables: theta and alpha without an x beside them, whose length gives the width D."""
    check_variant(variant)
    for name, t in (("theta", theta), ("alpha", alpha)):
        check_float_tensor(name, t)
        if t.dim() not in (1, 2):
            raise ValueError(f"{name} must be [P] or [A, P], got {list(t.shape)}")
    if theta.shape != alpha.shape:
        raise ValueError(f"alpha must have the shape of theta, {list(theta.shape)}, got {list(alpha.shape)}")
    if theta.device != alpha.device:
        raise ValueError(f"alpha must be on the device of theta ({theta.device}), got {alpha.device}")
    width = theta.shape[-1]
    dim = packed_dim(variant, width)
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
