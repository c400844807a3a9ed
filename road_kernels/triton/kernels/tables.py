"""The coefficients of all adapters, from their angles."""

import triton.language as tl

from ..launch import kernel
from .coefficients import tables_at


@kernel
def tables_kernel(
    p,
    q,
    r1,
    r2,
    p_stride: tl.int64,
    q_stride: tl.int64,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    FORM: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """A program per adapter and ENTRIES of its tables, [A, WIDTH] each."""
    ACC: tl.constexpr = r1.dtype.element_ty
    adapter = tl.program_id(0).to(tl.int64)
    entry = tl.program_id(1) * ENTRIES + tl.arange(0, ENTRIES)
    inside = entry < WIDTH
    at = entry // GROUP * (2 * GROUP) + entry % GROUP if FORM == "road_4" else entry
    c, s = tables_at(p + adapter * p_stride, q + adapter * q_stride, at, GROUP, inside, FORM, ACC)
    tl.store(r1 + adapter * WIDTH + entry, c, mask=inside)
    tl.store(r2 + adapter * WIDTH + entry, s, mask=inside)
