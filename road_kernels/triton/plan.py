"""The rules that choose a configuration. No autotuning: the first calls of a server must not be spent on measuring.

Programs are short and many: a lane loads what it has at once, and the program ends. In the order of their numbers they
sweep memory in one narrow front. Programs that walk many rows reach 88 to 94 % of the fastest copy, these 98 and more.

Figures are of an H200 and bfloat16 rows of 4096. "Measured" ones are of CUDA kernels of the same shape (csrc/cuda);
"derived" ones follow from those, or from counting bytes and registers. On an H100 Triton's own reach 97 to 99 % of the
fastest copy forward and 86 to 93 % backward (benchmarks/results).
"""

import math
from typing import NamedTuple


def power_of_two(n: int) -> int:
    """The smallest that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


class Device(NamedTuple):
    processors: int  # multiprocessors
    lanes: int  # of a warp
    few: float = 1.0  # times FEW_BYTES


class Runs(NamedTuple):
    """How the pairs of a row are moved: in runs of adjacent ones, a run by one lane, one access for each feature."""

    words: bool  # the two features of a pair are one word, loaded at once
    align: int  # elements that every start of a row is a multiple of
    run: int  # pairs of a run, 16 bytes of each feature or of words where alignment, groups and D allow it

    @property
    def layout(self) -> str:
        return "words" if self.words else "halves"

    def of_a_lane(self, itemsize: int) -> int:
        """Runs that make as many pairs as 16 bytes hold of one feature, at most 4: more take too many registers."""
        return min(4, 16 // itemsize // self.run)


def make_runs(dim: int, group_size: int, itemsize: int, alignment: int, most_bytes: int = 16) -> Runs:
    """alignment: elements that every start of a row is a multiple of. most_bytes: of a run."""
    if group_size == 2 and alignment > 1 and itemsize < 8:  # a word of two float64 would have 128 bits
        most = max(2, most_bytes // itemsize // 2)  # two words at least, for two of their parameters at once
        return Runs(True, alignment, max(1, math.gcd(most, alignment // 2, dim // 2)))
    return Runs(False, alignment, max(1, math.gcd(most_bytes // itemsize, alignment, group_size // 2)))


# The forward.

# 4 warps were 0.5 to 1.5 % faster than 8 (measured).
WARPS = 4
# Rows of a lane. One row reaches 99.8 % of the fastest copy, two 97.5 to 98.9, four 97.5 to 98.7, eight 92 to 94. From
# angles, which take some 370 instructions in road_1, 740 in road_2 and 1080 in road_4 where a row takes 80, two reach
# 98.1 and four 97.9 (measured).
ROWS = {"road_1": 2, "road_2": 4, "road_4": 4}
# Four rows and the coefficients of both features: ptxas would rather spill than use more than 128 registers. Three
# programs fit with 168, which have 48 KB in flight where 15 to 19 are needed (derived).
OWN_ANGLES_REGISTERS = 168
# Up to so many bytes of x, a lane moves 8 bytes of a feature instead of 16, in one row: a decode step is bound by
# latency. 1 to 1024 rows with tables were 4 to 9 % faster so (measured).
FEW_BYTES, FEW_BYTES_ANGLES = 8 << 20, 2 << 20
# And programs have one warp where with more there would not be so many for each multiprocessor (derived).
FEW_PROGRAMS = 2


class Forward(NamedTuple):
    rows: int  # of a lane
    runs: int  # of a program
    num_warps: int
    programs: int


def is_few(rows: int, dim: int, itemsize: int, form: str, device: Device) -> bool:
    """Whether a forward is bound by latency."""
    return rows * dim * itemsize <= device.few * (FEW_BYTES if form == "table" else FEW_BYTES_ANGLES)


def forward_rows(form: str, shared: bool, batched: bool) -> int:
    """Rows of a lane where there are many. Of several, a mixed batch has to compare the ids: not worth it with tables,
    though own ones are four times the bytes of a row.
    """
    return ROWS[form] if form != "table" else 1 if shared or batched else 2


def plan_forward(rows: int, dim: int, itemsize: int, runs: Runs, lane_rows: int, few: bool, device: Device) -> Forward:
    """rows > 0. lane_rows: forward_rows()."""
    lane_runs = 1 if few else runs.of_a_lane(itemsize)
    lane_rows = 1 if few else min(lane_rows, 8 // lane_runs)
    count = -(-rows // lane_rows) * (dim // 2 // runs.run)
    warp_runs = device.lanes * lane_runs
    num_warps = 1 if few and count < FEW_PROGRAMS * device.processors * WARPS * warp_runs else WARPS
    return Forward(lane_rows, warp_runs * num_warps, num_warps, -(-count // (warp_runs * num_warps)))


# The backward.

# Warps of a program, lanes side by side in a row, and rows of a program. 64 lanes wide, four rows side by side, two
# such tiles at once and 64 rows a program reach 99.4 % of the fastest copy; 128 wide 97.7, 256 wide 96.3; 16 rows a
# program 94 to 97, four 86; registers for more than two programs lose 4 to 10 % (measured).
BACKWARD_WARPS, BACKWARD_LANES, BACKWARD_ROWS, BACKWARD_REGISTERS = 8, 64, 64, 128
# Slots that a round of the search for an adapter compares: one a lane, so that a thousand adapters take two rounds.
SEARCH = 256


class Backward(NamedTuple):
    """How the rows, in a mixed batch sorted by adapter, are partitioned among programs.

    Rows are cut at multiples of 1 << cut_shift, and where the adapter changes. So a program has the rows of one cut
    that one adapter uses. Adapters are counted from -1, as 0, 1, ..: program, and slot of the scratch, number
    s = cut + adapter count. From one program to the next in the order of rows, the cut or the adapter grows and neither
    falls, so numbers are distinct, below cuts + adapters + 1; those in between have no rows.
    """

    rows: int  # side by side in a tile
    at_once: int  # tiles in flight
    runs: int  # of a tile
    num_warps: int
    column_blocks: int
    cut_shift: int
    cuts: int

    def slots(self, adapters: int | None) -> int:
        """adapters: of a mixed batch, or None."""
        return self.cuts if adapters is None else self.cuts + adapters + 1


def plan_backward(rows: int, dim: int, itemsize: int, runs: Runs, shared: bool, device: Device) -> Backward:
    """rows > 0."""
    lane_runs, row_runs = runs.of_a_lane(itemsize), dim // 2 // runs.run
    lanes = BACKWARD_WARPS * 32
    # As wide as BACKWARD_LANES while that leaves at most an eighth of the lanes idle at the end of a row. Two runs and
    # two rows at least: Triton's compiler aborts on tiles of one element.
    width = BACKWARD_LANES * lane_runs
    while width > 2 and -row_runs % width * 8 > row_runs + -row_runs % width:
        width //= 2
    # Own coefficients, and runs shorter than 16 bytes, leave registers for one tile at once.
    at_once = 2 if shared and lane_runs == 1 else 1
    beside = max(2, min(lanes * lane_runs // width, BACKWARD_ROWS // at_once))
    num_warps = max(1, min(lanes, beside * width // lane_runs) // device.lanes)
    # BACKWARD_ROWS a program, or fewer where those would leave multiprocessors without a program or two.
    column_blocks = -(-row_runs // width)
    share = rows * column_blocks // (4 * device.processors)
    program_rows = beside * at_once
    while program_rows < min(BACKWARD_ROWS, share):
        program_rows *= 2
    cuts = -(-rows // program_rows)
    return Backward(beside, at_once, width, num_warps, column_blocks, program_rows.bit_length() - 1, cuts)


class Reduce(NamedTuple):
    """The tile that adds the partial sums of an adapter."""

    slices: int
    pairs: int
    num_warps: int


def plan_reduce(cuts: int, adapters: int, dim: int) -> Reduce:
    """By the number of partial sums that adapters have, if their shares are equal. Three, as each is compiled.

    Many of one adapter: the time is that of successive loads, so 256 take two; 128 programs that add 64 at a time took
    5 us for 256 to 1024 sums of 4096 floats (measured). A few of many adapters: the number of programs decides, so
    those are wide; one tile for both took 172 us for a thousand adapters (measured with Triton's former kernel).
    """
    each = cuts / max(adapters, 1)
    slices, pairs, num_warps = (128, 16, 8) if each > 32 else (16, 64, 4) if each > 4 else (2, 512, 4)
    pairs = max(2, min(pairs, power_of_two(dim // 2)))
    return Reduce(slices, pairs, max(1, min(num_warps, slices * pairs // 128)))


# The fused ops. silu_mul and RoPE take the plan of the forward for half a row, whose pairs come with those of the other
# half. So does the backward of silu_mul, with at most so many pairs of a lane: it has sums and coefficients of both.
TWO_PAIRS_OF_A_LANE = 4

# The norm and its gradient. Warps of a program of several rows, warps at most, and bytes that the first features of a
# row's pairs (of the gradient: all features) may take in registers as float32. Longer rows are read twice, in tiles of
# half as much: each keeps sums beside (derived).
NORM_WARPS, MOST_NORM_WARPS, NORM_BYTES = 4, 16, 32 << 10


class Norm(NamedTuple):
    rows: int  # of a program
    runs: int  # of each row at a time: all, unless there are too many
    num_warps: int


def plan_norm(count: int, itemsize: int, runs: Runs, device: Device) -> Norm:
    """count: pairs of a row (of the gradient: features). Nothing depends on the number of rows: a row's sum must not
    depend on the others.
    """
    lane_runs, most = runs.of_a_lane(itemsize), NORM_BYTES // max(itemsize, 4) // runs.run
    width = max(2, power_of_two(count // runs.run))
    rows = max(1, NORM_WARPS * device.lanes * lane_runs // width)
    if width > most:
        rows, width = 1, max(2, most // 2)
    return Norm(rows, width, max(1, min(MOST_NORM_WARPS, rows * width // (device.lanes * lane_runs))))


# RoPE where its pairs and those of the rotation cross. Lanes at least, and places for a lane to take.
CROSSED_LANES, CROSSED_PLACES, MOST_CROSSED_WARPS = 128, 2, 16


class CrossedRope(NamedTuple):
    heads: int  # of a program
    places: int  # of a head
    num_warps: int


def plan_crossed_rope(head_dim: int, device: Device) -> CrossedRope:
    places = power_of_two(head_dim // 2)
    heads = max(1, CROSSED_LANES * CROSSED_PLACES // places)
    num_warps = heads * places // (CROSSED_PLACES * device.lanes)
    return CrossedRope(heads, places, max(1, min(MOST_CROSSED_WARPS, num_warps)))


# The rest.


def merge_tile(dim: int, columns: int, itemsize: int, lanes: int = 32) -> tuple[int, int]:
    """(pairs of rows, columns) of a program of 4 warps on a matrix: a warp takes 16 bytes a lane of a row, and two
    pairs of rows; more pairs where rows are shorter. Two of each at least, see plan_backward.
    """
    warp_columns = lanes * 16 // itemsize
    width = max(2, min(power_of_two(columns), warp_columns))
    return max(2, min(8 * warp_columns // width, power_of_two(dim // 2))), width


# Sorting: ids that one launch sorts by comparing each with each; ids that a program of 4 warps places, and those that
# it compares with at a time, 32 a lane.
MOST_COMPARED, PLACES, COMPARED = 4096, 8, 512
# More are counted in chunks of some STEPs, each of what one warp places at a time. There are as many chunks as one
# program adds up in tens of microseconds, at 16 bytes of traffic a counter and some 100 GB/s (derived): COUNTERS, one a
# lane, of several chunks AT_ONCE, as the time is that of successive loads.
STEP, CHUNK_STEPS, MOST_CHUNKS, MOST_COUNTERS = 128, 4, 512, 1 << 19
COUNTERS, AT_ONCE = 512, 16


class Chunks(NamedTuple):
    ids: int  # of a chunk
    count: int


def plan_chunks(ids: int, adapters: int) -> Chunks:
    most, least = max(1, min(MOST_CHUNKS, MOST_COUNTERS // (adapters + 1))), STEP * CHUNK_STEPS
    chunk = -(-ids // (most * least)) * least
    return Chunks(chunk, -(-ids // chunk))
