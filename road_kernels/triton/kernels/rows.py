"""Where rows lie, and which pairs a tile has."""

import triton
import triton.language as tl


@triton.jit
def divide(n, factor, shift):
    """n // d for 0 <= n < 2^60, from layout.divisor(d): a division of 64 bits takes some hundred instructions."""
    return tl.umulhi(n << 3, factor) >> shift


@triton.jit
def row_offsets(row, rows, SPLIT: tl.constexpr, ALIGN: tl.constexpr):
    """Where rows, a tile or one, start in elements. rows: Rows.integers(ALIGN); SPLIT: with two strides, otherwise one.

    Strides come in units of ALIGN elements, so that the compiler knows what it may load at once. The hint is for it not
    to find more, in even rows: lanes would then have other elements of those, and exchange them through shared memory.
    """
    offset = row * rows[0]
    if SPLIT:
        offset += divide(row, rows[2], rows[3]) * rows[1]
    if row.type.is_block():
        offset = tl.multiple_of(offset, [1, 1, 1])
    return offset * ALIGN


@triton.jit
def runs_of_program(ROW_RUNS: tl.constexpr, RUNS: tl.constexpr):
    """(row, run in the row), [1, RUNS, 1], of a program that takes the RUNS runs after those of the program before."""
    start = tl.program_id(0).to(tl.int64) * RUNS
    first = start // ROW_RUNS
    run = (start - first * ROW_RUNS).to(tl.int32) + tl.arange(0, RUNS)[None, :, None]
    return first + run // ROW_RUNS, run % ROW_RUNS


@triton.jit
def pairs_of(run, RUN: tl.constexpr):
    """The pairs [1, RUNS, RUN] of runs [1, RUNS, 1]. A run is RUN adjacent pairs, which a lane moves at once."""
    pair = run * RUN
    if RUN > 1:  # Triton's compiler aborts on tiles of one element
        pair += tl.arange(0, RUN)[None, None, :]
    return pair
