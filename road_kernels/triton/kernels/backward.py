"""Parameter gradients, one adapter or a mixed batch: one pass over the rows, whose partial sums reduce.py adds.

They need only the 2x2 matrix M = sum over tokens of gz h^T (rows: gz, columns: h):

    gr1_i = M_ii    gr2_i = -M_ij    gr1_j = M_jj    gr2_j = M_ji

and where both features of a pair share their coefficients (SHARED) two of those sums: gr1 = dot = M_ii + M_jj,
gr2 = cross = M_ji - M_ij. The gradient of x alone is rotate_kernel with TRANSPOSED.
"""

import triton
import triton.language as tl

from ..launch import kernel
from .coefficients import load_coefficients
from .ids import check_ids, load_id, spread
from .pairs import copy_pairs, load_pairs, pack, rotate_pair, row_offsets, store_pairs, unpack


@triton.jit
def _store_sums(scratch, slot, pair, inside, sums, DIM: tl.constexpr, SHARED: tl.constexpr, LANE: tl.constexpr):
    """Adds the rows of a tile and writes its sums, [DIM // 2] each, one after the other.

    LANE: the pairs in a lane's 16 bytes. If the compiler knew a larger alignment of these stores, it would convert all
    rows through shared memory to match it.
    """
    COUNT: tl.constexpr = 2 if SHARED else 4
    at = scratch + tl.multiple_of(slot * (COUNT * (DIM // 2)), LANE) + pair
    tl.store(at, tl.sum(sums[0], 0)[None, :], mask=inside)
    tl.store(at + DIM // 2, tl.sum(sums[1], 0)[None, :], mask=inside)
    if not SHARED:
        tl.store(at + DIM, tl.sum(sums[2], 0)[None, :], mask=inside)
        tl.store(at + DIM + DIM // 2, tl.sum(sums[3], 0)[None, :], mask=inside)


@triton.jit
def _take_rows(
    gz,
    saved,
    gx,
    row,
    pair,
    mask,
    gz_rows,
    saved_rows,
    gx_outer,
    coefficients,
    sums,
    HALF: tl.constexpr,
    SHARED: tl.constexpr,
    NEED_GX: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Writes gx of a tile of rows, by the transposed coefficients. Returns M, or dot and cross, that tile further."""
    DTYPE: tl.constexpr = gz.dtype.element_ty
    ACC: tl.constexpr = sums[0].dtype
    gz_at = row_offsets(row, gz_rows[0], gz_rows[1], gz_rows[2], SPLIT, ALIGN)
    saved_at = row_offsets(row, saved_rows[0], saved_rows[1], saved_rows[2], SPLIT, ALIGN)
    raw_gi, raw_gj = load_pairs(gz, gz_at, pair, mask, HALF, LAYOUT, ALIGN)
    raw_hi, raw_hj = load_pairs(saved, saved_at, pair, mask, HALF, LAYOUT, ALIGN)
    gi, gj = unpack(raw_gi, raw_gj, DTYPE, ACC, LAYOUT)
    hi, hj = unpack(raw_hi, raw_hj, DTYPE, ACC, LAYOUT)
    if NEED_GX:
        r1i, r1j, r2i, r2j = coefficients
        xi, xj = rotate_pair(gi, gj, r1i, r1j, r2i, r2j)
        out_i, out_j = pack(xi, xj, DTYPE, LAYOUT)
        store_pairs(gx, tl.multiple_of(row * gx_outer, ALIGN), pair, mask, out_i, out_j, HALF, LAYOUT, ALIGN)
    sums0, sums1, sums2, sums3 = sums
    if SHARED:
        sums0 = tl.fma(gi, hi, tl.fma(gj, hj, sums0))
        sums1 = tl.fma(gj, hi, tl.fma(-gi, hj, sums1))
    else:
        sums0, sums1 = tl.fma(gi, hi, sums0), tl.fma(gi, hj, sums1)
        sums2, sums3 = tl.fma(gj, hi, sums2), tl.fma(gj, hj, sums3)
    return sums0, sums1, sums2, sums3


@kernel
def backward_kernel(
    gz,
    saved,
    gx,
    p,
    q,
    ids,
    positions,
    scratch,
    rows: tl.int64,
    block_rows: tl.int64,
    adapters: tl.int64,
    rows_per_id: tl.int64,
    p_step: tl.int64,  # from one adapter's parameters to the next, in units of P_ALIGN
    q_step: tl.int64,
    gz_outer: tl.int64,
    gz_inner: tl.int64,
    gz_inner_rows: tl.int64,
    saved_outer: tl.int64,
    saved_inner: tl.int64,
    saved_inner_rows: tl.int64,
    gx_outer: tl.int64,
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
    PAIRS: tl.constexpr,
):
    """A program walks consecutive rows and keeps the sums of its pairs in registers.

    BATCHED: the rows in the order of their sorted ids, which come with their positions before the sort. Where the
    adapter changes, the sums are written and start from zero. The sums of program b and adapter a go to slot b + a:
    from one written slot to the next, b or a increases and neither decreases, so the slots are distinct and below
    programs + adapters.
    """
    ACC: tl.constexpr = tl.float64 if gz.dtype.element_ty == tl.float64 else tl.float32
    HALF: tl.constexpr = GROUP // 2
    LANE: tl.constexpr = ALIGN // 2 if LAYOUT == "words" else ALIGN
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)[None, :]
    inside = pair < DIM // 2
    program = tl.program_id(1).to(tl.int64)
    start = program * block_rows
    end = tl.minimum(start + block_rows, rows)
    zeros = tl.zeros([ROWS, PAIRS], ACC)
    gz_rows, saved_rows = (gz_outer, gz_inner, gz_inner_rows), (saved_outer, saved_inner, saved_inner_rows)
    coefficients = zeros, zeros, zeros, zeros  # unread without NEED_GX

    if not BATCHED:
        if NEED_GX:
            p, q = p + p_step * P_ALIGN, q + q_step * P_ALIGN  # by 0, unknown to the compiler: see prepare.py
            coefficients = load_coefficients(p, q, pair, inside, GROUP, FORM, SHARED, True, ACC)
        sums = zeros, zeros, zeros, zeros
        for first in range(start, end, ROWS):
            row = first + tl.arange(0, ROWS).to(tl.int64)
            mask = inside & (row < end)[:, None] if ROWS > 1 else inside
            sums = _take_rows(
                gz, saved, gx, row, pair, mask, gz_rows, saved_rows, gx_outer, coefficients, sums, HALF, SHARED,
                NEED_GX, LAYOUT, ALIGN, SPLIT,
            )  # fmt: skip
        _store_sums(scratch, program, pair, inside, sums, DIM, SHARED, LANE)
    else:
        at_id = start // rows_per_id
        phase = start - at_id * rows_per_id
        if tl.program_id(0) == 0:
            check_ids(ids, at_id, (end - 1) // rows_per_id, adapters)
        following = load_id(ids, at_id, adapters)
        left = end - start
        while left > 0:  # a run of rows with one adapter
            adapter = following
            mask, passing = inside & spread(adapter >= 0, pair), inside & spread(adapter < 0, pair)
            if NEED_GX:
                p_own, q_own = p + adapter * p_step * P_ALIGN, q + adapter * q_step * P_ALIGN
                coefficients = load_coefficients(p_own, q_own, pair, mask, GROUP, FORM, SHARED, True, ACC)
            sums = zeros, zeros, zeros, zeros
            while (left > 0) & (following == adapter):
                row = tl.load(positions + at_id) * rows_per_id + phase + tl.arange(0, ROWS)
                left -= 1
                phase += 1
                at_id = tl.where(phase == rows_per_id, at_id + 1, at_id)
                phase = tl.where(phase == rows_per_id, 0, phase)
                following = load_id(ids, tl.where(left > 0, at_id, 0), adapters)
                sums = _take_rows(
                    gz, saved, gx, row, pair, mask, gz_rows, saved_rows, gx_outer, coefficients, sums, HALF, SHARED,
                    NEED_GX, LAYOUT, ALIGN, SPLIT,
                )  # fmt: skip
                if NEED_GX:
                    gz_at = row_offsets(row, gz_outer, gz_inner, gz_inner_rows, SPLIT, ALIGN)
                    gx_at = tl.multiple_of(row * gx_outer, ALIGN)
                    copy_pairs(gz, gz_at, gx, gx_at, pair, passing, HALF, LAYOUT, ALIGN)
            _store_sums(scratch, program + adapter, pair, mask, sums, DIM, SHARED, LANE)
