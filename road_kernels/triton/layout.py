"""How the rows of a tensor lie in memory, as csrc/core/problem.h describes them.

In Python as well, because Triton serves where there is no extension; prepare.py caches the results.
"""

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
    """t itself if its rows can be described, else a copy; of one row only where a stride of 0 repeats it."""
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
