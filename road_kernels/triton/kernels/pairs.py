"""The mathematics of one pair of features, and moving a tile of pairs into and out of registers.

A tile is [ROWS, RUNS, RUN]: rows, and runs of adjacent pairs. A lane moves a run at once, so what belongs to a run is
worked out once a lane: its place, its mask, the adapter of its row. LAYOUT says how the two features of a pair lie in
memory:

    "halves"   half a group apart, or adjacent but not aligned to a word: two loads
    "words"    adjacent (group_size 2), in one word: 32 bits for 16-bit types, 64 for float32. One load of 16 bytes a
               lane, where tl.join and tl.split would go through shared memory.

A raw tile is what was loaded, (i, j) for "halves" and (word, word) for "words".
"""

import triton
import triton.language as tl


@triton.jit
def rotate_feature(own, partner, r1, r2):
    """r1 own - r2 partner: a row of a block.

    The zero added to the products turns -0 into +0, so that subtracting them leaves even h = -0 unchanged: r1 = 1,
    r2 = 0 returns finite h bit for bit. They are subtracted as -1.0 times themselves because Triton 3.6 turns -t into
    0 - t, which is +0 for t = 0. The fused multiply-adds are explicit, and not left to the compiler, so that a row gets
    the same bits from every configuration.
    """
    return tl.fma(r1, own, tl.fma(r2, partner, 0.0) * -1.0)


@triton.jit
def rotate_pair(hi, hj, r1i, r1j, r2i, r2j):
    """z_i = r1_i h_i - r2_i h_j, z_j = r1_j h_j + r2_j h_i (arXiv 2409.00119, equation 4)."""
    return rotate_feature(hi, hj, r1i, r2i), rotate_feature(hj, hi, r1j, -r2j)


@triton.jit
def is_identity(coefficients):
    """Of each pair: as in an empty slot, whose rows pass to the bit, though 0 times an infinity is a NaN."""
    r1i, r1j, r2i, r2j = coefficients[0], coefficients[1], coefficients[2], coefficients[3]
    return (r1i == 1) & (r1j == 1) & (r2i == 0) & (r2j == 0)


@triton.jit
def rotate_used(hi, hj, coefficients, used, BATCHED: tl.constexpr):
    """rotate_pair where used and no identity. Other pairs are what they were, whatever their partners hold.

    coefficients: as load_coefficients returns them. used: unread unless BATCHED.
    """
    zi, zj = rotate_pair(hi, hj, coefficients[0], coefficients[1], coefficients[2], coefficients[3])
    if BATCHED:
        used = used & (is_identity(coefficients) == 0)
        zi, zj = tl.where(used, zi, hi), tl.where(used, zj, hj)
    return zi, zj


@triton.jit
def first_features(pair, HALF: tl.constexpr):
    """The first feature of each pair; the second is HALF further."""
    return pair // HALF * (2 * HALF) + pair % HALF


@triton.jit
def pair_of(feature, HALF: tl.constexpr):
    return feature // (2 * HALF) * HALF + feature % HALF


@triton.jit
def _places(base, offset, pair, HALF: tl.constexpr, LAYOUT: tl.constexpr):
    """Pointers to a tile of pairs in rows that start `offset` elements after base: to each i, or to each word."""
    if LAYOUT == "words":
        WORD: tl.constexpr = tl.int64 if base.dtype.element_ty == tl.float32 else tl.int32
        at = base.to(tl.pointer_type(WORD)) + offset // 2 + pair
    else:
        at = base + offset + first_features(pair, HALF)
    return at


@triton.jit
def load_pairs(base, offset, pair, mask, HALF: tl.constexpr, LAYOUT: tl.constexpr):
    """A raw tile."""
    at = _places(base, offset, pair, HALF, LAYOUT)
    raw_i = tl.load(at, mask=mask, other=0)
    raw_j = raw_i if LAYOUT == "words" else tl.load(at + HALF, mask=mask, other=0)
    return raw_i, raw_j


@triton.jit
def store_pairs(base, offset, pair, mask, raw_i, raw_j, HALF: tl.constexpr, LAYOUT: tl.constexpr):
    at = _places(base, offset, pair, HALF, LAYOUT)
    tl.store(at, raw_i, mask=mask)
    if LAYOUT != "words":
        tl.store(at + HALF, raw_j, mask=mask)


@triton.jit
def copy_pairs(base, offset, target, target_offset, pair, mask, HALF: tl.constexpr, LAYOUT: tl.constexpr):
    """Pass-through rows: copied raw, so that not even the bits of a NaN change.

    Under its own mask: a load and a store that are masked off cost two instructions, and selecting between the loaded
    and the computed elements one for each.
    """
    raw_i, raw_j = load_pairs(base, offset, pair, mask, HALF, LAYOUT)
    store_pairs(target, target_offset, pair, mask, raw_i, raw_j, HALF, LAYOUT)


@triton.jit
def widen(value, ACC: tl.constexpr):
    """To the arithmetic type. By float32 on the way to float64, which Triton's interpreter needs for bfloat16."""
    if value.dtype != tl.float64:
        value = value.to(tl.float32)
    return value.to(ACC)


@triton.jit
def narrow(value, DTYPE: tl.constexpr):
    """To the stored type, rounded to nearest even."""
    if DTYPE != tl.float64:
        value = value.to(tl.float32)
    return value.to(DTYPE)


@triton.jit
def unpack(raw_i, raw_j, DTYPE: tl.constexpr, ACC: tl.constexpr, LAYOUT: tl.constexpr):
    """(h_i, h_j) in the arithmetic type from a raw tile of DTYPE."""
    if LAYOUT != "words":
        hi, hj = widen(raw_i, ACC), widen(raw_j, ACC)
    elif DTYPE == tl.float32:
        hi = raw_i.to(tl.int32).to(tl.float32, bitcast=True)
        hj = (raw_i >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    elif DTYPE == tl.bfloat16:  # the upper half of a float32
        hi = (raw_i << 16).to(tl.float32, bitcast=True)
        hj = (raw_i & -65536).to(tl.float32, bitcast=True)
    else:
        hi = raw_i.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        hj = (raw_i >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return hi, hj


@triton.jit
def pack(zi, zj, DTYPE: tl.constexpr, LAYOUT: tl.constexpr):
    """The raw tile of (z_i, z_j), rounded once."""
    if LAYOUT != "words":
        raw_i, raw_j = narrow(zi, DTYPE), narrow(zj, DTYPE)
    else:
        if DTYPE == tl.float32:
            low, high = zi.to(tl.int32, bitcast=True).to(tl.int64), zj.to(tl.int32, bitcast=True).to(tl.int64)
            raw_i = (low & 0xFFFFFFFF) | (high << 32)
        else:
            low = zi.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32)
            high = zj.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32)
            raw_i = (low & 0xFFFF) | (high << 16)
        raw_j = raw_i
    return raw_i, raw_j
