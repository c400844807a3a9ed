"""Z = R W for a matrix whose rows are the features. Each element is read once and written once."""

import triton.language as tl

from ..launch import kernel
from .coefficients import load_coefficients
from .pairs import first_features, narrow, rotate_pair, widen


@kernel
def merge_kernel(
    w,
    z,
    r1,
    r2,
    vectors: tl.int64,
    w_row: tl.int64,
    z_row: tl.int64,
    column_blocks: tl.int64,
    DIM: tl.constexpr,
    GROUP: tl.constexpr,
    SHARED: tl.constexpr,
    ALIGN: tl.constexpr,
    PAIRS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program takes PAIRS pairs of rows by COLUMNS columns; the elements of a row are adjacent.

    A row has column_blocks such programs, vectors * ALIGN of them, and the strides of the rows are multiples of ALIGN.
    """
    DTYPE: tl.constexpr = w.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    program = tl.program_id(0)  # whose other numbers are limited to 65535
    block = program // column_blocks.to(tl.int32)
    pair = block * PAIRS + tl.arange(0, PAIRS)[:, None]
    column = (program - block * column_blocks) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = pair < DIM // 2
    r1i, r1j, r2i, r2j = load_coefficients(r1, r2, pair, inside, GROUP, "table", SHARED, False, ACC)
    mask = inside & (column < vectors * ALIGN)
    i = first_features(pair, GROUP // 2).to(tl.int64)
    j = i + GROUP // 2
    hi = widen(tl.load(w + tl.multiple_of(i * w_row, [1, ALIGN]) + column, mask=mask, other=0), ACC)
    hj = widen(tl.load(w + tl.multiple_of(j * w_row, [1, ALIGN]) + column, mask=mask, other=0), ACC)
    zi, zj = rotate_pair(hi, hj, r1i, r1j, r2i, r2j)
    tl.store(z + tl.multiple_of(i * z_row, [1, ALIGN]) + column, narrow(zi, DTYPE), mask=mask)
    tl.store(z + tl.multiple_of(j * z_row, [1, ALIGN]) + column, narrow(zj, DTYPE), mask=mask)
