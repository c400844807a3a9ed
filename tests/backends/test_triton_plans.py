"""Configurations of the Triton kernels, from road_kernels/triton/plan.py, for an H100: every row and pair once."""

import itertools
import math

import pytest
from support.triton_interpreter import INTERPRETED

pytest.importorskip("triton", reason="triton is not installed")
if INTERPRETED:
    pytest.skip("says nothing about the interpreter", allow_module_level=True)

from road_kernels.triton import layout, plan

pytestmark = pytest.mark.cpu_only


def runs_of(dim, group_size, itemsize, most_bytes=16, alignment=None):
    return plan.make_runs(dim, group_size, itemsize, alignment or 16 // itemsize, most_bytes)


DIMS = [(2, 2), (6, 2), (64, 64), (74, 74), (74, 2), (1536, 64), (4096, 64), (5120, 40), (11008, 11008), (14336, 2)]


@pytest.mark.parametrize("form", ["road_1", "road_4", "table"])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_forward_plans_cover_every_row_and_pair_once(form, itemsize):
    device = plan.Device(132, 32)
    for dim, group_size in DIMS:
        for alignment in (1, 2, 16 // itemsize):
            for rows in (1, 2, 8, 33, 4096, 2**31 + 7):
                few = plan.is_few(rows, dim, itemsize, form, device)
                runs = runs_of(dim, group_size, itemsize, 8 if few else 16, alignment)
                lane_rows = plan.forward_rows(form, False, False)
                tile = plan.plan_forward(rows, dim, itemsize, runs, lane_rows, few, device)
                row_runs = dim // 2 // runs.run
                assert row_runs * runs.run == dim // 2  # a run ends within its row
                assert runs.words or (group_size // 2) % runs.run == 0  # and within half a group
                assert alignment % (runs.run * (2 if runs.words else 1)) == 0  # and is aligned
                groups = -(-rows // tile.rows)
                assert tile.programs * tile.runs >= groups * row_runs > (tile.programs - 1) * tile.runs
                assert tile.runs >= 32 and tile.runs & (tile.runs - 1) == 0
                assert tile.programs < 2**31 or rows * dim * itemsize > 2**38  # bytes, more than a GPU has
                lane_runs = tile.runs // (32 * tile.num_warps)
                assert lane_runs * tile.rows <= 8 and lane_runs * runs.run <= max(1, 16 // itemsize)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_backward_plans_cover_every_row_and_pair_once(shared, itemsize):
    for lanes in (32, 64):
        device = plan.Device(132, lanes)
        for dim, group_size in DIMS:
            for alignment in (1, 16 // itemsize):
                runs = runs_of(dim, group_size, itemsize, 16, alignment)
                for rows in (1, 2, 8, 33, 4096, 2**31 + 7):
                    tile = plan.plan_backward(rows, dim, itemsize, runs, shared, device)
                    assert tile.column_blocks * tile.runs * runs.run >= dim // 2
                    assert (tile.column_blocks - 1) * tile.runs * runs.run < dim // 2
                    assert tile.cuts << tile.cut_shift >= rows > (tile.cuts - 1) << tile.cut_shift
                    assert (1 << tile.cut_shift) % (tile.rows * tile.at_once) == 0
                    assert 1 << tile.cut_shift <= plan.BACKWARD_ROWS
                    assert tile.rows >= 2 and tile.runs >= 2  # no tile of one element
                    assert tile.num_warps in (1, 2, 4, 8)
                    lane_pairs = tile.rows * tile.runs * runs.run / (tile.num_warps * lanes)
                    assert lane_pairs <= max(1, 16 // itemsize) or tile.num_warps == 1
                    assert tile.slots(None) == tile.cuts and tile.slots(3) == tile.cuts + 4


@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_norm_plans_have_every_pair_and_leave_no_lane_without(itemsize):
    """Lanes without an element would repeat those of others, and in place load what these have stored."""
    for lanes in (32, 64):
        for dim, group_size in [*DIMS, (131072, 64)]:
            for alignment, gradient in itertools.product((1, 2, 16 // itemsize), (False, True)):
                runs = runs_of(dim, group_size, itemsize, 16, alignment)
                count = dim // 2
                if gradient:
                    count, run = dim, math.gcd(alignment, dim)
                    runs = plan.Runs(False, run, run)
                tile = plan.plan_norm(count, itemsize, runs, plan.Device(132, lanes))
                looped = tile.runs * runs.run < count
                assert not looped or (tile.rows == 1 and count > plan.NORM_BYTES // max(itemsize, 4))
                assert tile.runs >= 2 and tile.rows & (tile.rows - 1) == 0  # no tile of one element
                assert 1 <= tile.num_warps <= plan.MOST_NORM_WARPS
                assert tile.rows * tile.runs >= lanes * tile.num_warps
                lane_pairs = tile.rows * tile.runs * runs.run / (lanes * tile.num_warps)
                assert lane_pairs <= 16 or tile.num_warps == plan.MOST_NORM_WARPS


@pytest.mark.parametrize("head_dim", [4, 6, 48, 74, 80, 96, 256, 576, 8192])
def test_crossed_rope_plans_have_whole_heads(head_dim):
    for lanes in (32, 64):
        tile = plan.plan_crossed_rope(head_dim, plan.Device(132, lanes))
        assert head_dim // 2 <= tile.places < head_dim
        assert tile.heads * tile.places >= plan.CROSSED_PLACES * lanes * tile.num_warps >= 1
        assert tile.heads * tile.places >= 256


def test_the_plans_of_common_layers():
    """bfloat16 on 132 multiprocessors."""
    device = plan.Device(132, 32)

    def forward(rows, dim, form="table", batched=False, group_size=64):
        few = plan.is_few(rows, dim, 2, form, device)
        runs = runs_of(dim, group_size, 2, 8 if few else 16)
        lane_rows = plan.forward_rows(form, form != "road_4", batched)
        return runs.run, *plan.plan_forward(rows, dim, 2, runs, lane_rows, few, device)

    # Pairs of a run, rows of a lane, runs of a program, warps, programs.
    assert forward(16384, 4096) == (8, 1, 128, 4, 32768)
    assert forward(16384, 4096, "road_1") == (8, 2, 128, 4, 16384)
    assert forward(16384, 4096, "road_4") == (8, 4, 128, 4, 8192)
    assert forward(4096, 11008) == (8, 1, 128, 4, 22016)  # 43 programs of every 8 rows: no lane is idle
    assert forward(16384, 4096, group_size=2) == (4, 1, 256, 4, 32768)
    assert forward(1024, 4096) == (4, 1, 128, 4, 4096)
    assert forward(16, 4096, "road_1", batched=True) == (4, 1, 32, 1, 256)
    assert forward(1, 4096) == (4, 1, 32, 1, 16)

    def backward(rows, dim, shared=True, group_size=64):
        return tuple(plan.plan_backward(rows, dim, 2, runs_of(dim, group_size, 2), shared, device))

    # Rows side by side, tiles at once, runs of a tile, warps, tiles of columns, shift of a cut, cuts.
    assert backward(16384, 4096) == (4, 2, 64, 8, 4, 6, 256)
    assert backward(16384, 4096, shared=False) == (4, 1, 64, 8, 4, 6, 256)
    assert backward(16384, 4096, group_size=2) == (4, 1, 128, 8, 4, 6, 256)
    assert backward(512, 4096) == (4, 2, 64, 8, 4, 3, 64)
    assert backward(16384, 1536) == (8, 2, 32, 8, 3, 6, 256)

    def norm(dim, itemsize=2):
        return tuple(plan.plan_norm(dim // 2, itemsize, runs_of(dim, 64, itemsize), device))

    # Rows, runs of each, warps.
    assert norm(4096) == (1, 256, 8) and norm(8192) == (1, 512, 16) and norm(16384) == (1, 1024, 16)
    assert norm(64) == (32, 4, 4) and norm(2048) == (1, 128, 4) and norm(65536) == (1, 512, 16)
    assert norm(4096, 4) == (1, 512, 16)
    runs = plan.Runs(False, 8, 8)  # its gradient
    assert [tuple(plan.plan_norm(dim, 2, runs, device)) for dim in (2048, 4096, 8192, 16384)] == [
        (1, 256, 8), (1, 512, 16), (1, 1024, 16), (1, 512, 16),
    ]  # fmt: skip

    assert plan.plan_reduce(256, 1, 4096) == (128, 16, 8)
    assert plan.plan_reduce(256, 64, 4096) == plan.plan_reduce(256, 1000, 4096) == (2, 512, 4)
    assert plan.plan_reduce(256, 16, 4096) == (16, 64, 4)
    assert plan.plan_reduce(0, 1, 2) == (2, 2, 1)
    assert plan.merge_tile(4096, 4096, 2) == (8, 256)
    assert plan.merge_tile(4096, 10, 2) == (128, 16)
    assert plan.merge_tile(2, 1, 4) == (2, 2)


def test_chunks_of_ids():
    for ids in (1, 4097, 16384, 10**6, 2**31 + 7):
        for adapters in (0, 1, 64, 1000, 10**5, 10**7):
            chunk, count = plan.plan_chunks(ids, adapters)
            assert chunk * count >= ids > chunk * (count - 1)
            assert chunk % plan.STEP == 0 and chunk % min(chunk, plan.COMPARED) == 0
            assert count == 1 or count * (adapters + 1) <= plan.MOST_COUNTERS


def test_a_divisor_divides():
    for d in (1, 2, 3, 5, 7, 64, 127, 4096, 2**31 - 1, 2**31 + 1, 2**40 - 1):
        factor, shift = layout.divisor(d)
        assert 0 < factor < 2**63
        for n in (0, 1, d - 1, d, d + 1, 7 * d - 1, 7 * d, 2**31, 2**59 + 12345, 2**60 - 1, (2**60 - 1) // d * d - 1):
            assert (n << 3) * factor >> 64 >> shift == n // d, (n, d)
