"""The Triton kernels in Triton's interpreter: what the tests that every backend runs leave out or skip there."""

import pytest
import torch
from support.expected import assert_close, expect_backward, expect_forward
from support.gradients import check, everything, run
from support.problems import apply, make_params, make_x
from support.triton_interpreter import INTERPRETED

import road_kernels as rk
from road_kernels.ops import schemas

pytestmark = [
    pytest.mark.backend("triton"),
    pytest.mark.cpu_only,
    pytest.mark.skipif(not INTERPRETED, reason="needs a process of its own with TRITON_INTERPRET=1"),
]


def test_calls_on_cpu_tensors_reach_it_by_its_name_only():
    x, (theta, alpha) = make_x(2, 64), make_params("road_1", None, 64)
    assert rk.backend_info()["automatic"]["cpu"] != "triton"
    assert torch.equal(rk.road_apply(x, theta, alpha, backend="triton"), rk.road_apply(x, theta, alpha))


@pytest.mark.parametrize("form", ["road_1", "road_4"])
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_partial_sums_of_several_programs(form, batched):
    """More rows than one program takes, adapters that end inside one, and pass-through rows, which sort first."""
    x, gz = make_x(90, 16), make_x(90, 16, seed=5)
    p, q = make_params(form, 5 if batched else None, 16)
    ids = torch.tensor([3] * 50 + [0] * 20 + [-1] * 15 + [1, 4, 4, 0, 3])[torch.randperm(90)] if batched else None
    grads = run(x, p, q, form, gz, ids, group_size=8, backend="triton")
    check(grads, expect_backward(gz, x, p, q, form, 8, ids), torch.float32)


@pytest.mark.parametrize("form", ["road_2", "table_half"])
def test_repeated_runs_are_bitwise_equal(form):
    first = everything("triton", form, rows=60)
    assert all(map(torch.equal, everything("triton", form, rows=60), first))


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize(("form", "batched"), [("road_1", True), ("road_4", False), ("table", True)], ids=str)
def test_derivative_along_a_direction(form, batched, inplace):
    """What gradcheck does for every element, along one random direction: float64 against central differences."""
    point = [make_x(3, 2, 8, dtype=torch.float64), *make_params(form, 3 if batched else None, 8, dtype=torch.float64)]
    direction = [make_x(*t.shape, dtype=torch.float64, seed=7 + k) for k, t in enumerate(point)]
    gz, ids = make_x(3, 2, 8, dtype=torch.float64, seed=3), torch.tensor([2, -1, 0]) if batched else None

    def f(x, p, q):
        return (apply(x * 1, p, q, form, ids, group_size=4, inplace=inplace, backend="triton") * gz).sum()

    def moved(step):
        return f(*(t + step * d for t, d in zip(point, direction, strict=True)))

    leaves = [t.requires_grad_() for t in point]
    grads = torch.autograd.grad(f(*leaves), leaves)
    analytic = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
    with torch.no_grad():
        numeric = (moved(1e-6) - moved(-1e-6)) / 2e-6
    torch.testing.assert_close(analytic, numeric, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("ids", [None, torch.tensor([1, -1, 0])], ids=["single", "batched"])
@pytest.mark.parametrize("group_size", [2, 4])
def test_offsets_beyond_32_bits(ids, group_size):
    """Rows 2^30 + 8 elements apart, in address space of which three places are touched."""
    stride = 2**30 + 8
    buffer = torch.empty(2 * stride + 8, dtype=torch.bfloat16)
    x = buffer.as_strided((3, 8), (stride, 1))
    x.copy_(make_x(3, 8, dtype=torch.bfloat16))
    p, q = make_params("road_1", None if ids is None else 2, 8)
    want = expect_forward(x, p, q, "road_1", group_size, ids)
    assert_close(apply(x, p, q, "road_1", ids, group_size=group_size, backend="triton"), want, torch.float32)
    from road_kernels.triton import ops  # the op itself, as backward through autograd would start from a copy of x

    gz = make_x(3, 8, dtype=torch.bfloat16, seed=3)
    grads = ops.rotate_backward(gz, x, p, q, ids, "road_1", group_size, False, [True, True, True])
    check(grads, expect_backward(gz, x, p, q, "road_1", group_size, ids), torch.float32)
    apply(x, p, q, "road_1", ids, group_size=group_size, inplace=True, backend="triton")
    assert_close(x, want, torch.float32)


ORDERED = {
    "one id": [2],
    "none": [],
    "all the same": [1] * 11,
    "all different, descending": list(range(30, -1, -1)),
    "first, last and none in turn": [0, -1, 30, 0, 30, -1, -1],
    "one fewer than a program places": [3, 1, 2, 3, -1, 0, 1],
    "as many as a program places": [3, 1, 2, 3, -1, 0, 1, 2],
    "one more": [3, 1, 2, 3, -1, 0, 1, 2, 0],
    "one fewer than a tile": [(7 * k) % 32 - 1 for k in range(511)],
    "a tile": [(7 * k) % 32 - 1 for k in range(512)],
    "one more than a tile": [(7 * k) % 32 - 1 for k in range(513)],
    "more than the most": [(7 * k * k) % 32 - 1 for k in range(4097)],
}
THE_MOST = pytest.param([(7 * k * k) % 32 - 1 for k in range(4096)], id="the most", marks=pytest.mark.slow)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("ids", [*(pytest.param(ids, id=name) for name, ids in ORDERED.items()), THE_MOST])
def test_sort_rows_is_a_stable_sort(ids, dtype):
    from road_kernels.triton import ops

    ids = torch.tensor(ids, dtype=dtype)
    sorted_ids, positions, starts = ops.sort_rows(ids, 31)
    want_ids, want_positions = torch.sort(ids.long(), stable=True)
    assert torch.equal(sorted_ids, want_ids) and torch.equal(positions, want_positions)
    assert torch.equal(starts, torch.searchsorted(want_ids, torch.arange(32)))


def test_sort_rows_keeps_ids_outside_the_bank_apart():
    """For check_ids to report. Every id is written once, and those of the bank are where starts says."""
    from road_kernels.triton import ops

    far = torch.iinfo(torch.int64)
    ids = torch.tensor([3, far.max, 0, far.min, -1, 4, 3, -2, 1])
    sorted_ids, positions, starts = ops.sort_rows(ids, 4)
    assert torch.equal(sorted_ids, ids[positions]) and sorted(positions.tolist()) == list(range(9))
    assert starts.tolist() == [3, 4, 5, 5, 7] and sorted_ids[3:7].tolist() == [0, 1, 3, 3]


ANGLES = [0.0, -0.0, 1e-30, 1e-8, 0.785398, -0.7853983, 1.5707964, 2047.9, -2048.0, 2049.1]
ANGLES += [5.0e4, 6.5331e12, -3.0e20, 2.0e30, 3.4e38, 16367173 * 2.0**72]  # the last is nearest to a multiple of pi/2


def test_sine_and_cosine_of_any_angle():
    """x = (1, 0) gives alpha (cos, sin), in a tile that has large angles and in one that has none."""
    for angles in (ANGLES, ANGLES[:8]):
        theta = torch.tensor(angles, dtype=torch.float32)
        z = apply(torch.tensor([1.0, 0.0]).repeat(len(theta)), theta, torch.ones_like(theta), "road_1", group_size=2,
                  backend="triton").view(-1, 2)  # fmt: skip
        exact = torch.stack([torch.cos(theta.double()), torch.sin(theta.double())], 1)
        assert (z.double() - exact).abs().max() < 1.2e-7
    for bad in (float("inf"), float("-inf"), float("nan")):
        theta = torch.tensor([bad, 0.5])
        z = apply(torch.ones(4), theta, torch.ones(2), "road_1", group_size=2, backend="triton")
        assert z.isnan().tolist() == [True, True, False, False]


def test_adjacent_pairs_are_bitwise_equal_whatever_their_alignment():
    """Aligned rows are loaded as words of two features, others in two loads."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x = make_x(3, 72, dtype=dtype)
        x[0, :4] = torch.tensor([float("nan"), float("inf"), -0.0, 6e-8]).to(dtype)
        p, q = make_params("road_2", 2, 64)
        ids = torch.tensor([-1, 0, 1])
        aligned, shifted = x[:, :64], torch.empty(3 * 72 + 1, dtype=dtype)[1:].view(3, 72)[:, :64].copy_(x[:, :64])
        a, b = (apply(t, p, q, "road_2", ids, group_size=2, backend="triton") for t in (aligned, shifted))
        bits = torch.int32 if dtype == torch.float32 else torch.int16
        assert torch.equal(a.view(bits), b.view(bits))
        assert torch.equal(a[0].view(bits), x[0, :64].contiguous().view(bits))


def test_torch_compile_finds_the_kernels_on_gpus():
    """Registered with the ops, unless the extension has kernels for CUDA tensors."""
    build = rk.backend_info()["build"]
    for op in schemas.OPS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"road_kernels::{schemas.torch_name(op)}", "CUDA")
    if build is None or build["cuda"] is None:
        assert schemas.LIBRARY._op_impls >= {f"road_kernels/{schemas.torch_name(op)}/CUDA" for op in schemas.OPS}
