"""From the partial sums of backward.py, added in a fixed order, to the gradients of the parameters."""

import triton
import triton.language as tl

from ..launch import kernel
from .coefficients import first_parameter, is_small, load_coefficients, load_value, not_all, sin_cos
from .ids import spread
from .pairs import narrow


@triton.jit
def _store_gradient(base, at, mask, used, value, WANTED: tl.constexpr):
    """0 for an adapter that no row uses, also where its blocks are singular."""
    if WANTED:
        tl.store(base + at, narrow(tl.where(spread(used, value), value, 0.0), base.dtype.element_ty), mask=mask)


@triton.jit
def _sin_cos_alpha(p, q, at, mask, ACC: tl.constexpr):
    """In float64, from angles in the arithmetic type: the same coefficients that the rows saw."""
    angle = load_value(p + at, mask, ACC)
    sin, cos = sin_cos(angle, not_all(is_small(angle)))
    return sin.to(tl.float64), cos.to(tl.float64), load_value(q + at, mask, ACC).to(tl.float64)


@triton.jit
def _store_gradients(
    p,
    q,
    gp,
    gq,
    at,
    mask,
    used,
    gr1,
    gr2,
    GROUP: tl.constexpr,
    FORM: tl.constexpr,
    NEED_P: tl.constexpr,
    NEED_Q: tl.constexpr,
    ACC: tl.constexpr,
):
    """From the gradients of r1 = alpha cos(theta) and r2 = alpha sin(theta) to those of the parameters at `at`."""
    if FORM == "table":
        _store_gradient(gp, at, mask, used, gr1, NEED_P)
        _store_gradient(gq, at, mask, used, gr2, NEED_Q)
    elif FORM == "road_4":  # r1 and r2 come from two parameters, GROUP apart
        sin, cos, alpha = _sin_cos_alpha(p, q, at, mask, ACC)
        _store_gradient(gp, at, mask, used, -alpha * gr1 * sin, NEED_P)
        _store_gradient(gq, at, mask, used, gr1 * cos, NEED_Q)
        sin, cos, alpha = _sin_cos_alpha(p, q, at + GROUP, mask, ACC)
        _store_gradient(gp, at + GROUP, mask, used, alpha * gr2 * cos, NEED_P)
        _store_gradient(gq, at + GROUP, mask, used, gr2 * sin, NEED_Q)
    else:
        sin, cos, alpha = _sin_cos_alpha(p, q, at, mask, ACC)
        _store_gradient(gp, at, mask, used, alpha * (gr2 * cos - gr1 * sin), NEED_P)
        _store_gradient(gq, at, mask, used, gr1 * cos + gr2 * sin, NEED_Q)


@kernel
def reduce_kernel(
    scratch,
    starts,
    p,
    q,
    gp,
    gq,
    rows: tl.int64,
    cut_shift: tl.int64,
    rows_per_id: tl.int64,
    p_stride: tl.int64,
    q_stride: tl.int64,
    DIM: tl.constexpr,
    GROUP: tl.constexpr,
    FORM: tl.constexpr,
    SHARED: tl.constexpr,
    BATCHED: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    NEED_P: tl.constexpr,
    NEED_Q: tl.constexpr,
    WIDTH: tl.constexpr,
    SLICES: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """A program per adapter and PAIRS of its pairs: adds the adapter's partial sums in float64, SLICES of them at a
    time, and writes the gradients of its parameters, contiguous and WIDTH long per adapter. Zeros without a row.

    FROM_OUTPUT: the sums are of gz z^T. h = R^-1 z is linear, so the inverse is applied once to the sums instead of
    once to every row; in float64, because squares of small scales underflow in float32.
    """
    ACC: tl.constexpr = scratch.dtype.element_ty
    COUNT: tl.constexpr = 2 if SHARED else 4
    TILES: tl.constexpr = (DIM // 2 + PAIRS - 1) // PAIRS
    program = tl.program_id(0)
    pair = program % TILES * PAIRS + tl.arange(0, PAIRS)
    inside = pair < DIM // 2
    adapter = (program // TILES).to(tl.int64)
    begin, end, slot = adapter * 0, rows, adapter * 0
    if BATCHED:
        begin, end = tl.load(starts + adapter) * rows_per_id, tl.load(starts + adapter + 1) * rows_per_id
        slot = adapter + 1
    used = begin < end
    # Its slots, of the cuts that it has rows in: see plan.Backward.
    slot += begin >> cut_shift
    behind = tl.where(used, slot + ((end - 1) >> cut_shift) - (begin >> cut_shift) + 1, slot)

    sums0 = tl.zeros([SLICES, PAIRS], tl.float64)
    sums1, sums2, sums3 = sums0, sums0, sums0
    for first in range(slot, behind, SLICES):
        of_slice = first + tl.arange(0, SLICES)[:, None]
        at = scratch + of_slice * (COUNT * (DIM // 2)) + pair[None, :]
        mask = (of_slice < behind) & inside[None, :]
        sums0 += tl.load(at, mask=mask, other=0).to(tl.float64)
        sums1 += tl.load(at + DIM // 2, mask=mask, other=0).to(tl.float64)
        if not SHARED:
            sums2 += tl.load(at + DIM, mask=mask, other=0).to(tl.float64)
            sums3 += tl.load(at + DIM + DIM // 2, mask=mask, other=0).to(tl.float64)
    m0, m1, m2, m3 = tl.sum(sums0, 0), tl.sum(sums1, 0), tl.sum(sums2, 0), tl.sum(sums3, 0)

    p, q = p + adapter * p_stride, q + adapter * q_stride
    gp, gq = gp + adapter * WIDTH, gq + adapter * WIDTH
    at = first_parameter(pair, GROUP, FORM, SHARED)
    if FORM == "road_1" and FROM_OUTPUT:  # gtheta = cross, galpha = dot / alpha, both of z
        _store_gradient(gp, at, inside, used, m1, NEED_P)
        if NEED_Q:
            _store_gradient(gq, at, inside, used, m0 / load_value(q + at, inside, ACC).to(tl.float64), NEED_Q)
    else:
        if FROM_OUTPUT:
            r1i, r1j, r2i, r2j = load_coefficients(p, q, pair, inside, GROUP, FORM, SHARED, False, ACC)
            r1i, r1j, r2i, r2j = r1i.to(tl.float64), r1j.to(tl.float64), r2i.to(tl.float64), r2j.to(tl.float64)
            det = r1i * r1j + r2i * r2j
            if SHARED:
                m0, m1 = (r1i * m0 - r2i * m1) / det, (r1i * m1 + r2i * m0) / det
            else:
                m0, m1 = (r1j * m0 + r2i * m1) / det, (r1i * m1 - r2j * m0) / det
                m2, m3 = (r1j * m2 + r2i * m3) / det, (r1i * m3 - r2j * m2) / det
        if SHARED:
            _store_gradients(p, q, gp, gq, at, inside, used, m0, m1, GROUP, FORM, NEED_P, NEED_Q, ACC)
        else:
            _store_gradients(p, q, gp, gq, at, inside, used, m0, -m1, GROUP, FORM, NEED_P, NEED_Q, ACC)
            at_j = at + GROUP // 2
            _store_gradients(p, q, gp, gq, at_j, inside, used, m3, m2, GROUP, FORM, NEED_P, NEED_Q, ACC)
