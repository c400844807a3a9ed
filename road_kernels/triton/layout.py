"""How the rows of a tensor lie in memory, as csrc/core/problem.h describes them.

In Python as well, because Triton serves where there is no extension; prepare.py caches the results.
"""

from typing import NamedTuple

import torch


def divisor(d: int) -> tuple[int, int]:
    """(factor, shift) with n // d = (8 n * factor >> 64) >> shift for 0 <= n < 2^60 (kernels/rows.py).

    With factor = ceil(2^p / d), p = 61 + ceil(log2 d), n * factor / 2^p exceeds n / d by less than n / 2^p < 1 / d.
    Granlund & Montgomery, "Division by Invariant Integers using Multiplication". factor < 2^63.
    """
    shift = (d - 1).bit_length()
    return -(-(1 << 61 + shift) // d), shift


class Rows(NamedTuple):
    """Row r starts at r // inner_rows * outer + r % inner_rows * inner, in elements; its elements are adjacent."""

    outer: int
    inner: int
    inner_rows: int

    def integers(self, unit: int) -> tuple[int, int, int, int]:
        """(from a row to the next one, and in addition after every inner_rows rows, both in units of so many elements;
        the divisor inner_rows).
        """
        stride, jump = self.outer, 0
        if self.inner_rows > 1:
            stride, jump = self.inner, self.outer - self.inner_rows * self.inner
        return stride // unit, jump // unit, *divisor(self.inner_rows)


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
