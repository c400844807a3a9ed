"""The gradient of s, of which add_rms_norm_kernel stores the RMSNorm: a row in registers, as there."""

import triton
import triton.language as tl

from ..launch import kernel
from .pairs import narrow, widen
from .rows import pairs_of, row_offsets


@triton.jit
def _load(gy, gs, s, weight, gy_at, gs_at, s_at, element, inside, in_row, ACC: tl.constexpr):
    """(s, its own gradient, the gradient of the normalised row) of a tile of elements; 0 outside."""
    raw_s = tl.load(s + s_at + element, mask=inside, other=0)
    raw_gs = tl.load(gs + gs_at + element, mask=inside, other=0)
    raw_gy = tl.load(gy + gy_at + element, mask=inside, other=0)
    raw_weight = tl.load(weight + element, mask=in_row, other=0)
    return widen(raw_s, ACC), widen(raw_gs, ACC), widen(raw_gy, ACC) * widen(raw_weight, ACC)


@triton.jit
def _row_sum(terms, ROWS: tl.constexpr):
    """A scalar for one row, as Triton's compiler aborts on tiles of one element."""
    return tl.sum(terms) if ROWS == 1 else tl.sum(tl.sum(terms, 2), 1)[:, None, None]


@triton.jit
def _scales(squares, products, DIM: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr):
    """(1 / sqrt(mean(s^2) + eps), what reaches s through it) of each row. products: of s and that last gradient."""
    inverse_rms = tl.rsqrt(_row_sum(squares, ROWS) * (1.0 / DIM) + EPS)
    return inverse_rms, _row_sum(products, ROWS) * (1.0 / DIM) * inverse_rms * inverse_rms * inverse_rms


@kernel
def add_rms_norm_backward_kernel(
    gy,
    gs,
    s,
    weight,
    out,
    rows: tl.int64,
    gy_stride: tl.int64,
    gy_jump: tl.int64,
    gy_factor: tl.int64,
    gy_shift: tl.int64,
    gs_stride: tl.int64,
    gs_jump: tl.int64,
    gs_factor: tl.int64,
    gs_shift: tl.int64,
    s_stride: tl.int64,
    s_jump: tl.int64,
    s_factor: tl.int64,
    s_shift: tl.int64,
    DIM: tl.constexpr,
    EPS: tl.constexpr,
    ALIGN: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    RUNS: tl.constexpr,
    RUN: tl.constexpr,
):
    """A program takes ROWS rows, RUNS runs of RUN elements of each at a time. If these are not all, it takes all twice.
    out is contiguous.
    """
    ACC: tl.constexpr = tl.float64 if s.dtype.element_ty == tl.float64 else tl.float32
    DTYPE: tl.constexpr = out.dtype.element_ty
    ROW_RUNS: tl.constexpr = DIM // RUN
    run = tl.arange(0, RUNS)[None, :, None]
    row = tl.program_id(0).to(tl.int64) * ROWS
    if ROWS > 1:
        row += tl.arange(0, ROWS)[:, None, None] + run * 0
    gy_at = row_offsets(row, (gy_stride, gy_jump, gy_factor, gy_shift), SPLIT, ALIGN)
    gs_at = row_offsets(row, (gs_stride, gs_jump, gs_factor, gs_shift), SPLIT, ALIGN)
    s_at = row_offsets(row, (s_stride, s_jump, s_factor, s_shift), SPLIT, ALIGN)
    out_at = row_offsets(row, (DIM // ALIGN, 0, 0, 0), False, ALIGN)

    if ROW_RUNS <= RUNS:
        element = pairs_of(run, RUN)
        in_row = run < ROW_RUNS
        inside = in_row & (row < rows) if ROWS > 1 else in_row
        own, given, gn = _load(gy, gs, s, weight, gy_at, gs_at, s_at, element, inside, in_row, ACC)
        inverse_rms, through = _scales(own * own, gn * own, DIM, EPS, ROWS)
        tl.store(out + out_at + element, narrow(given + gn * inverse_rms - own * through, DTYPE), mask=inside)
    else:  # one row
        squares, products = tl.zeros([ROWS, RUNS, RUN], ACC), tl.zeros([ROWS, RUNS, RUN], ACC)
        for first in range(0, ROW_RUNS, RUNS):
            element = pairs_of(first + run, RUN)
            inside = first + run < ROW_RUNS
            own, given, gn = _load(gy, gs, s, weight, gy_at, gs_at, s_at, element, inside, inside, ACC)
            squares += own * own
            products += gn * own
        inverse_rms, through = _scales(squares, products, DIM, EPS, ROWS)
        for first in range(0, ROW_RUNS, RUNS):
            element = pairs_of(first + run, RUN)
            inside = first + run < ROW_RUNS
            own, given, gn = _load(gy, gs, s, weight, gy_at, gs_at, s_at, element, inside, inside, ACC)
            tl.store(out + out_at + element, narrow(given + gn * inverse_rms - own * through, DTYPE), mask=inside)
