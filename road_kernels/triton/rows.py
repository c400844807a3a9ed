"""How a tensor's rows lie in memory, and what a call's tensors must satisfy. Plain Python, cached by the caller."""

from typing import NamedTuple

import torch


class Rows(NamedTuple):
    """Row r starts at r // inner_rows * outer + r % inner_rows * inner, in elements; its elements are adjacent."""

    outer: int
    inner: int
    inner_rows: int


def describe(shape: tuple[int, ...], strides: tuple[int, ...]) -> Rows | None:
    """None if the elements of a row are not adjacent, or two strides do not reach every row."""
    if shape[-1] > 1 and strides[-1] != 1:
        return None
    outer, inner, inner_rows = None, 0, 1
    count, following = 1, 0  # rows seen, and the stride that would continue them
    for size, stride in zip(shape[-2::-1], strides[-2::-1], strict=True):
        if size == 1:
            continue
        if count == 1:
            inner = stride
        elif stride != following:
            if outer is not None:
                return None
            outer, inner_rows = stride, count
        count *= size
        following = stride * size
    return Rows(inner, 0, 1) if outer is None else Rows(outer, inner, inner_rows)


def walkable(t: torch.Tensor) -> torch.Tensor:
    """t itself if its rows can be described, else a copy: of one row only where t repeats rows by a stride of 0."""
    if t.is_contiguous() or describe(t.shape, t.stride()) is not None:
        return t
    one = t
    for d in range(t.dim() - 1):
        if t.stride(d) == 0 and t.shape[d] > 1:
            one = one.narrow(d, 0, 1)
    copy = one.contiguous().expand(t.shape)
    return copy if describe(copy.shape, copy.stride()) is not None else t.contiguous()


def has_shared_coefficients(form: str, p_width: int, dim: int) -> bool:
    """Whether both features of a pair have the same: road_1, and compact tables."""
    return form == "road_1" or (form == "table" and p_width != dim)


def check(x, p, q, adapter_ids, form: str, group_size: int) -> None:
    """What memory safety needs, for whoever calls the ops directly; _validate has the messages for users."""
    if x.dim() < 1:
        raise ValueError("x must have at least one dimension")
    dim = x.shape[-1]
    if form not in ("road_1", "road_2", "road_4", "table"):
        raise ValueError(f"form must be 'road_1', 'road_2', 'road_4' or 'table', got {form!r}")
    if group_size < 2 or group_size % 2 or dim % group_size:
        raise ValueError(f"group_size must be even and divide {dim}, got {group_size}")
    if p.dim() != (1 if adapter_ids is None else 2) or p.shape != q.shape:
        wanted = "[P]" if adapter_ids is None else "[A, P]"
        raise ValueError(f"the two parameters must both be {wanted}, got {list(p.shape)} and {list(q.shape)}")
    widths = {"road_1": (dim // 2,), "road_2": (dim,), "road_4": (2 * dim,), "table": (dim, dim // 2)}[form]
    if p.shape[-1] not in widths:
        raise ValueError(f"parameters of form {form!r} must be {widths[0]} wide, got {list(p.shape)}")
    if p.device != x.device or q.device != x.device:
        raise ValueError("all tensors must be on one device")
    if adapter_ids is not None:
        if adapter_ids.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"adapter_ids must be int32 or int64, got {adapter_ids.dtype}")
        if adapter_ids.device != x.device:
            raise ValueError("adapter_ids must be on the device of x")
        if adapter_ids.dim() >= x.dim() or adapter_ids.shape != x.shape[: adapter_ids.dim()]:
            raise ValueError(
                f"the shape of adapter_ids must be a prefix of {list(x.shape[:-1])}, got {list(adapter_ids.shape)}"
            )
