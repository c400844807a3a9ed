"""From theta and alpha, or from tables, to the coefficients r1 and r2 of a tile of pairs."""

import triton
import triton.language as tl

from .pairs import widen

# pi/2 in three floats. The first two have 13 bits, so that their products with an integer k below 2^11 are exact even
# without a fused multiply-add (Triton's interpreter before 3.9).
_PI_2_A: tl.constexpr = tl.constexpr(1.570556640625)
_PI_2_B: tl.constexpr = tl.constexpr(0.0002396702766418457)
_PI_2_C: tl.constexpr = tl.constexpr(1.5893254712295857e-08)
_LARGE: tl.constexpr = tl.constexpr(2048.0)


@triton.jit
def _select5(index, a: tl.constexpr, b: tl.constexpr, c: tl.constexpr, d: tl.constexpr, e: tl.constexpr):
    """The index-th of five words of 32 bits."""
    zero = (index * 0).to(tl.uint32)
    a, b, c, d, e = zero + a, zero + b, zero + c, zero + d, zero + e
    return tl.where(index == 0, a, tl.where(index == 1, b, tl.where(index == 2, c, tl.where(index == 3, d, e))))


@triton.jit
def _reduce_large(angle):
    """A finite |angle| >= 2048 brought to [-pi/4, pi/4] in integers (Payne and Hanek), and its quadrant.

    angle = m 2^e with a 24-bit m. Bits of 2/pi of weight 2^(2 - e) and above contribute whole turns only and drop out;
    m times the next 64 bits is angle * 2/pi mod 4. Of its upper 32 bits, 2 are the quadrant and 30 the angle in it,
    with an error of at most 2^-30: a twentieth of the rounding error of a float32 sine near one.
    """
    bits = angle.to(tl.int32, bitcast=True)
    start = ((bits >> 23) & 0xFF) - 120  # e + 30
    word, shift = start >> 5, (start & 31).to(tl.uint32)
    # 2/pi in words of 32 bits after the point, preceded by one word of zeros. e < 105 needs no more.
    u0 = _select5(word, 0, 0xA2F9836E, 0x4E441529, 0xFC2757D1, 0xF534DDC0)
    u1 = _select5(word, 0xA2F9836E, 0x4E441529, 0xFC2757D1, 0xF534DDC0, 0xDB629599)
    u2 = _select5(word, 0x4E441529, 0xFC2757D1, 0xF534DDC0, 0xDB629599, 0x3C439041)
    high = (u0 << shift) | ((u1 >> 1) >> (31 - shift))
    low = (u1 << shift) | ((u2 >> 1) >> (31 - shift))
    m = ((bits & 0x7FFFFF) | 0x800000).to(tl.uint32)
    turns = high * m + tl.umulhi(low, m)
    fraction = (turns << 2).to(tl.int32, bitcast=True)  # from -1/2 to 1/2 of a quadrant, times 2^32
    nearest = (turns >> 30).to(tl.int32) + (fraction < 0).to(tl.int32)
    r = fraction.to(tl.float32) * 3.6572951981e-10  # pi/2 2^-32
    return tl.where(angle < 0, -r, r), tl.where(angle < 0, -nearest, nearest)


@triton.jit
def is_small(angle):
    """Whether an angle does not need _reduce_large. False for NaN."""
    return tl.abs(angle) < _LARGE


@triton.jit
def not_all(small):
    """Asked of a whole program, which costs a barrier, for all of its angles at once."""
    return tl.max(tl.where(small, 0, 1)) > 0


@triton.jit
def _sin_cos_float32(angle, large):
    small = is_small(angle)
    k = tl.floor(tl.fma(tl.where(small, angle, 0.0), 0.636619747, 0.5))  # the nearest multiple of pi/2
    r = tl.fma(k, -_PI_2_A, angle)
    r = tl.fma(k, -_PI_2_B, r)
    r = tl.fma(k, -_PI_2_C, r)
    quadrant = k.to(tl.int32)
    if large:
        far, turns = _reduce_large(angle)
        far = tl.where(tl.abs(angle) <= 3.40282347e38, far, angle - angle)  # NaN
        r, quadrant = tl.where(small, r, far), tl.where(small, quadrant, turns)
    # Taylor series on [-pi/4, pi/4]; the terms left out are below 3e-9.
    t = r * r
    s = tl.fma(t, tl.fma(t, tl.fma(t, 1.0 / 362880, -1.0 / 5040), 1.0 / 120), -1.0 / 6)
    s = tl.fma(r * t, s, r)
    c = tl.fma(t, tl.fma(t, tl.fma(t, tl.fma(t, -1.0 / 3628800, 1.0 / 40320), -1.0 / 720), 1.0 / 24), -0.5)
    c = tl.fma(t, c, 1.0)
    odd = (quadrant & 1) != 0
    sin, cos = tl.where(odd, c, s), tl.where(odd, s, c)
    return tl.where((quadrant & 2) != 0, -sin, sin), tl.where(((quadrant + 1) & 2) != 0, -cos, cos)


@triton.jit
def sin_cos(angle, large):
    """(sin, cos), float32 within a few ulp at any angle, float64 by the library.

    The library's float32 pair keeps an array in local memory for large angles, which would give every kernel here a
    stack frame. large: whether not all of the program's angles are small.
    """
    if angle.dtype == tl.float64:
        sin, cos = tl.sin(angle), tl.cos(angle)
    else:
        sin, cos = _sin_cos_float32(angle, large)
    return sin, cos


@triton.jit
def load_value(at, mask, ACC: tl.constexpr):
    """mask: None to load everything."""
    return widen(tl.load(at) if mask is None else tl.load(at, mask=mask, other=0), ACC)


@triton.jit
def load_angles(p, at, slot: tl.constexpr, mask, FORM: tl.constexpr, ACC: tl.constexpr):
    """The angles at `at` that make r1 and r2, in road_4's packing `slot` apart, otherwise the same."""
    first = load_value(p + at, mask, ACC)
    second = load_value(p + at + slot, mask, ACC) if FORM == "road_4" else first
    return first, second


@triton.jit
def tables_at(q, at, slot: tl.constexpr, angles, large, mask, FORM: tl.constexpr, ACC: tl.constexpr):
    """(r1, r2) from the angles that load_angles found at `at`."""
    alpha = load_value(q + at, mask, ACC)
    sin, cos = sin_cos(angles[0], large)
    if FORM == "road_4":
        sin, _ = sin_cos(angles[1], large)
        r1, r2 = alpha * cos, load_value(q + at + slot, mask, ACC) * sin
    else:
        r1, r2 = alpha * cos, alpha * sin
    return r1, r2


@triton.jit
def first_parameter(pair, GROUP: tl.constexpr, FORM: tl.constexpr, SHARED: tl.constexpr):
    """Where the parameters of each pair's first feature are, in road_4 those that make r1; the second's: + GROUP // 2.

    SHARED: those of the pair. road_4 is packed [D/g, 2, g], the other forms with own coefficients [D/g, g].
    """
    if SHARED:
        at = pair
    else:
        STEP: tl.constexpr = 2 * GROUP if FORM == "road_4" else GROUP
        at = pair // (GROUP // 2) * STEP + pair % (GROUP // 2)
    return at


@triton.jit
def load_coefficients(
    p,
    q,
    pair,
    mask,
    GROUP: tl.constexpr,
    FORM: tl.constexpr,
    SHARED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ACC: tl.constexpr,
):
    """(r1_i, r1_j, r2_i, r2_j) that rotate_pair takes for R, or for R^T, from the parameters of one adapter.

    mask: None to load everything. SHARED: both features of a pair have the same.
    """
    HALF: tl.constexpr = GROUP // 2
    at = first_parameter(pair, GROUP, FORM, SHARED)
    if FORM == "table":
        r1i, r2i = load_value(p + at, mask, ACC), load_value(q + at, mask, ACC)
        r1j, r2j = r1i, r2i
        if not SHARED:
            r1j, r2j = load_value(p + at + HALF, mask, ACC), load_value(q + at + HALF, mask, ACC)
    elif SHARED:
        angles = load_angles(p, at, GROUP, mask, FORM, ACC)
        r1i, r2i = tables_at(q, at, GROUP, angles, not_all(is_small(angles[0])), mask, FORM, ACC)
        r1j, r2j = r1i, r2i
    else:
        of_i = load_angles(p, at, GROUP, mask, FORM, ACC)
        of_j = load_angles(p, at + HALF, GROUP, mask, FORM, ACC)
        large = not_all(is_small(of_i[0]) & is_small(of_i[1]) & is_small(of_j[0]) & is_small(of_j[1]))
        r1i, r2i = tables_at(q, at, GROUP, of_i, large, mask, FORM, ACC)
        r1j, r2j = tables_at(q, at + HALF, GROUP, of_j, large, mask, FORM, ACC)
    coefficients = r1i, r1j, r2i, r2j
    return transposed(coefficients) if TRANSPOSED else coefficients


@triton.jit
def transposed(coefficients):
    """Those of R^T: the off-diagonal entries exchanged."""
    r1i, r1j, r2i, r2j = coefficients
    return r1i, r1j, -r2j, -r2i
