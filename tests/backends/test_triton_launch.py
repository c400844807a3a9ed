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

from support.triton_driver import named, recorder  # noqa: F401

from road_kernels.backends import triton as backend
from road_kernels.triton import ops, prepare

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
    """The forward has three configurations, for few, some and many rows; the reduction as many, for sums of an adapter.

    The backward has one. Ids are sorted in one way if they are few and in another if many.
    """
    few = ["backward_kernel", "reduce_kernel", "rotate_kernel", "sort_few_kernel"]
    for rows in (1, 7, 16, 33, 48):
        call(rows, adapters=3)
    assert sorted(recorder.loaded) == few
    many = ["add_counts_kernel", "count_kernel", "place_kernel"]
    for rows in (1000, 2000, 2001, 4096, 5000, 70000):
        for adapters in (1, 2, 16, 17, 1000):
            call(rows, adapters)
    assert sorted(recorder.loaded) == sorted([*few, *many, "reduce_kernel", "reduce_kernel", *["rotate_kernel"] * 2])
    recorder.loaded.clear()
    for rows in (8, 9, 16, 100_000):
        call(rows, adapters=5)
    assert recorder.loaded == []


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
    assert sorted(recorder.loaded) == ["backward_kernel"] * 2 + ["reduce_kernel"] * 2 + ["sort_few_kernel"]


def test_few_ids_are_sorted_by_one_launch_and_many_by_three(recorder, monkeypatch):  # noqa: F811
    """And a fourth, which sets the counters to zero."""
    zeros, cleared = torch.zeros, []
    monkeypatch.setattr(torch, "zeros", lambda *size, **kw: (cleared.append(size), zeros(*size, **kw))[1])
    ops.sort_rows(torch.arange(4096) % 5, 5)
    assert [name for name, *_ in recorder.launches] == ["sort_few_kernel"] and not cleared
    grid, values = named(recorder)
    assert grid == (512 + 1, 1, 1) and (values["count"], values["adapters"], values["id_programs"]) == (4096, 5, 512)
    recorder.launches.clear()
    ops.sort_rows(torch.arange(4097) % 5, 5)
    assert [name for name, *_ in recorder.launches] == ["count_kernel", "add_counts_kernel", "place_kernel"]
    assert cleared == [(9 * 6,)]
    assert [grid for _, grid, _ in recorder.launches] == [(9, 1, 1), (1, 1, 1), (9, 1, 1)]


def test_threads_that_call_at_once_load_a_kernel_once(recorder):  # noqa: F811
    load = recorder.utils.load_binary
    recorder.utils.load_binary = lambda *kernel: (time.sleep(0.05), load(*kernel))[1]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: ops.rotate(X, *PARAMS, None, "road_1", 64), range(4)))
    assert recorder.loaded == ["rotate_kernel"] and len(recorder.launches) == 4


def test_in_place_writes_where_it_reads(recorder):  # noqa: F811
    x, version = X.clone(), X._version
    ops.rotate_(x, *PARAMS, None, "road_1", 64, False)
    _, values = named(recorder)
    assert values["x"] == values["z"] == x.data_ptr() and values["copy_below"] == -1
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


def test_grids_have_one_dimension(recorder):  # noqa: F811
    """The other two are limited to 65535 programs: here are more rows, adapters and pairs of rows."""
    rows = 300_000
    x = torch.zeros(1, 2, dtype=torch.bfloat16).expand(rows, 2)
    p, q = make_params("road_1", 70_000, 2)
    ids = torch.arange(rows) % 70_000
    ops.rotate_backward(x, x, p, q, ids, "road_1", 2, False, [True, True, True])
    x = torch.zeros(1, 128, dtype=torch.bfloat16).expand(rows * 4, 128)
    ops.rotate(x, *make_params("table_half", None, 128), None, "table", 64)
    ops.tables(p, q, "road_1", 2, torch.float32)
    grids = {name: grid for name, grid, _ in recorder.launches}
    assert all(grid[1:] == (1, 1) for grid in grids.values()), grids
    assert all(grids[f"{name}_kernel"][0] > 65535 for name in ("rotate", "backward", "reduce")), grids
    launch = prepare.merge(0, (2**21, 4096), 4096, 4096, torch.bfloat16, True, 2**20, 64)
    assert launch.grid == (2**20 // 8 * 16, 1, 1)


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


def test_an_equal_call_is_neither_checked_nor_prepared_again(recorder, monkeypatch):  # noqa: F811
    p, q = make_params("road_1", 3, 256)
    ids = torch.tensor([0, 2, -1, 1, 1, 0, 2, 2])
    first = ops.rotate(X, p, q, ids, "road_1", 64)
    ops.rotate_(X.clone(), p, q, ids, "road_1", 64, False)
    monkeypatch.setattr(ops, "arguments", None)
    again = ops.rotate(X.clone(), p.clone(), q.clone(), ids.flip(0), "road_1", 64)
    x = X.clone()
    ops.rotate_(x, p, q, ids, "road_1", 64, False)
    assert again.shape == first.shape and again.dtype == first.dtype and x._version == 1
    (_, _, out), (_, _, inplace), (_, _, out2), (_, _, inplace2) = recorder.launches
    addresses = again.data_ptr(), x.data_ptr(), x.data_ptr()
    assert (out2[1], inplace2[0], inplace2[1]) == addresses
    assert out[5:] == out2[5:] and inplace[5:] == inplace2[5:]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(x=torch.zeros(8, 258, dtype=torch.bfloat16)),
        lambda c: c.update(p=c["p"][:, :-1]),
        lambda c: c.update(q=c["q"][:2]),
        lambda c: c.update(ids=c["ids"].to(torch.int16)),
        lambda c: c.update(ids=torch.zeros(9, dtype=torch.int64)),
        lambda c: c.update(group_size=48),
    ],
)
def test_a_call_that_differs_is_checked(recorder, change):  # noqa: F811
    p, q = make_params("road_1", 3, 256)
    call = {"x": X, "p": p, "q": q, "ids": torch.zeros(8, dtype=torch.int64), "form": "road_1", "group_size": 64}
    ops.rotate(*call.values())
    change(call)
    with pytest.raises((TypeError, ValueError)):
        ops.rotate(*call.values())
    assert len(recorder.launches) == 1
