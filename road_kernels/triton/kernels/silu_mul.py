"""silu(gate) * up for [gate, up] = R x, and the gradient of x, one adapter or one per row.

Programs are short, as in rotate.py: a lane takes a run of pairs of gate and that of up behind it, and ends.
"""

import triton
import triton.language as tl

from ..launch import kernel
from .coefficients import load_coefficients, transposed
from .ids import check_ids, load_adapters
from .pairs import load_pairs, pack, rotate_used, store_pairs, unpack
from .rows import pairs_of, row_offsets, runs_of_program


@triton.jit
def _sigmoid(g):
    """(sigmoid(g), 1 - sigmoid(g)), neither by a subtraction. The exp does not overflow."""
    e = tl.exp(-tl.abs(g))
    upper = 1.0 / (1.0 + e)
    lower = e * upper
    return tl.where(g >= 0, upper, lower), tl.where(g >= 0, lower, upper)


@triton.jit
def silu_mul(gate, up):
    sigmoid, _ = _sigmoid(gate)
    return gate * sigmoid * up


@triton.jit
def silu_mul_gradient(gz, gate, up):
    """The gradients of gate and up. No sum of products is left to the compiler: the same bits from every kernel."""
    sigmoid, rest = _sigmoid(gate)
    return gz * up * (sigmoid * tl.fma(gate, rest, 1.0)), gz * (gate * sigmoid)


@triton.jit
def silu_mul_backward(gz, gate, up, of_gate, of_up, used, BATCHED: tl.constexpr):
    """The gradients (of x's gate, of x's up), of pairs (i, j), from those of z; and those of R x, (gate, up) likewise.

    gate, up: pairs of R x. of_gate, of_up: the coefficients that made them.
    """
    gate_i, up_i = silu_mul_gradient(gz[0], gate[0], up[0])
    gate_j, up_j = silu_mul_gradient(gz[1], gate[1], up[1])
    x_gate = rotate_used(gate_i, gate_j, transposed(of_gate), used, BATCHED)
    x_up = rotate_used(up_i, up_j, transposed(of_up), used, BATCHED)
    return x_gate, x_up, (gate_i, gate_j), (up_i, up_j)


@kernel
def silu_mul_kernel(
    x,
    r1,
    r2,
    ids,
    gz,
    out,
    rows: tl.int64,
    adapters: tl.int64,
    id_factor: tl.int64,  # rows of an id, as a divisor
    id_shift: tl.int64,
    r1_step: tl.int64,  # from one adapter's tables to the next, in units of P_ALIGN
    r2_step: tl.int64,
    x_stride: tl.int64,
    x_jump: tl.int64,
    x_factor: tl.int64,
    x_shift: tl.int64,
    gz_stride: tl.int64,
    gz_jump: tl.int64,
    gz_factor: tl.int64,
    gz_shift: tl.int64,
    out_stride: tl.int64,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    SHARED: tl.constexpr,
    BATCHED: tl.constexpr,
    GRADIENT: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    P_ALIGN: tl.constexpr,
    SPLIT: tl.constexpr,
    RUNS: tl.constexpr,
    RUN: tl.constexpr,
):
    """WIDTH: of gate, of up and of z. Writes z or, if GRADIENT, that of x from gz, z's; otherwise gz is not read."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    HALF: tl.constexpr = GROUP // 2
    row, run = runs_of_program(WIDTH // 2 // RUN, RUNS)
    pair = pairs_of(run, RUN)
    up_pair = pair + WIDTH // 2
    inside = row < rows
    adapter, allowed = load_adapters(ids, row, rows, adapters, (id_factor, id_shift), BATCHED)
    used = adapter >= 0 if BATCHED else None  # None: all tables, also where a run is behind the last row
    r1, r2 = r1 + adapter * r1_step * P_ALIGN, r2 + adapter * r2_step * P_ALIGN

    at = row_offsets(row, (x_stride, x_jump, x_factor, x_shift), SPLIT, ALIGN)
    raw_gate = load_pairs(x, at, pair, inside, HALF, LAYOUT)
    raw_up = load_pairs(x, at, up_pair, inside, HALF, LAYOUT)
    raw_gz = raw_up  # unread
    if GRADIENT:
        gz_at = row_offsets(row, (gz_stride, gz_jump, gz_factor, gz_shift), SPLIT, ALIGN)
        raw_gz = load_pairs(gz, gz_at, pair, inside, HALF, LAYOUT)
    of_gate = load_coefficients(r1, r2, pair, used, GROUP, "table", SHARED, False, ACC)
    of_up = load_coefficients(r1, r2, up_pair, used, GROUP, "table", SHARED, False, ACC)

    gate_i, gate_j = unpack(raw_gate[0], raw_gate[1], DTYPE, ACC, LAYOUT)
    up_i, up_j = unpack(raw_up[0], raw_up[1], DTYPE, ACC, LAYOUT)
    gate = rotate_used(gate_i, gate_j, of_gate, used, BATCHED)
    up = rotate_used(up_i, up_j, of_up, used, BATCHED)
    out_at = row_offsets(row, (out_stride,), False, ALIGN)
    if GRADIENT:
        pair_gz = unpack(raw_gz[0], raw_gz[1], DTYPE, ACC, LAYOUT)
        x_gate, x_up, _, _ = silu_mul_backward(pair_gz, gate, up, of_gate, of_up, used, BATCHED)
        raw_i, raw_j = pack(x_gate[0], x_gate[1], DTYPE, LAYOUT)
        store_pairs(out, out_at, pair, inside, raw_i, raw_j, HALF, LAYOUT)
        raw_i, raw_j = pack(x_up[0], x_up[1], DTYPE, LAYOUT)
        store_pairs(out, out_at, up_pair, inside, raw_i, raw_j, HALF, LAYOUT)
    else:
        raw_i, raw_j = pack(silu_mul(gate[0], up[0]), silu_mul(gate[1], up[1]), DTYPE, LAYOUT)
        store_pairs(out, out_at, pair, inside, raw_i, raw_j, HALF, LAYOUT)
    if BATCHED:
        check_ids(allowed)
