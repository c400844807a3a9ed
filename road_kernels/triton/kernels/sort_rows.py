"""The rows of a mixed batch sorted by adapter: a stable sort of few ids, in one launch.

By counting: the position of an id is the number of smaller ids, plus that of equal ids before it. n ids take n * n
comparisons: for MOST_IDS a few microseconds of a whole GPU, where a sort takes half a dozen launches. Programs exchange
nothing, and nothing depends on their order.
"""

import triton
import triton.language as tl

from ..launch import kernel

MOST_IDS = 4096  # beyond, ops.py calls torch's sort
PLACES, TILE = 8, 512  # ids placed by a program of 4 warps, and those it compares with at a time: 32 a lane


@triton.jit
def _number(id, position, adapters, MOST: tl.constexpr):
    """An id and its position as one number, for one comparison. Ids outside the bank are clamped to -2 and A, so that
    the number does not overflow.
    """
    return tl.minimum(tl.maximum(id, -2), adapters) * MOST + position


@kernel
def sort_rows_kernel(
    ids,
    sorted_ids,
    positions,
    starts,
    count: tl.int64,
    adapters: tl.int64,
    id_programs: tl.int64,
    MOST: tl.constexpr,
    PLACES: tl.constexpr,
    TILE: tl.constexpr,
):
    """The first id_programs programs write sorted_ids and positions (where each was), the others starts [A + 1]: how
    many ids are smaller than 0, 1, .. A.

    Ids outside the bank are written as they are, for check_ids to find.
    """
    place = tl.program_id(0).to(tl.int64) * PLACES + tl.arange(0, PLACES)[:, None]
    start_of = place - id_programs * PLACES
    is_id = place < count
    id = tl.load(ids + place, mask=is_id, other=0).to(tl.int64)
    own = tl.where(start_of < 0, _number(id, place, adapters, MOST), start_of * MOST)
    last = (adapters + 1) * MOST  # behind all
    smaller = tl.zeros([PLACES, TILE], tl.int32)
    for start in range(0, count, TILE):
        other = start + tl.arange(0, TILE).to(tl.int64)[None, :]
        inside = other < count
        other_id = tl.load(ids + other, mask=inside, other=0).to(tl.int64)
        number = tl.where(inside, _number(other_id, other, adapters, MOST), last)
        smaller -= ((number - own) >> 63).to(tl.int32)  # by sign: 3 instructions, compared and counted 5
    rank = tl.sum(smaller, 1).to(tl.int64)[:, None]
    tl.store(sorted_ids + rank, id, mask=is_id)
    tl.store(positions + rank, place, mask=is_id)
    tl.store(starts + start_of, rank, mask=(start_of >= 0) & (start_of <= adapters))
