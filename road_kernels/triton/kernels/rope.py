"""R on the heads of q, k and v, then RoPE on those of q and k, one adapter or one per row.

RoPE is a rotation of pairs as well, by cos and sin of the row's position, and its pairs and those of R cross. What is
closed under both goes to one lane, which loads and stores every element once, also in place: a pair where they are the
same, and otherwise, in the usual case, two pairs. The rest is for crossed_rope_kernel.
"""

import triton
import triton.language as tl

from ..launch import kernel
from .coefficients import load_coefficients, load_value
from .ids import check_ids, load_adapters
from .pairs import load_pairs, narrow, pack, pair_of, rotate_feature, rotate_used, store_pairs, unpack, widen
from .rows import pairs_of, row_offsets, runs_of_program


@triton.jit
def _load_positions(positions, row, rows, position_rows, max_position, SPLIT: tl.constexpr):
    """(the position of each row, whether the cache has it). Behind the last row its position again."""
    at = row_offsets(tl.minimum(row, rows - 1), position_rows, SPLIT, 1)
    position = tl.load(positions + at).to(tl.int64)
    return position, position.to(tl.uint64) < max_position.to(tl.uint64)


@triton.jit
def _check_positions(allowed):
    """For the end of a program, as check_ids."""
    tl.device_assert(allowed, "road_kernels: positions holds one that cos_sin_cache does not have")


@triton.jit
def _turn(ha, hb, cos, sin, turned):
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
    position, in_cache = _load_positions(positions, row, rows, position_rows, max_position, SPLIT)
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
        ai, bi = _turn(ai, bi, cos_i, sin_i, turned)
        aj, bj = _turn(aj, bj, cos_j, sin_j, turned)
        raw_i, raw_j = pack(bi, bj, DTYPE, LAYOUT)
        store_pairs(z, z_at, pair_b, inside, raw_i, raw_j, HALF, LAYOUT)
    else:
        cos = load_value(cache + cache_at + pair_of_head, turned, ACC)
        sin = load_value(cache + cache_at + ROTARY_DIM // 2 + pair_of_head, turned, ACC)
        ai, aj = unpack(raw_a[0], raw_a[1], DTYPE, ACC, LAYOUT)
        ai, aj = rotate_used(ai, aj, of_a, used, BATCHED)
        ai, aj = _turn(ai, aj, cos, sin, turned)
    raw_i, raw_j = pack(ai, aj, DTYPE, LAYOUT)
    store_pairs(z, z_at, pair, inside, raw_i, raw_j, HALF, LAYOUT)
    if BATCHED:
        check_ids(allowed)
    _check_positions(in_cache)


@triton.jit
def _load_feature(
    x, x_at, r1, r2, feature, mask, used, GROUP: tl.constexpr, SHARED: tl.constexpr, BATCHED: tl.constexpr
):
    """(features of x, their partners, the coefficients of their rows of R) for any features."""
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    HALF: tl.constexpr = GROUP // 2
    is_second = feature % GROUP >= HALF
    own = tl.load(x + x_at + feature, mask=mask, other=0)
    partner = tl.load(x + x_at + tl.where(is_second, feature - HALF, feature + HALF), mask=mask, other=0)
    at = pair_of(feature, HALF) if SHARED else feature
    mask = mask & used if BATCHED else mask
    c1, c2 = load_value(r1 + at, mask, ACC), load_value(r2 + at, mask, ACC)
    return widen(own, ACC), widen(partner, ACC), c1, tl.where(is_second, -c2, c2)


@triton.jit
def _rotate_loaded(loaded, used, BATCHED: tl.constexpr):
    h = rotate_feature(loaded[0], loaded[1], loaded[2], loaded[3])
    if BATCHED:
        h = tl.where(used, h, loaded[0])
    return h


@kernel
def crossed_rope_kernel(
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
    id_factor: tl.int64,
    id_shift: tl.int64,
    r1_stride: tl.int64,
    r2_stride: tl.int64,
    cache_stride: tl.int64,
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
    IS_NEOX: tl.constexpr,
    GROUP: tl.constexpr,
    SHARED: tl.constexpr,
    BATCHED: tl.constexpr,
    IN_PLACE: tl.constexpr,
    SPLIT: tl.constexpr,
    HEADS_AT_ONCE: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Any pairs, element by element. A program takes HEADS_AT_ONCE heads, of one row or several, PLACES for each.

    A place is for two features: a pair of RoPE, or two that are not turned. Each needs its partner in R, which another
    place has as well. So elements are loaded twice, and in place nothing may be stored before everything is loaded:
    a program has all places of its heads, the partners are in the same head, and a barrier divides loads from stores.
    The barrier orders them for all lanes of the program, whichever the compiler gives an element to.
    """
    DTYPE: tl.constexpr = x.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    lane = tl.arange(0, HEADS_AT_ONCE * PLACES)[None, :, None]
    head = tl.program_id(0).to(tl.int64) * HEADS_AT_ONCE + lane // PLACES
    place = lane % PLACES
    row = head // HEADS
    head = (head - row * HEADS).to(tl.int32)
    inside = (row < rows) & (place < HEAD_DIM // 2)
    adapter, allowed = load_adapters(ids, row, rows, adapters, (id_factor, id_shift), BATCHED)
    used = adapter >= 0
    r1, r2 = r1 + adapter * r1_stride, r2 + adapter * r2_stride
    position_rows = position_stride, position_jump, position_factor, position_shift
    position, in_cache = _load_positions(positions, row, rows, position_rows, max_position, SPLIT)

    in_rotary = place < ROTARY_DIM // 2
    behind = place + ROTARY_DIM // 2  # a place behind rotary_dim: the first of two features, half of the rest apart
    if IS_NEOX:
        first = tl.where(in_rotary, place, behind)
        second = first + tl.where(in_rotary, ROTARY_DIM // 2, (HEAD_DIM - ROTARY_DIM) // 2)
    else:
        first = tl.where(in_rotary, 2 * place, behind)
        second = first + tl.where(in_rotary, 1, (HEAD_DIM - ROTARY_DIM) // 2)
    first, second = head * HEAD_DIM + first, head * HEAD_DIM + second

    x_at = row_offsets(row, (x_stride, x_jump, x_factor, x_shift), SPLIT, 1)
    z_at = row_offsets(row, (z_stride, z_jump, z_factor, z_shift), SPLIT, 1)
    loaded_a = _load_feature(x, x_at, r1, r2, first, inside, used, GROUP, SHARED, BATCHED)
    loaded_b = _load_feature(x, x_at, r1, r2, second, inside, used, GROUP, SHARED, BATCHED)
    turned = in_cache & in_rotary & (head < TURNED_HEADS)
    cos_at = cache + position * cache_stride + place
    cos = load_value(cos_at, turned, ACC)
    sin = load_value(cos_at + ROTARY_DIM // 2, turned, ACC)
    if IN_PLACE:
        tl.debug_barrier()
    za = _rotate_loaded(loaded_a, used, BATCHED)
    zb = _rotate_loaded(loaded_b, used, BATCHED)
    za, zb = _turn(za, zb, cos, sin, turned)
    tl.store(z + z_at + first, narrow(za, DTYPE), mask=inside)
    tl.store(z + z_at + second, narrow(zb, DTYPE), mask=inside)
    if BATCHED:
        check_ids(allowed)
    _check_positions(in_cache)
