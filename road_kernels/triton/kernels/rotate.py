"""Forward and its transpose, one adapter or one per row. Each element is read once and written once.

Programs are short: a lane takes a run of pairs in one row (several where coefficients are costly), loads everything at
once and ends. Programs in the order of their numbers sweep memory in one narrow front. CUDA kernels of this shape reach
98 to 99.8 % of the fastest copy on an H200, those that walk many rows 88 to 94 %. Coefficients come from the caches.
"""

import triton
import triton.language as tl

from ..launch import kernel
from .coefficients import load_coefficients
from .ids import adapter_of, check_ids, is_allowed, load_ids
from .pairs import copy_pairs, is_identity, load_pairs, pack, rotate_pair, store_pairs, unpack
from .rows import pairs_of, row_offsets, runs_of_program


@triton.jit
def _rotate_rows(
    x,
    z,
    p,
    q,
    first,
    rows,
    id,
    pair,
    steps,
    x_rows,
    z_rows,
    copy_below,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    FORM: tl.constexpr,
    SHARED: tl.constexpr,
    BATCHED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    P_ALIGN: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Rotates the pairs [1, RUNS, RUN] of ROWS rows from first [1, RUNS, 1] on, all loaded before one is used.

    BATCHED: by adapters id [1, RUNS, 1]; -1 for pass-through rows. Otherwise the steps are 0, which the compiler does
    not know: it takes the parameters to be aligned to P_ALIGN elements, and no longer runs of them than of a row.
    """
    DTYPE: tl.constexpr = x.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    HALF: tl.constexpr = GROUP // 2
    used = id >= 0 if BATCHED else None  # None: all parameters, also where a run is behind the last row
    p, q = p + id * steps[0] * P_ALIGN, q + id * steps[1] * P_ALIGN
    raws = ()
    for k in tl.static_range(ROWS):
        mask = (first + k < rows) & used if BATCHED else first + k < rows
        at = row_offsets(first + k, x_rows, SPLIT, ALIGN)
        raws += (load_pairs(x, at, pair, mask, HALF, LAYOUT),)
    coefficients = load_coefficients(p, q, pair, used, GROUP, FORM, SHARED, TRANSPOSED, ACC)
    for k in tl.static_range(ROWS):
        hi, hj = unpack(raws[k][0], raws[k][1], DTYPE, ACC, LAYOUT)
        zi, zj = rotate_pair(hi, hj, coefficients[0], coefficients[1], coefficients[2], coefficients[3])
        raw_i, raw_j = pack(zi, zj, DTYPE, LAYOUT)
        if BATCHED and FORM == "table":
            same = is_identity(coefficients)
            raw_i, raw_j = tl.where(same, raws[k][0], raw_i), tl.where(same, raws[k][1], raw_j)
        at = row_offsets(first + k, z_rows, SPLIT, ALIGN)
        inside = first + k < rows
        mask = inside & used if BATCHED else inside
        store_pairs(z, at, pair, mask, raw_i, raw_j, HALF, LAYOUT)
        if BATCHED:
            from_at = row_offsets(first + k, x_rows, SPLIT, ALIGN)
            passing = inside & (id < copy_below)
            copy_pairs(x, from_at, z, at, pair, passing, HALF, LAYOUT)


@kernel
def rotate_kernel(
    x,
    z,
    p,
    q,
    ids,
    rows: tl.int64,
    adapters: tl.int64,
    id_factor: tl.int64,  # rows of an id, as a divisor
    id_shift: tl.int64,
    p_step: tl.int64,  # from one adapter's parameters to the next, in units of P_ALIGN
    q_step: tl.int64,
    x_stride: tl.int64,
    x_jump: tl.int64,
    x_factor: tl.int64,
    x_shift: tl.int64,
    z_stride: tl.int64,
    z_jump: tl.int64,
    z_factor: tl.int64,
    z_shift: tl.int64,
    copy_below: tl.int64,  # rows whose id is lower are copied: 0, and in place, where they are not even read, -1
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
    RUNS: tl.constexpr,
    RUN: tl.constexpr,
):
    """Rows are taken in groups of ROWS. A program takes RUNS runs: those of a group, then those of the next group."""
    GROUP_RUNS: tl.constexpr = DIM // 2 // RUN
    group, run = runs_of_program(GROUP_RUNS, RUNS)
    first = group * ROWS
    pair = pairs_of(run, RUN)
    steps = p_step, q_step
    x_rows, z_rows = (x_stride, x_jump, x_factor, x_shift), (z_stride, z_jump, z_factor, z_shift)
    divisor = id_factor, id_shift

    id, allowed, mixed = group, True, 0
    if BATCHED:
        given = load_ids(ids, first, rows, divisor)
        id = adapter_of(given, adapters)
        allowed = is_allowed(given, adapters)
        differ = id * 0
        for behind in tl.static_range(1, ROWS):
            given = load_ids(ids, first + behind, rows, divisor)
            differ = differ | (adapter_of(given, adapters) ^ id)
            allowed = allowed & is_allowed(given, adapters)
        if ROWS > 1:
            mixed = tl.max((differ != 0).to(tl.int32))
    if mixed == 0:
        _rotate_rows(
            x, z, p, q, first, rows, id, pair, steps, x_rows, z_rows, copy_below, ROWS, GROUP, FORM, SHARED, BATCHED,
            TRANSPOSED, LAYOUT, ALIGN, P_ALIGN, SPLIT,
        )  # fmt: skip
    else:  # a lane has rows of several adapters
        for k in range(ROWS):
            id = adapter_of(load_ids(ids, first + k, rows, divisor), adapters)
            _rotate_rows(
                x, z, p, q, first + k, rows, id, pair, steps, x_rows, z_rows, copy_below, 1, GROUP, FORM, SHARED,
                BATCHED, TRANSPOSED, LAYOUT, ALIGN, P_ALIGN, SPLIT,
            )  # fmt: skip
    if BATCHED:
        check_ids(allowed)
