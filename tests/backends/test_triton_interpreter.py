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
    torch.testing.assert_close(rk.road_apply(x, theta, alpha, backend="triton"), rk.road_apply(x, theta, alpha))


BATCHES = {
    "one adapter has most rows": (torch.tensor([3] * 200 + [0] * 20 + [-1] * 15 + [1, 4, 4, 0, 3]), 5),
    "pass-through rows in front and between": (torch.tensor([-1] * 70 + [2] * 66 + [-1] + [0] * 3), 3),
    "all rows pass through": (torch.full((90,), -1), 4),
    "one row each": (torch.arange(67), 67),
    "most adapters have no row": (torch.tensor([150, 3, 150, 77, 77, -1, 199, 0] * 4), 200),
    "the last adapter only": (torch.full((130,), 39), 40),
}


@pytest.mark.parametrize("form", ["road_1", "road_4", "table_half"])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_the_work_of_every_program_of_a_mixed_batch(constants, form, batch):
    """Adapters in several cuts, cuts with several adapters, adapters without rows; several rounds of the search."""
    constants(SEARCH=4, BACKWARD_ROWS=16, BACKWARD_WARPS=1, BACKWARD_LANES=2)
    ids, adapters = batch
    ids = ids[torch.randperm(len(ids))]
    x, gz = make_x(len(ids), 16), make_x(len(ids), 16, seed=5)
    p, q = make_params(form, adapters, 16)
    grads = run(x, p, q, form, gz, ids, group_size=8, backend="triton")
    check(grads, expect_backward(gz, x, p, q, form, 8, ids), torch.float32)
    unused = torch.ones(adapters, dtype=torch.bool)
    unused[ids[ids >= 0]] = False
    assert not any(g[unused].any() for g in grads[1:])
    assert torch.equal(grads[0][ids < 0], gz[ids < 0])


def test_sums_come_from_slots_of_their_own(constants, monkeypatch):
    """Nothing reads a slot that no program wrote, and no more programs write than have rows."""
    from road_kernels.triton import ops

    constants(SEARCH=4, BACKWARD_ROWS=16)
    empty, scratch = torch.empty, []

    def empty_of_nan(*size, **kw):
        t = empty(*size, **kw)
        if t.is_floating_point():
            t.fill_(float("nan"))
            scratch.append(t)
        return t

    monkeypatch.setattr(torch, "empty", empty_of_nan)
    ids = torch.tensor([7] * 50 + [-1] * 5 + [2] * 3 + [4] * 10)
    x, (p, q) = make_x(68, 16), make_params("road_1", 9, 16)
    grads = ops.rotate_backward(x, x, p, q, ids, "road_1", 8, False, [True, True, True])
    check(grads, expect_backward(x, x, p, q, "road_1", 8, ids), torch.float32)
    (sums,) = (t for t in scratch if t.dim() == 1 and t.numel() > 16 * 9)
    written = ~sums.view(-1, 16).isnan().any(1)
    # In the order of rows -1: 0..4, 2: 5..7, 4: 8..17, 7: 18..67, cut at 16, 32, 48, 64; slot = cut + adapter + 1.
    assert written.nonzero().flatten().tolist() == [0 + 3, 0 + 5, 1 + 5, 1 + 8, 2 + 8, 3 + 8, 4 + 8]
    assert len(written) == 5 + 9 + 1


@pytest.mark.parametrize("form", ["road_1", "road_4"])
def test_one_adapter_in_many_cuts(constants, form):
    constants(BACKWARD_ROWS=16)
    x, gz, (p, q) = make_x(90, 16), make_x(90, 16, seed=5), make_params(form, None, 16)
    check(run(x, p, q, form, gz, None, group_size=8, backend="triton"), expect_backward(gz, x, p, q, form, 8),
          torch.float32)  # fmt: skip


@pytest.mark.parametrize("adapters", [1, 6, 70])
def test_every_tile_of_the_reduction(constants, adapters):
    """For more than 32 partial sums of an adapter, for some, and for a few."""
    from road_kernels.triton import plan

    constants(BACKWARD_ROWS=8, BACKWARD_WARPS=1)
    ids = torch.arange(8 * 40) % adapters
    x, (p, q) = make_x(len(ids), 32), make_params("road_4", adapters, 32)
    grads = run(x, p, q, "road_4", x, ids, group_size=4, backend="triton")
    check(grads, expect_backward(x, x, p, q, "road_4", 4, ids), torch.float32)
    assert plan.plan_reduce(40, adapters, 32).slices == {1: 128, 6: 16, 70: 2}[adapters]


@pytest.mark.parametrize("form", ["road_1", "road_4", "table", "table_half"])
@pytest.mark.parametrize("group_size", [2, 16])
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_few_and_many_rows_get_the_same_bits(constants, form, group_size, batched):
    """Runs of 8 and 16 bytes, a lane's rows one and several; in a mixed batch, rows of a lane by different adapters."""
    x, (p, q) = make_x(29, 64, dtype=torch.bfloat16), make_params(form, 4 if batched else None, 64)
    for ids in (torch.arange(29) % 5 - 1, torch.arange(29) // 8, torch.full((29,), 2)) if batched else (None,):
        got = []
        for few in (1e9, 0):
            constants(FEW_BYTES=few, FEW_BYTES_ANGLES=few)
            for inplace in (False, True):
                got.append(apply(x.clone(), p, q, form, ids, group_size=group_size, inplace=inplace, backend="triton"))
        assert all(torch.equal(z, got[0]) for z in got)
        assert_close(got[0], expect_forward(x, p, q, form, group_size, ids), torch.float32)


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
