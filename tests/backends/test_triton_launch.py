"""What the Triton backend launches and how often it compiles, planned for an H100, on a driver that records."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.problems import make_params, make_x
from support.triton_interpreter import INTERPRETED

pytest.importorskip("triton", reason="triton is not installed")
if INTERPRETED:
    pytest.skip("Triton's interpreter takes the compiler's place in this process", allow_module_level=True)

from support.triton_driver import recorder  # noqa: F401

from road_kernels.backends import triton as backend
from road_kernels.triton import ops, prepare
from road_kernels.triton.plan import forward_warps, make_plan, merge_tile, reduce_tile

pytestmark = pytest.mark.cpu_only
X, PARAMS = make_x(8, 256, dtype=torch.bfloat16), make_params("road_1", None, 256)


def call(rows, adapters=None, dim=256):
    x = torch.zeros(1, dim, dtype=torch.bfloat16).expand(rows, dim).contiguous()
    p, q = make_params("road_1", adapters, dim)
    ids = None if adapters is None else torch.arange(rows) % adapters
    ops.rotate(x, p, q, ids, "road_1", 64)
    ops.rotate_backward(x, x, p, q, ids, "road_1", 64, False, [True, True, True])


@pytest.mark.slow  # compiles ten kernels
def test_nothing_is_recompiled_for_another_number_of_rows_or_adapters(recorder):  # noqa: F811
    every = ["backward_kernel", "reduce_kernel", "rotate_kernel", "sort_rows_kernel"]
    for rows in (1, 7, 16, 33, 48):  # few rows for 132 multiprocessors
        call(rows, adapters=3)
    assert sorted(recorder.loaded) == every
    for rows in (2000, 2001, 4096, 70000):
        for adapters in (1, 2, 16, 17, 1000):
            call(rows, adapters)
    # Rows of 256 fill one warp at any number of rows; wider ones have a configuration for few rows and one for many.
    # The reduction has one for few sums of an adapter and one for many.
    assert sorted(recorder.loaded) == sorted([*every, "reduce_kernel"])
    recorder.loaded.clear()
    for rows in (8, 9, 8000, 8001, 16384):
        call(rows, adapters=5, dim=2048)
    assert sorted(recorder.loaded) == ["backward_kernel"] * 2 + ["reduce_kernel"] * 2 + ["rotate_kernel"] * 2


def test_a_repeated_call_bypasses_tritons_launcher(recorder, monkeypatch):  # noqa: F811
    """The argument binder and the cache key of Triton's launcher took 5 times as long as what is left."""
    for _ in range(2):
        ops.rotate(X, *PARAMS, None, "road_1", 64)
        monkeypatch.setattr(type(prepare.rotate_kernel), "run", None)
    assert len(recorder.launches) == 2


def test_another_alignment_is_compiled_for(recorder):  # noqa: F811
    ops.rotate(X, *PARAMS, None, "road_1", 64)
    shifted = torch.zeros(8 * 256 + 1, dtype=torch.bfloat16)[1:].view(8, 256)
    ops.rotate(shifted, *PARAMS, None, "road_1", 64)
    wide = torch.zeros(8, 257, dtype=torch.bfloat16)[:, :256]
    ops.rotate(wide, *PARAMS, None, "road_1", 64)
    p = torch.zeros(129)[1:]
    ops.rotate(X, p, p, None, "road_1", 64)
    # x aligned; its pointer not; its rows not; the parameters' pointers not.
    assert recorder.loaded == ["rotate_kernel"] * 4
    assert len(recorder.launches) == 4


@pytest.mark.slow  # compiles eleven
def test_another_dtype_is_compiled_for(recorder):  # noqa: F811
    """At equal shapes, strides and alignment: a kernel compiled for int64 ids would misread int32 ones."""
    p, q = make_params("road_1", 3, 256)
    ids = torch.arange(8) % 3
    for dtype in (torch.int64, torch.int32):
        ops.rotate(X, p, q, ids.to(dtype), "road_1", 64)
    assert recorder.loaded == ["rotate_kernel"] * 2
    for dtype in (torch.bfloat16, torch.float64):
        ops.rotate(X, p.to(dtype), q, ids, "road_1", 64)
        ops.rotate(X, p, q.to(dtype), ids, "road_1", 64)
    assert recorder.loaded == ["rotate_kernel"] * 6
    recorder.loaded.clear()
    for dtype in (torch.float32, torch.float16):
        ops.rotate_backward(X, X, p.to(dtype), q.to(dtype), ids, "road_1", 64, False, [True, True, True])
    assert sorted(recorder.loaded) == ["backward_kernel"] * 2 + ["reduce_kernel"] * 2 + ["sort_rows_kernel"]


def test_up_to_4096_ids_are_sorted_in_one_launch_and_more_by_torch(recorder):  # noqa: F811
    for count, kernels in {4096: ["sort_rows_kernel"], 4097: []}.items():
        recorder.launches.clear()
        ops.sort_rows(torch.arange(count) % 5, 5)
        assert [name for name, *_ in recorder.launches] == kernels
    ops.sort_rows(torch.arange(9) % 5, 5)
    grid, values = named(recorder)
    assert grid == (2 + 1, 1, 1) and (values["count"], values["adapters"], values["id_programs"]) == (9, 5, 2)


def test_threads_that_call_at_once_load_a_kernel_once(recorder):  # noqa: F811
    load = recorder.utils.load_binary
    recorder.utils.load_binary = lambda *kernel: (time.sleep(0.05), load(*kernel))[1]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: ops.rotate(X, *PARAMS, None, "road_1", 64), range(4)))
    assert recorder.loaded == ["rotate_kernel"] and len(recorder.launches) == 4


def named(recorder, index=-1):  # noqa: F811
    name, grid, values = recorder.launches[index]
    kernel = getattr(prepare, name)
    return grid, dict(zip(kernel.arg_names, values, strict=True))


def test_in_place_writes_where_it_reads(recorder):  # noqa: F811
    x, version = X.clone(), X._version
    ops.rotate_(x, *PARAMS, None, "road_1", 64, False)
    _, values = named(recorder)
    assert values["x"] is x and values["z"] is x and values["copy_none"] == 0
    assert x._version > version


def test_only_what_is_asked_for_is_launched(recorder):  # noqa: F811
    def kernels(mask, rows=8):
        recorder.launches.clear()
        grads = ops.rotate_backward(X[:rows], X[:rows], *PARAMS, None, "road_1", 64, False, mask)
        assert [g is not None for g in grads] == mask
        return [name for name, *_ in recorder.launches]

    assert kernels([True, False, False]) == ["rotate_kernel"]
    assert named(recorder)[1]["TRANSPOSED"]
    assert kernels([False, True, False]) == ["backward_kernel", "reduce_kernel"]
    assert not named(recorder, 0)[1]["NEED_GX"] and not named(recorder, 1)[1]["NEED_Q"]
    assert kernels([False, False, False]) == []
    assert kernels([True, True, True], rows=0) == ["reduce_kernel"]  # writes zeros


@pytest.mark.slow  # compiles six
def test_many_aligned_rows_have_two_in_flight(recorder):  # noqa: F811
    """Where a program would have too few bytes in flight; unaligned, two rows do not fit its registers."""
    p, q = make_params("road_4", None, 2048)
    for pitch, tile in (2048, 2), (2049, 1):
        x = torch.zeros(600, pitch, dtype=torch.bfloat16)[:, :2048]
        ops.rotate(x, p, q, None, "road_4", 64)
        assert named(recorder)[1]["ROWS"] == tile
        ops.rotate_backward(x, x, p, q, None, "road_4", 64, False, [True, True, True])
        assert named(recorder, -2)[1]["ROWS"] == tile


@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_plans_cover_every_row_and_pair(batched, itemsize):
    for rows in (1, 2, 8, 33, 4096, 2**31 + 7):
        for dim in (2, 6, 64, 74, 1536, 4096, 5120, 11008, 14336):
            plan = make_plan(rows, dim, itemsize, batched, 64, 132)
            assert plan.pairs & (plan.pairs - 1) == 0 and plan.rows & (plan.rows - 1) == 0
            assert plan.column_blocks * plan.pairs >= dim // 2 > (plan.column_blocks - 1) * plan.pairs
            assert plan.row_blocks * plan.block_rows >= rows > (plan.row_blocks - 1) * plan.block_rows
            assert plan.block_rows % plan.rows == 0
            assert plan.rows == 1 or not batched
            assert plan.row_blocks <= 65535  # the second dimension of a grid
            assert plan.num_warps in (1, 2, 4)
            # 32 bytes a lane: more would spill, less would leave memory idle.
            assert plan.rows * plan.pairs <= plan.num_warps * 32 * 16 // itemsize


def test_the_plans_of_common_layers():
    """bfloat16 on 132 multiprocessors, 64 warps each."""
    common = {
        (4096, 4096): (1, 1024, 4, 2, 1024, 4),  # rows, pairs, warps, column blocks, row blocks, rows of a program
        (4096, 11008): (1, 1024, 4, 6, 342, 12),
        (4096, 1536): (4, 256, 4, 3, 512, 8),
        (8, 4096): (1, 256, 1, 8, 8, 1),
    }
    for (rows, dim), plan in common.items():
        assert tuple(make_plan(rows, dim, 2, False, 64, 132)) == plan, (rows, dim)
    assert forward_warps("road_4", False) == (16, 2)
    assert tuple(make_plan(4096, 4096, 2, False, 16, 132, lane_rows=2)) == (2, 1024, 4, 2, 256, 16)
    assert make_plan(8, 4096, 2, False, 16, 132, lane_rows=2).rows == 1
    assert reduce_tile(196, 1) == reduce_tile(196, 12) == (64, 16, 8)
    assert reduce_tile(196, 100) == reduce_tile(0, 1) == (8, 128, 4)
    assert merge_tile(4096, 4096, 2) == (8, 256)
    assert merge_tile(4096, 10, 2) == (128, 16)


def test_triton_is_imported_at_the_first_call():
    script = "import sys, road_kernels; assert 'triton' not in sys.modules; road_kernels.backend_info()"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_reasons_why_it_is_not_usable(monkeypatch):
    if not torch.cuda.is_available():
        assert backend.unavailable() == "torch sees no CUDA device here"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert backend.unavailable().startswith("triton is not installed")


def test_arguments_that_would_read_out_of_bounds_are_refused(recorder):  # noqa: F811
    p, q = PARAMS
    for error, arguments in {
        r"theta must be \[128\] for variant 'road_1'": (X, p[:2], q[:2], None, "road_1", 64),
        "group_size": (X, p, q, None, "road_1", 0),
        "form must be": (X, p, q, None, "road_9", 64),
        "prefix": (X, p[None], q[None], torch.zeros(9, dtype=torch.int64), "road_1", 64),
        r"theta must be \[A, 128\].*use road_apply\)": (X, p, q, torch.zeros(8, dtype=torch.int64), "road_1", 64),
        r"x must be \[\.\.\., D\]": (torch.tensor(1.0), p, q, None, "road_1", 64),
        r"alpha must be \[128\]": (X, p, q[:2], None, "road_1", 64),
    }.items():
        with pytest.raises(ValueError, match=error):
            ops.rotate(*arguments)
    with pytest.raises(ValueError, match="grad must match"):
        ops.rotate_backward(X[:2], X, p, q, None, "road_1", 64, False, [True, True, True])
    with pytest.raises(ValueError, match=r"w must be \[D, N\]"):
        ops.merge(X[0], p, q, 64)
    assert not recorder.launches
