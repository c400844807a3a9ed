"""Parameter gradients, one adapter or a mixed batch: one pass over the rows, whose partial sums reduce.py adds.

They need only the 2x2 matrix M = sum over tokens of gz h^T (rows: gz, columns: h):

    gr1_i = M_ii    gr2_i = -M_ij    gr1_j = M_jj    gr2_j = M_ji

and where both features of a pair share their coefficients (SHARED) two of those sums: gr1 = dot = M_ii + M_jj,
gr2 = cross = M_ji - M_ij. The gradient of x alone is rotate_kernel with TRANSPOSED.

Programs are short, as in the forward: a tile of columns by up to 64 rows of one adapter (plan.Backward), several rows
side by side. A mixed batch differs in which rows these are, and no more.
"""

import triton
import triton.language as tl

from ..launch import kernel
from .coefficients import load_coefficients
from .pairs import copy_pairs, load_pairs, pack, rotate_pair, store_pairs, unpack
from .rows import divide, pairs_of, row_offsets


@triton.jit
def _begin_of(starts, count, mask, rows_per_id):
    """The first row of an adapter count."""
    return tl.load(starts + count - 1, mask=mask & (count > 0), other=0) * rows_per_id


@triton.jit
def work_of(starts, slot, adapters, rows_per_id, cut_shift, SEARCH: tl.constexpr):
    """(begin, end, adapter) of a slot of a mixed batch, see plan.Backward; begin >= end where it has no rows.

    Each round compares SEARCH candidates: two rounds for a thousand adapters.
    """
    low, high = slot * 0, adapters + 1  # the adapter count is in [low, high)
    while high - low > 1:
        step = (high - low + SEARCH - 1) // SEARCH
        candidate = low + (tl.arange(0, SEARCH) + 1) * step
        inside = candidate < high
        cut = _begin_of(starts, candidate, inside, rows_per_id) >> cut_shift
        low += tl.sum((inside & (cut + candidate <= slot)).to(tl.int32)).to(tl.int64) * step
        high = tl.minimum(low + step, high)
    begin = tl.maximum((slot - low) << cut_shift, _begin_of(starts, low, True, rows_per_id))
    end = tl.minimum((slot - low + 1) << cut_shift, tl.load(starts + low) * rows_per_id)
    return begin, end, low - 1


@triton.jit
def work_of_program(
    starts,
    rows,
    adapters,
    rows_per_id,
    cut_shift,
    BATCHED: tl.constexpr,
    ROW_RUNS: tl.constexpr,
    RUNS: tl.constexpr,
    RUN: tl.constexpr,
    SEARCH: tl.constexpr,
):
    """(slot, begin, end, adapter, pairs, which of them are in a row) of a program."""
    COLUMN_BLOCKS: tl.constexpr = (ROW_RUNS + RUNS - 1) // RUNS
    program = tl.program_id(0)
    slot = (program // COLUMN_BLOCKS).to(tl.int64)
    run = program % COLUMN_BLOCKS * RUNS + tl.arange(0, RUNS)[None, :, None]
    if BATCHED:
        begin, end, adapter = work_of(starts, slot, adapters, rows_per_id, cut_shift, SEARCH)
    else:
        begin = slot << cut_shift
        end, adapter = tl.minimum((slot + 1) << cut_shift, rows), slot * 0
    return slot, begin, end, adapter, pairs_of(run, RUN), run < ROW_RUNS


@triton.jit
def rows_at(positions, place, end, rows_per_id, divisor, BATCHED: tl.constexpr):
    """The rows at these places in the order of adapters; some row for a place behind the end."""
    row = place
    if BATCHED:
        id = divide(tl.minimum(place, end - 1), divisor[0], divisor[1])
        row += (tl.load(positions + id) - id) * rows_per_id
    return row


@triton.jit
def _load_rows(
    gz,
    saved,
    row,
    pair,
    mask,
    gz_rows,
    saved_rows,
    HALF: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """The raw tiles (gz_i, gz_j, saved_i, saved_j)."""
    gi, gj = load_pairs(gz, row_offsets(row, gz_rows, SPLIT, ALIGN), pair, mask, HALF, LAYOUT)
    hi, hj = load_pairs(saved, row_offsets(row, saved_rows, SPLIT, ALIGN), pair, mask, HALF, LAYOUT)
    return gi, gj, hi, hj


@triton.jit
def _take_rows(
    raw,
    gx,
    row,
    pair,
    mask,
    gx_rows,
    coefficients,
    sums,
    HALF: tl.constexpr,
    SHARED: tl.constexpr,
    NEED_GX: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """Writes gx of loaded rows, by the transposed coefficients. Returns M, or dot and cross, those rows further."""
    DTYPE: tl.constexpr = gx.dtype.element_ty
    ACC: tl.constexpr = sums[0].dtype
    gi, gj = unpack(raw[0], raw[1], DTYPE, ACC, LAYOUT)
    hi, hj = unpack(raw[2], raw[3], DTYPE, ACC, LAYOUT)
    if NEED_GX:
        r1i, r1j, r2i, r2j = coefficients
        xi, xj = rotate_pair(gi, gj, r1i, r1j, r2i, r2j)
        out_i, out_j = pack(xi, xj, DTYPE, LAYOUT)
        gx_at = row_offsets(row, gx_rows, False, ALIGN)
        store_pairs(gx, gx_at, pair, mask, out_i, out_j, HALF, LAYOUT)
    return add_outer(sums, gi, gj, hi, hj, SHARED)


@triton.jit
def add_outer(sums, gi, gj, hi, hj, SHARED: tl.constexpr):
    """M, or dot and cross, a tile of rows further."""
    sums0, sums1, sums2, sums3 = sums
    if SHARED:
        sums0 = tl.fma(gi, hi, tl.fma(gj, hj, sums0))
        sums1 = tl.fma(gj, hi, tl.fma(-gi, hj, sums1))
    else:
        sums0, sums1 = tl.fma(gi, hi, sums0), tl.fma(gi, hj, sums1)
        sums2, sums3 = tl.fma(gj, hi, sums2), tl.fma(gj, hj, sums3)
    return sums0, sums1, sums2, sums3


@triton.jit
def store_sums(scratch, slot, pair, inside, sums, DIM: tl.constexpr, SHARED: tl.constexpr):
    """Adds the rows of a tile and writes its sums, [DIM // 2] each, one after the other."""
    COUNT: tl.constexpr = 2 if SHARED else 4
    at = scratch + slot * (COUNT * (DIM // 2)) + pair
    tl.store(at, tl.sum(sums[0], 0)[None, :, :], mask=inside)
    tl.store(at + DIM // 2, tl.sum(sums[1], 0)[None, :, :], mask=inside)
    if not SHARED:
        tl.store(at + DIM, tl.sum(sums[2], 0)[None, :, :], mask=inside)
        tl.store(at + DIM + DIM // 2, tl.sum(sums[3], 0)[None, :, :], mask=inside)


@kernel
def backward_kernel(
    gz,
    saved,
    gx,
    p,
    q,
    positions,
    starts,
    scratch,
    rows: tl.int64,
    adapters: tl.int64,
    cut_shift: tl.int64,
    rows_per_id: tl.int64,
    id_factor: tl.int64,
    id_shift: tl.int64,
    p_step: tl.int64,  # from one adapter's parameters to the next, in units of P_ALIGN
    q_step: tl.int64,
    gz_stride: tl.int64,
    gz_jump: tl.int64,
    gz_factor: tl.int64,
    gz_shift: tl.int64,
    saved_stride: tl.int64,
    saved_jump: tl.int64,
    saved_factor: tl.int64,
    saved_shift: tl.int64,
    gx_stride: tl.int64,
    DIM: tl.constexpr,
    GROUP: tl.constexpr,
    FORM: tl.constexpr,
    SHARED: tl.constexpr,
    BATCHED: tl.constexpr,
    NEED_GX: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    P_ALIGN: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    RUNS: tl.constexpr,
    RUN: tl.constexpr,
    SEARCH: tl.constexpr,
):
    """A program keeps the sums of its pairs in registers and writes them to its slot of the scratch."""
    ACC: tl.constexpr = tl.float64 if gz.dtype.element_ty == tl.float64 else tl.float32
    HALF: tl.constexpr = GROUP // 2
    ROW_RUNS: tl.constexpr = DIM // 2 // RUN
    slot, begin, end, adapter, pair, inside = work_of_program(
        starts, rows, adapters, rows_per_id, cut_shift, BATCHED, ROW_RUNS, RUNS, RUN, SEARCH
    )
    gz_rows = gz_stride, gz_jump, gz_factor, gz_shift
    saved_rows = saved_stride, saved_jump, saved_factor, saved_shift
    gx_rows = (gx_stride,)
    divisor = id_factor, id_shift

    place = begin + tl.arange(0, ROWS)[:, None, None]
    if (begin < end) & (adapter >= 0):
        zeros = tl.zeros([ROWS, RUNS, RUN], ACC)
        sums = zeros, zeros, zeros, zeros
        coefficients = sums  # unread
        if NEED_GX:
            p += adapter * p_step * P_ALIGN
            q += adapter * q_step * P_ALIGN
            coefficients = load_coefficients(p, q, pair, inside, GROUP, FORM, SHARED, True, ACC)
        # Which rows follow is loaded a step ahead, beside the rows themselves.
        row = rows_at(positions, place, end, rows_per_id, divisor, BATCHED)
        row2 = rows_at(positions, place + ROWS, end, rows_per_id, divisor, BATCHED) if AT_ONCE == 2 else row
        for _ in range(begin, end, ROWS * AT_ONCE):
            mask, now = inside & (place < end), row
            raw = _load_rows(gz, saved, now, pair, mask, gz_rows, saved_rows, HALF, LAYOUT, ALIGN, SPLIT)
            if AT_ONCE == 2:
                mask2, now2 = inside & (place + ROWS < end), row2
                raw2 = _load_rows(gz, saved, now2, pair, mask2, gz_rows, saved_rows, HALF, LAYOUT, ALIGN, SPLIT)
            place += ROWS * AT_ONCE
            row = rows_at(positions, place, end, rows_per_id, divisor, BATCHED)
            sums = _take_rows(raw, gx, now, pair, mask, gx_rows, coefficients, sums, HALF, SHARED, NEED_GX, LAYOUT,
                              ALIGN)  # fmt: skip
            if AT_ONCE == 2:
                row2 = rows_at(positions, place + ROWS, end, rows_per_id, divisor, BATCHED)
                sums = _take_rows(raw2, gx, now2, pair, mask2, gx_rows, coefficients, sums, HALF, SHARED, NEED_GX,
                                  LAYOUT, ALIGN)  # fmt: skip
        store_sums(scratch, slot, pair, inside, sums, DIM, SHARED)
    elif (begin < end) & NEED_GX:  # pass-through rows
        for _ in range(begin, end, ROWS):
            row = rows_at(positions, place, end, rows_per_id, divisor, BATCHED)
            gx_at = row_offsets(row, gx_rows, False, ALIGN)
            mask = inside & (place < end)
            copy_pairs(gz, row_offsets(row, gz_rows, SPLIT, ALIGN), gx, gx_at, pair, mask, HALF, LAYOUT)
            place += ROWS
