"""Forward and its transpose, one adapter or one per row. Each element is read once and written once."""

import triton.language as tl

from ..launch import kernel
from .coefficients import load_coefficients
from .ids import check_ids, load_id, spread
from .pairs import copy_pairs, load_pairs, pack, rotate_pair, row_offsets, store_pairs, unpack


@kernel
def rotate_kernel(
    x,
    z,
    p,
    q,
    ids,
    rows: tl.int64,
    block_rows: tl.int64,
    adapters: tl.int64,
    rows_per_id: tl.int64,
    p_step: tl.int64,  # from one adapter's parameters to the next, in units of P_ALIGN
    q_step: tl.int64,
    x_outer: tl.int64,
    x_inner: tl.int64,
    x_inner_rows: tl.int64,
    z_outer: tl.int64,
    z_inner: tl.int64,
    z_inner_rows: tl.int64,
    copy_none: tl.int64,  # 0 in place: rows without an adapter are neither read nor written
    DIM: tl.constexpr,
    GROUP: tl.constexpr,
    FORM: tl.constexpr,
    SHARED: tl.constexpr,
    BATCHED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    P_ALIGN: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """A program walks consecutive rows of one block of PAIRS; its coefficients stay in registers until the adapter
    changes, so that parameters cost nothing on long inputs. BATCHED: ROWS is 1.
    """
    DTYPE: tl.constexpr = x.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)[None, :]
    inside = pair < DIM // 2
    begin = tl.program_id(1).to(tl.int64) * block_rows
    end = tl.minimum(begin + block_rows, rows)

    if not BATCHED:
        p, q = p + p_step * P_ALIGN, q + q_step * P_ALIGN  # by 0, unknown to the compiler: see prepare.py
        r1i, r1j, r2i, r2j = load_coefficients(p, q, pair, inside, GROUP, FORM, SHARED, TRANSPOSED, ACC)
        for start in range(begin, end, ROWS):
            row = start + tl.arange(0, ROWS).to(tl.int64)
            mask = inside & (row < end)[:, None] if ROWS > 1 else inside
            x_at = row_offsets(row, x_outer, x_inner, x_inner_rows, SPLIT, ALIGN)
            z_at = row_offsets(row, z_outer, z_inner, z_inner_rows, SPLIT, ALIGN)
            raw_i, raw_j = load_pairs(x, x_at, pair, mask, GROUP // 2, LAYOUT, ALIGN)
            hi, hj = unpack(raw_i, raw_j, DTYPE, ACC, LAYOUT)
            zi, zj = rotate_pair(hi, hj, r1i, r1j, r2i, r2j)
            raw_i, raw_j = pack(zi, zj, DTYPE, LAYOUT)
            store_pairs(z, z_at, pair, mask, raw_i, raw_j, GROUP // 2, LAYOUT, ALIGN)
    else:
        at_id = begin // rows_per_id
        phase = begin - at_id * rows_per_id
        if tl.program_id(0) == 0:
            check_ids(ids, at_id, (end - 1) // rows_per_id, adapters)
        start = begin
        following = load_id(ids, at_id, adapters)
        while start < end:  # a run of rows with one adapter
            adapter = following
            mask = inside & spread(adapter >= 0, pair)
            passing = inside & spread((adapter < 0) & (copy_none != 0), pair)
            r1i, r1j, r2i, r2j = load_coefficients(
                p + adapter * p_step * P_ALIGN,
                q + adapter * q_step * P_ALIGN,
                pair,
                mask,
                GROUP,
                FORM,
                SHARED,
                TRANSPOSED,
                ACC,
            )
            while (start < end) & (following == adapter):
                row = start + tl.arange(0, ROWS).to(tl.int64)
                x_at = row_offsets(row, x_outer, x_inner, x_inner_rows, SPLIT, ALIGN)
                z_at = row_offsets(row, z_outer, z_inner, z_inner_rows, SPLIT, ALIGN)
                raw_i, raw_j = load_pairs(x, x_at, pair, mask, GROUP // 2, LAYOUT, ALIGN)
                start += 1
                phase += 1
                at_id = tl.where(phase == rows_per_id, at_id + 1, at_id)
                phase = tl.where(phase == rows_per_id, 0, phase)
                following = load_id(ids, tl.where(start < end, at_id, 0), adapters)
                hi, hj = unpack(raw_i, raw_j, DTYPE, ACC, LAYOUT)
                zi, zj = rotate_pair(hi, hj, r1i, r1j, r2i, r2j)
                raw_i, raw_j = pack(zi, zj, DTYPE, LAYOUT)
                store_pairs(z, z_at, pair, mask, raw_i, raw_j, GROUP // 2, LAYOUT, ALIGN)
                copy_pairs(x, x_at, z, z_at, pair, passing, GROUP // 2, LAYOUT, ALIGN)
