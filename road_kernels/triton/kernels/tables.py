"""The coefficients of all adapters, from their angles."""

import triton.language as tl

from ..launch import kernel
from .coefficients import is_small, load_angles, not_all, tables_at


@kernel
def tables_kernel(
    p,
    q,
    r1,
    r2,
    adapters: tl.int64,
    p_stride: tl.int64,
    q_stride: tl.int64,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    FORM: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """A program takes ENTRIES of the tables [adapters, WIDTH], one adapter after the other."""
    ACC: tl.constexpr = r1.dtype.element_ty
    first = tl.program_id(0).to(tl.int64) * ENTRIES
    first_adapter = first // WIDTH
    entry = (first - first_adapter * WIDTH).to(tl.int32) + tl.arange(0, ENTRIES)
    adapter = first_adapter + entry // WIDTH
    entry %= WIDTH
    inside = adapter < adapters
    at = entry // GROUP * (2 * GROUP) + entry % GROUP if FORM == "road_4" else entry
    p_at, q_at = p + adapter * p_stride, q + adapter * q_stride
    angles = load_angles(p_at, at, GROUP, inside, FORM, ACC)
    large = not_all(is_small(angles[0]) & is_small(angles[1]))
    c, s = tables_at(q_at, at, GROUP, angles, large, inside, FORM, ACC)
    tl.store(r1 + adapter * WIDTH + entry, c, mask=inside)
    tl.store(r2 + adapter * WIDTH + entry, s, mask=inside)
