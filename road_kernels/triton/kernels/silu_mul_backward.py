"""All gradients of rotate_silu_mul in one pass over x and gz, with the partial sums of backward.py.

gate and up are computed again. Their gradients gh are to x and the tables what gz is to them in backward.py. Rows
without an adapter are no less work than others, as only the rotation is left out: they take the same path.
"""

import triton.language as tl

from ..launch import kernel
from .backward import add_outer, rows_at, store_sums, work_of_program
from .coefficients import load_coefficients
from .ids import spread
from .pairs import load_pairs, pack, rotate_used, store_pairs, unpack
from .rows import row_offsets
from .silu_mul import silu_mul_backward


@kernel
def silu_mul_backward_kernel(
    gz,
    x,
    gx,
    r1,
    r2,
    positions,
    starts,
    scratch,
    rows: tl.int64,
    adapters: tl.int64,
    cut_shift: tl.int64,
    rows_per_id: tl.int64,
    id_factor: tl.int64,
    id_shift: tl.int64,
    r1_step: tl.int64,  # from one adapter's tables to the next, in units of P_ALIGN
    r2_step: tl.int64,
    gz_stride: tl.int64,
    gz_jump: tl.int64,
    gz_factor: tl.int64,
    gz_shift: tl.int64,
    x_stride: tl.int64,
    x_jump: tl.int64,
    x_factor: tl.int64,
    x_shift: tl.int64,
    gx_stride: tl.int64,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    SHARED: tl.constexpr,
    BATCHED: tl.constexpr,
    NEED_GX: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    P_ALIGN: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    RUNS: tl.constexpr,
    RUN: tl.constexpr,
    SEARCH: tl.constexpr,
):
    """A program has the rows of a slot (plan.Backward), some pairs of gate, and those of up behind them.

    WIDTH: of gate, of up and of z. The scratch is that of backward_kernel for the 2 WIDTH features of x.
    """
    DTYPE: tl.constexpr = x.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    HALF: tl.constexpr = GROUP // 2
    ROW_RUNS: tl.constexpr = WIDTH // 2 // RUN
    slot, begin, end, adapter, pair, inside = work_of_program(
        starts, rows, adapters, rows_per_id, cut_shift, BATCHED, ROW_RUNS, RUNS, RUN, SEARCH
    )
    up_pair = pair + WIDTH // 2
    gz_rows, x_rows = (gz_stride, gz_jump, gz_factor, gz_shift), (x_stride, x_jump, x_factor, x_shift)
    divisor = id_factor, id_shift

    if begin < end:
        used = spread(adapter >= 0, inside)
        r1, r2 = r1 + adapter * r1_step * P_ALIGN, r2 + adapter * r2_step * P_ALIGN
        of_gate = load_coefficients(r1, r2, pair, inside & used, GROUP, "table", SHARED, False, ACC)
        of_up = load_coefficients(r1, r2, up_pair, inside & used, GROUP, "table", SHARED, False, ACC)
        zeros = tl.zeros([ROWS, RUNS, RUN], ACC)
        gate_sums = zeros, zeros, zeros, zeros
        up_sums = gate_sums
        place = begin + tl.arange(0, ROWS)[:, None, None]
        row = rows_at(positions, place, end, rows_per_id, divisor, BATCHED)
        for _ in range(begin, end, ROWS):
            mask, now = inside & (place < end), row
            x_at = row_offsets(now, x_rows, SPLIT, ALIGN)
            raw_gz = load_pairs(gz, row_offsets(now, gz_rows, SPLIT, ALIGN), pair, mask, HALF, LAYOUT)
            raw_gate = load_pairs(x, x_at, pair, mask, HALF, LAYOUT)
            raw_up = load_pairs(x, x_at, up_pair, mask, HALF, LAYOUT)
            place += ROWS
            # Which rows follow is loaded a step ahead, beside the rows themselves.
            row = rows_at(positions, place, end, rows_per_id, divisor, BATCHED)
            x_gate = unpack(raw_gate[0], raw_gate[1], DTYPE, ACC, LAYOUT)
            x_up = unpack(raw_up[0], raw_up[1], DTYPE, ACC, LAYOUT)
            gate = rotate_used(x_gate[0], x_gate[1], of_gate, used, BATCHED)
            up = rotate_used(x_up[0], x_up[1], of_up, used, BATCHED)
            pair_gz = unpack(raw_gz[0], raw_gz[1], DTYPE, ACC, LAYOUT)
            gx_gate, gx_up, g_gate, g_up = silu_mul_backward(pair_gz, gate, up, of_gate, of_up, used, BATCHED)
            if NEED_GX:
                gx_at = row_offsets(now, (gx_stride,), False, ALIGN)
                raw_i, raw_j = pack(gx_gate[0], gx_gate[1], DTYPE, LAYOUT)
                store_pairs(gx, gx_at, pair, mask, raw_i, raw_j, HALF, LAYOUT)
                raw_i, raw_j = pack(gx_up[0], gx_up[1], DTYPE, LAYOUT)
                store_pairs(gx, gx_at, up_pair, mask, raw_i, raw_j, HALF, LAYOUT)
            gate_sums = add_outer(gate_sums, g_gate[0], g_gate[1], x_gate[0], x_gate[1], SHARED)
            up_sums = add_outer(up_sums, g_up[0], g_up[1], x_up[0], x_up[1], SHARED)
        if adapter >= 0:
            store_sums(scratch, slot, pair, inside, gate_sums, 2 * WIDTH, SHARED)
            store_sums(scratch, slot, up_pair, inside, up_sums, 2 * WIDTH, SHARED)
