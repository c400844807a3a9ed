"""rope.py where the pairs of R and of RoPE cross in a way that no few of them are closed under."""

import triton
import triton.language as tl

from ..launch import kernel
from .coefficients import load_value
from .ids import check_ids, load_adapters
from .pairs import narrow, pair_of, rotate_feature, widen
from .rope import check_positions, load_positions, turn
from .rows import row_offsets


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
    if BATCHED:  # as rotate_used
        identity = (loaded[2] == 1) & (loaded[3] == 0)
        h = tl.where(used & (identity == 0), h, loaded[0])
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
    position, in_cache = load_positions(positions, row, rows, position_rows, max_position, SPLIT)

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
    za, zb = turn(za, zb, cos, sin, turned)
    tl.store(z + z_at + first, narrow(za, DTYPE), mask=inside)
    tl.store(z + z_at + second, narrow(zb, DTYPE), mask=inside)
    if BATCHED:
        check_ids(allowed)
    check_positions(in_cache)
