"""The rule that chooses a configuration. No autotuning: the first calls of a server must not be spent on measuring.

A lane moves 16 bytes of the i and 16 of the j of its pairs (or 32 of both, adjacent), so a warp owns 16 / itemsize
pairs a lane. A program is

    4 warps    by default. PAIRS is the widest of 4, 2 and 1 warps' pairs that leaves at most an eighth of the lanes
               idle at the end of a row; with a narrower tile the rest of the 4 warps takes further ROWS, so that
               coefficients are loaded once for all of them.
    1 warp     where 4 would leave multiprocessors without a program: a decode step has few rows, and takes as long as
               its longest program.
    1 row      in a mixed batch, where every row may have its own adapter: PAIRS, and as many warps as they fill.

There are enough programs to keep `warps` warps on every multiprocessor, and each walks consecutive rows: coefficients
and sums stay in registers. Chosen by counting the bytes that loads have in flight on a multiprocessor, not measured on
a GPU. bfloat16 rows of 4096, compute capability 9.0, one adapter: 32 to 56 KB. A mixed batch: 20 KB and more, but
forward from angles 16 in road_2 and 12 in road_4. At 4.8 TB/s and 0.8 us, each of 132 multiprocessors needs 15 KB where
half of the traffic is read, and 19 where two thirds are.
"""

from typing import NamedTuple

FORWARD_WARPS = 64  # a full multiprocessor: 32 bytes a lane in flight
# Computing coefficients from angles takes a program some 370 instructions in road_1, 740 in road_2 and 1080 in road_4,
# and up to 158 registers a lane. Where few programs fit on a multiprocessor for that reason, there are no more of them,
# so that each walks many rows; two rows of a lane, 64 bytes, compensate for the few. By form and whether batched:
# (warps, rows of a lane).
FORWARD = {
    ("road_2", False): (FORWARD_WARPS, 2),
    ("road_4", False): (16, 2),
    ("road_2", True): (16, 1),
    ("road_4", True): (12, 1),
}
# 128 bytes a lane in flight, 64 in a mixed batch, and a fifth of the partial sums that 64 warps would write. Three
# programs of 128 lanes with BACKWARD_REGISTERS each fit on a multiprocessor: a fourth would run alone after them.
BACKWARD_WARPS, BACKWARD_REGISTERS, BACKWARD_LANE_ROWS = 12, 168, 2


class Plan(NamedTuple):
    rows: int  # ROWS of a tile
    pairs: int  # PAIRS of a tile
    num_warps: int
    column_blocks: int
    row_blocks: int
    block_rows: int  # consecutive rows that a program walks


def power_of_two(n: int) -> int:
    """The smallest that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def forward_warps(form: str, batched: bool) -> tuple[int, int]:
    """(warps wanted on each multiprocessor, rows of a lane) to rotate with parameters of this form."""
    return FORWARD.get((form, batched), (FORWARD_WARPS, 1))


def make_plan(
    rows: int, dim: int, itemsize: int, batched: bool, warps: int, processors: int, lanes: int = 32, lane_rows: int = 1
) -> Plan:
    """rows > 0. `warps`: for each of the `processors` multiprocessors; `lanes`: of a warp; `lane_rows`: rows that a
    lane moves at a time where there are many (and aligned: element by element, two rows take too many registers).
    """
    pairs, warp_pairs = dim // 2, lanes * 16 // itemsize
    widest = power_of_two(pairs)
    few = rows * -(-pairs // (4 * warp_pairs)) < 2 * processors
    most_warps = 1 if few else 4

    def idle(tile):
        return -pairs % tile / (pairs + -pairs % tile)

    fitting = (n * warp_pairs for n in (4, 2, 1) if n <= most_warps and n * warp_pairs <= widest)
    tile = next((t for t in fitting if idle(t) <= 1 / 8), min(warp_pairs, widest))
    if batched:
        tile_rows, num_warps = 1, max(1, tile // warp_pairs)
    else:
        tile_rows, num_warps = max(1, most_warps * warp_pairs // tile) * (1 if few else lane_rows), most_warps
        tile_rows = min(tile_rows, power_of_two(rows))
        num_warps = min(num_warps, max(1, tile_rows * tile // warp_pairs))

    column_blocks = -(-pairs // tile)
    programs = processors * min(32, warps // num_warps)
    row_blocks = max(1, min(-(-programs // column_blocks), -(-rows // tile_rows)))
    block_rows = -(-rows // row_blocks)
    block_rows += -block_rows % tile_rows
    return Plan(tile_rows, tile, num_warps, column_blocks, -(-rows // block_rows), block_rows)


def reduce_tile(row_blocks: int, adapters: int) -> tuple[int, int, int]:
    """(slices, pairs, warps) of a program that adds the sums of an adapter, written by `row_blocks` programs for all.

    Its time is that of its successive loads. Many sums: enough at a time that 200 take four steps. A few of each of
    many adapters: a wide tile, because then the number of programs decides.
    """
    return (64, 16, 8) if row_blocks > 16 * adapters else (8, 128, 4)


def merge_tile(dim: int, columns: int, itemsize: int, lanes: int = 32) -> tuple[int, int]:
    """(pairs of rows, columns) of a program of 4 warps on a matrix: a warp takes 16 bytes a lane of a row, and two
    pairs of rows; more pairs where rows are shorter.
    """
    warp_columns = lanes * 16 // itemsize
    width = min(power_of_two(columns), warp_columns)
    return min(8 * warp_columns // width, power_of_two(dim // 2)), width
