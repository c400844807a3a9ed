"""R on the heads of q, k and v, then RoPE on those of q and k, one adapter or one per row.

RoPE is a rotation of pairs as well, by cos and sin of the row's position, and its pairs and those of R cross. What is
closed under both goes to one lane, which loads and stores every element once, also in place: a pair where they are the
same, and otherwise, in the usual case, two pairs. The rest is for crossed_rope.py.
"""

import triton
import triton.language as tl

from ..launch import kernel
from .coefficients import load_coefficients, load_value
from .ids import check_ids, load_adapters
from .pairs import load_pairs, pack, rotate_used, store_pairs, unpack
from .rows import pairs_of, row_offsets, runs_of_program


@triton.jit
def load_positions(positions, row, rows, position_rows, max_position, SPLIT: tl.constexpr):
    """(the position of each row, whether the cache has it). Behind the last row its position again."""
    at = row_offsets(tl.minimum(row, rows - 1), position_rows, SPLIT, 1)
    position = tl.load(positions + at).to(tl.int64)
    return position, position.to(tl.uint64) < max_position.to(tl.uint64)


@triton.jit
def check_positions(allowed):
    """For the end of a program, as check_ids."""
    tl.device_assert(allowed, "road_kernels: positions holds one that cos_sin_cache does not have")


@triton.jit
def turn(ha, hb, cos, sin, turned):
    """RoPE on pairs of features, where turned."""
    coefficients = cos, cos, sin, sin
    return rotate_used(ha, hb, coefficients, turned, True)


@kernel
def rope_kernel(
    x,
    positions,
    cache,
    r1,
    r2,
    ids,
    z,
    rows: tl.int64,
    adapters: tl.int64,
    max_position: tl.int64,
    id_factor: tl.int64,  # rows of an id, as a divisor
    id_shift: tl.int64,
    r1_step: tl.int64,  # from one adapter's tables to the next, in units of P_ALIGN
    r2_step: tl.int64,
    cache_step: tl.int64,  # from one position to the next, in units of CACHE_ALIGN
    x_stride: tl.int64,
    x_jump: tl.int64,
    x_factor: tl.int64,
    x_shift: tl.int64,
    z_stride: tl.int64,
    z_jump: tl.int64,
    z_factor: tl.int64,
    z_shift: tl.int64,
    position_stride: tl.int64,
    position_jump: tl.int64,
    position_factor: tl.int64,
    position_shift: tl.int64,
    HEADS: tl.constexpr,
    TURNED_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    SHARED: tl.constexpr,
    BATCHED: tl.constexpr,
    TWO_PAIRS: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    P_ALIGN: tl.constexpr,
    CACHE_LAYOUT: tl.constexpr,
    CACHE_ALIGN: tl.constexpr,
    SPLIT: tl.constexpr,
    RUNS: tl.constexpr,
    RUN: tl.constexpr,
):
    """A lane takes a run of pairs and, if TWO_PAIRS, the one half a head behind it. The first TURNED_HEADS are turned.

    Without TWO_PAIRS, RoPE has the pairs of R. With, all of a head is turned, and GROUP divides its half: feature k of
    one pair and of the other are a pair of RoPE.
    """
    DTYPE: tl.constexpr = x.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    HALF: tl.constexpr = GROUP // 2
    HEAD_PAIRS: tl.constexpr = HEAD_DIM // 2
    HEAD_RUNS: tl.constexpr = HEAD_PAIRS // RUN // (2 if TWO_PAIRS else 1)
    TURNED_RUNS: tl.constexpr = ROTARY_DIM // 2 // RUN // (2 if TWO_PAIRS else 1)
    row, run = runs_of_program(HEADS * HEAD_RUNS, RUNS)
    head, run_of_head = run // HEAD_RUNS, run % HEAD_RUNS
    pair_of_head = pairs_of(run_of_head, RUN)
    pair = head * HEAD_PAIRS + pair_of_head
    inside = row < rows
    adapter, allowed = load_adapters(ids, row, rows, adapters, (id_factor, id_shift), BATCHED)
    used = adapter >= 0 if BATCHED else None  # None: all tables, also where a run is behind the last row
    r1, r2 = r1 + adapter * r1_step * P_ALIGN, r2 + adapter * r2_step * P_ALIGN
    position_rows = position_stride, position_jump, position_factor, position_shift
    position, in_cache = load_positions(positions, row, rows, position_rows, max_position, SPLIT)
    turned = in_cache & (head < TURNED_HEADS) & (run_of_head < TURNED_RUNS)
    cache_at = position * cache_step * CACHE_ALIGN

    x_at = row_offsets(row, (x_stride, x_jump, x_factor, x_shift), SPLIT, ALIGN)
    z_at = row_offsets(row, (z_stride, z_jump, z_factor, z_shift), SPLIT, ALIGN)
    raw_a = load_pairs(x, x_at, pair, inside, HALF, LAYOUT)
    of_a = load_coefficients(r1, r2, pair, used, GROUP, "table", SHARED, False, ACC)
    if TWO_PAIRS:
        pair_b = pair + HEAD_PAIRS // 2
        raw_b = load_pairs(x, x_at, pair_b, inside, HALF, LAYOUT)
        of_b = load_coefficients(r1, r2, pair_b, used, GROUP, "table", SHARED, False, ACC)
        cos = load_pairs(cache, cache_at, pair_of_head, turned, HALF, CACHE_LAYOUT)
        sin = load_pairs(cache, cache_at + ROTARY_DIM // 2, pair_of_head, turned, HALF, CACHE_LAYOUT)
        cos_i, cos_j = unpack(cos[0], cos[1], cache.dtype.element_ty, ACC, CACHE_LAYOUT)
        sin_i, sin_j = unpack(sin[0], sin[1], cache.dtype.element_ty, ACC, CACHE_LAYOUT)
        ai, aj = unpack(raw_a[0], raw_a[1], DTYPE, ACC, LAYOUT)
        ai, aj = rotate_used(ai, aj, of_a, used, BATCHED)
        bi, bj = unpack(raw_b[0], raw_b[1], DTYPE, ACC, LAYOUT)
        bi, bj = rotate_used(bi, bj, of_b, used, BATCHED)
        ai, bi = turn(ai, bi, cos_i, sin_i, turned)
        aj, bj = turn(aj, bj, cos_j, sin_j, turned)
        raw_i, raw_j = pack(bi, bj, DTYPE, LAYOUT)
        store_pairs(z, z_at, pair_b, inside, raw_i, raw_j, HALF, LAYOUT)
    else:
        cos = load_value(cache + cache_at + pair_of_head, turned, ACC)
        sin = load_value(cache + cache_at + ROTARY_DIM // 2 + pair_of_head, turned, ACC)
        ai, aj = unpack(raw_a[0], raw_a[1], DTYPE, ACC, LAYOUT)
        ai, aj = rotate_used(ai, aj, of_a, used, BATCHED)
        ai, aj = turn(ai, aj, cos, sin, turned)
    raw_i, raw_j = pack(ai, aj, DTYPE, LAYOUT)
    store_pairs(z, z_at, pair, inside, raw_i, raw_j, HALF, LAYOUT)
    if BATCHED:
        check_ids(allowed)
    check_positions(in_cache)
