"""s = R x + residual and y = weight * s / sqrt(mean(s^2) + eps), one adapter or one per row.

A program has one row, or several short ones, in registers: one pass over memory. Only a row that is too long for that
is read twice. How rows are partitioned depends on their width and not on their number, so that a row's result does not
depend on the others.
"""

import triton
import triton.language as tl

from ..launch import kernel
from .coefficients import load_coefficients
from .ids import check_ids, load_adapters, spread
from .pairs import load_pairs, pack, rotate_used, store_pairs, unpack, widen
from .rows import pairs_of, row_offsets


@triton.jit
def _add(
    x,
    residual,
    r1,
    r2,
    x_at,
    residual_at,
    pair,
    inside,
    in_row,
    used,
    GROUP: tl.constexpr,
    SHARED: tl.constexpr,
    BATCHED: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """s for a tile of pairs; 0 outside."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    HALF: tl.constexpr = GROUP // 2
    raw_x = load_pairs(x, x_at, pair, inside, HALF, LAYOUT)
    raw_residual = load_pairs(residual, residual_at, pair, inside, HALF, LAYOUT)
    mask = in_row & used if BATCHED else in_row
    coefficients = load_coefficients(r1, r2, pair, mask, GROUP, "table", SHARED, False, ACC)
    hi, hj = unpack(raw_x[0], raw_x[1], DTYPE, ACC, LAYOUT)
    hi, hj = rotate_used(hi, hj, coefficients, used, BATCHED)
    residual_i, residual_j = unpack(raw_residual[0], raw_residual[1], DTYPE, ACC, LAYOUT)
    return hi + residual_i, hj + residual_j


@triton.jit
def _squares(si, sj):
    """Of pairs. In float64, in which the order of a sum hardly matters: float32 sums of tiles that the compiler lays
    out otherwise, for rows that are aligned otherwise, would differ in their last bits.
    """
    return tl.fma(si, si, sj * sj).to(tl.float64)


@triton.jit
def _inverse_rms(squares, ACC: tl.constexpr, DIM: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr):
    """1 / sqrt(mean + eps) of each row; a scalar for one row, as Triton's compiler aborts on tiles of one element."""
    total = tl.sum(squares) if ROWS == 1 else tl.sum(tl.sum(squares, 2), 1)[:, None, None]
    return tl.rsqrt((total * (1.0 / DIM)).to(ACC) + EPS)


@triton.jit
def _store(y, s, raw_weight, y_at, s_at, pair, inside, si, sj, inverse_rms, HALF: tl.constexpr, LAYOUT: tl.constexpr):
    DTYPE: tl.constexpr = y.dtype.element_ty
    wi, wj = widen(raw_weight[0], si.dtype), widen(raw_weight[1], si.dtype)
    raw_i, raw_j = pack(wi * (si * inverse_rms), wj * (sj * inverse_rms), DTYPE, LAYOUT)
    store_pairs(y, y_at, pair, inside, raw_i, raw_j, HALF, LAYOUT)
    raw_i, raw_j = pack(si, sj, DTYPE, LAYOUT)
    store_pairs(s, s_at, pair, inside, raw_i, raw_j, HALF, LAYOUT)


@kernel
def add_rms_norm_kernel(
    x,
    residual,
    weight,
    r1,
    r2,
    ids,
    y,
    s,
    rows: tl.int64,
    adapters: tl.int64,
    id_factor: tl.int64,  # rows of an id, as a divisor
    id_shift: tl.int64,
    r1_step: tl.int64,  # from one adapter's tables to the next, in units of P_ALIGN
    r2_step: tl.int64,
    x_stride: tl.int64,
    x_jump: tl.int64,
    x_factor: tl.int64,
    x_shift: tl.int64,
    residual_stride: tl.int64,
    residual_jump: tl.int64,
    residual_factor: tl.int64,
    residual_shift: tl.int64,
    y_stride: tl.int64,
    y_jump: tl.int64,
    y_factor: tl.int64,
    y_shift: tl.int64,
    s_stride: tl.int64,
    s_jump: tl.int64,
    s_factor: tl.int64,
    s_shift: tl.int64,
    DIM: tl.constexpr,
    GROUP: tl.constexpr,
    EPS: tl.constexpr,
    SHARED: tl.constexpr,
    BATCHED: tl.constexpr,
    IN_PLACE: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    P_ALIGN: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    RUNS: tl.constexpr,
    RUN: tl.constexpr,
):
    """A program takes ROWS rows, RUNS runs of each at a time. If these are not all, it takes all of them twice.

    IN_PLACE: y and s are x and residual. Lanes may store elements that others load, therefore the barriers.
    """
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    HALF: tl.constexpr = GROUP // 2
    ROW_RUNS: tl.constexpr = DIM // 2 // RUN
    run = tl.arange(0, RUNS)[None, :, None]
    row = tl.program_id(0).to(tl.int64) * ROWS
    if ROWS > 1:
        row += tl.arange(0, ROWS)[:, None, None] + run * 0
    adapter, allowed = load_adapters(ids, row, rows, adapters, (id_factor, id_shift), BATCHED)
    used = adapter >= 0 if ROWS > 1 else spread(adapter >= 0, run)
    r1, r2 = r1 + adapter * r1_step * P_ALIGN, r2 + adapter * r2_step * P_ALIGN
    x_at = row_offsets(row, (x_stride, x_jump, x_factor, x_shift), SPLIT, ALIGN)
    residual_at = row_offsets(row, (residual_stride, residual_jump, residual_factor, residual_shift), SPLIT, ALIGN)
    y_at = row_offsets(row, (y_stride, y_jump, y_factor, y_shift), SPLIT, ALIGN)
    s_at = row_offsets(row, (s_stride, s_jump, s_factor, s_shift), SPLIT, ALIGN)

    if ROW_RUNS <= RUNS:
        pair = pairs_of(run, RUN)
        in_row = run < ROW_RUNS
        inside = in_row & (row < rows) if ROWS > 1 else in_row
        raw_weight = load_pairs(weight, 0, pair, in_row, HALF, "halves")  # before the sum, for which lanes wait
        si, sj = _add(x, residual, r1, r2, x_at, residual_at, pair, inside, in_row, used, GROUP, SHARED, BATCHED,
                      LAYOUT)  # fmt: skip
        inverse_rms = _inverse_rms(_squares(si, sj), ACC, DIM, EPS, ROWS)
        if IN_PLACE:
            tl.debug_barrier()
        _store(y, s, raw_weight, y_at, s_at, pair, inside, si, sj, inverse_rms, HALF, LAYOUT)
    else:  # one row
        squares = tl.zeros([ROWS, RUNS, RUN], tl.float64)
        for first in range(0, ROW_RUNS, RUNS):
            pair = pairs_of(first + run, RUN)
            inside = first + run < ROW_RUNS
            si, sj = _add(x, residual, r1, r2, x_at, residual_at, pair, inside, inside, used, GROUP, SHARED, BATCHED,
                          LAYOUT)  # fmt: skip
            squares += _squares(si, sj)
        inverse_rms = _inverse_rms(squares, ACC, DIM, EPS, ROWS)
        for first in range(0, ROW_RUNS, RUNS):
            pair = pairs_of(first + run, RUN)
            inside = first + run < ROW_RUNS
            raw_weight = load_pairs(weight, 0, pair, inside, HALF, "halves")
            si, sj = _add(x, residual, r1, r2, x_at, residual_at, pair, inside, inside, used, GROUP, SHARED, BATCHED,
                          LAYOUT)  # fmt: skip
            if IN_PLACE:
                tl.debug_barrier()
            _store(y, s, raw_weight, y_at, s_at, pair, inside, si, sj, inverse_rms, HALF, LAYOUT)
    if BATCHED:
        check_ids(allowed)
