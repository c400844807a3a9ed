"""The Triton kernels of the fused ops in Triton's interpreter: what the tests that every backend runs leave out."""

import dataclasses

import pytest
import torch
from support.expected import assert_close
from support.fused_cases import OPS, expect, make
from support.problems import make_x
from support.triton_interpreter import INTERPRETED

import road_kernels as rk
from road_kernels.ops import checks, fused_checks, fused_formula

pytestmark = [
    pytest.mark.backend("triton"),
    pytest.mark.cpu_only,
    pytest.mark.skipif(not INTERPRETED, reason="needs a process of its own with TRITON_INTERPRET=1"),
]
IDS = torch.tensor([2, -1, 0, 3, 2, -1, 1, 1, 0])


def check(case, got, units=6):
    for g, want in zip(got, expect(case), strict=True):
        assert_close(g, want, torch.float32, units=units)


@pytest.mark.parametrize("group_size", [2, 16])
@pytest.mark.parametrize("op", OPS)
def test_every_configuration_gives_the_same_bits(constants, op, group_size):
    """Runs of 8 and of 16 bytes, for few rows and many; rows that are aligned and rows that are not."""
    case = make(op, (9,), 32, group_size, ids=IDS, dtype=torch.bfloat16)
    got = []
    for few in (1e9, 0):
        constants(FEW_BYTES=few)
        got.append(case.run(backend="triton"))
    check(case, got[0])
    shifted = make(op, (9,), 32, group_size, ids=IDS, dtype=torch.bfloat16)
    shifted.x = torch.cat((case.x[:, :1], case.x), dim=1)[:, 1:]
    got.append(shifted.run(backend="triton"))
    if op != "silu_mul":
        got.append(shifted.run(backend="triton", inplace=True))
    for other in got[1:]:
        assert all(map(torch.equal, got[0], other))


@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
@pytest.mark.parametrize("dim", [64, 70])
def test_long_rows_are_read_twice(constants, batched, dim):
    """In tiles that end with the row and in one that it does not fill, out of place and in place."""
    from road_kernels.triton import plan

    constants(NORM_BYTES=4 * 16)
    ids, group_size = IDS[:4] if batched else None, 2 if dim == 70 else 16
    runs = plan.make_runs(dim, group_size, 2, 1 if dim == 70 else 8)
    assert plan.plan_norm(dim // 2, 2, runs, plan.Device(1, 32)).runs * runs.run < dim // 2
    case = make("add_rms_norm", (4,), dim, group_size, ids=ids, form="table", dtype=torch.bfloat16)
    want = expect(case)
    first = case.run(backend="triton")
    for got in (first, case.run(backend="triton", inplace=True)):
        for g, w in zip(got, want, strict=True):
            assert_close(g, w, torch.float32, units=6)
    constants(NORM_BYTES=1 << 15)
    again = make("add_rms_norm", (4,), dim, group_size, ids=ids, form="table", dtype=torch.bfloat16)
    assert all(map(torch.equal, first, again.run(backend="triton")))


def norm_gradients(*shape, dtype=torch.bfloat16):
    return *(make_x(*shape, dtype=dtype, seed=seed) for seed in (1, 2, 3)), make_x(shape[-1], seed=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("dim", [64, 71])
def test_long_rows_are_read_twice_by_the_gradient(constants, dim, dtype):
    from road_kernels.triton import fused_ops

    args = norm_gradients(4, dim, dtype=dtype)
    want = fused_ops.add_rms_norm_backward(*args, 1e-5)
    constants(NORM_BYTES=4 * 16)
    got = fused_ops.add_rms_norm_backward(*args, 1e-5)
    bound = 2 * torch.finfo(dtype).eps if dtype == torch.bfloat16 else 1e-14
    torch.testing.assert_close(got, want, rtol=bound, atol=bound)
    exact = fused_formula.add_rms_norm_backward(*(t.double() for t in args), 1e-5)
    torch.testing.assert_close(got.double(), exact, rtol=bound, atol=bound)


def test_the_gradient_of_a_norm_of_rows_far_apart():
    """As test_offsets_beyond_32_bits."""
    from road_kernels.triton import fused_ops

    args, stride = norm_gradients(3, 8), 2**30 + 8
    want = fused_ops.add_rms_norm_backward(*args, 1e-5)
    for k in range(3):
        moved = list(args)
        moved[k] = torch.empty(2 * stride + 8, dtype=torch.bfloat16).as_strided((3, 8), (stride, 1)).copy_(args[k])
        assert torch.equal(fused_ops.add_rms_norm_backward(*moved, 1e-5), want)


BATCHES = {
    "one adapter has most rows": torch.tensor([3] * 40 + [0] * 20 + [-1] * 5 + [1, 4, 4, 0, 3]),
    "rows without an adapter in front and between": torch.tensor([-1] * 35 + [2] * 33 + [-1] + [0] * 3),
    "no row has an adapter": torch.full((40,), -1),
    "none": None,
}


@pytest.mark.parametrize("form", [pytest.param("table", marks=pytest.mark.slow), "table_half"])
@pytest.mark.parametrize("ids", BATCHES.values(), ids=BATCHES)
def test_the_work_of_every_program_of_silu_muls_backward(constants, form, ids):
    """Adapters in several cuts, cuts with several adapters; several tiles of columns, of which one is not full."""
    constants(SEARCH=4, BACKWARD_ROWS=16, BACKWARD_WARPS=1, BACKWARD_LANES=2)
    rows = 40 if ids is None else len(ids)
    ids = None if ids is None else ids[torch.randperm(rows)]
    case = make("silu_mul", (rows,), 24, 8, ids=ids, form=form, adapters=5)
    gz = make_x(rows, 24, seed=5)

    def gradients(backend, dtype):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (case.x, case.r1, case.r2)]
        case.run_differentiable(*leaves, backend=backend)[0].backward(gz.to(dtype))
        return [t.grad for t in leaves]

    wide = gradients("python", torch.float64)
    for got, want in zip(gradients("triton", torch.float32), wide, strict=True):
        assert (got - want).abs().max() <= 4e-6 * max(1.0, want.abs().max())
        assert not got[want == 0].any()  # of adapters without rows
    mask = [True, False, False]
    args = case.x, case.r1, case.r2, ids, 8
    from road_kernels.triton import fused_ops

    both = [fused_ops.rotate_silu_mul_backward(gz, *args, m)[0] for m in (mask, [True, True, True])]
    assert torch.equal(*both)


@pytest.mark.parametrize("group_size", [2, 8])
@pytest.mark.parametrize("op", OPS)
def test_offsets_beyond_32_bits(op, group_size):
    """Rows 2^30 + 8 elements apart, in address space of which three places are touched."""
    case = make(op, (3,), 8, group_size, ids=torch.tensor([1, -1, 0]), dtype=torch.bfloat16)
    stride, dim = 2**30 + 8, case.x.shape[-1]
    want = case.run(backend="triton")

    def far(t):
        return torch.empty(2 * stride + dim, dtype=t.dtype).as_strided((3, dim), (stride, 1)).copy_(t)

    case.x = far(case.x)
    if op == "add_rms_norm":
        case.args = far(case.args[0]), case.args[1]
    assert all(map(torch.equal, case.run(backend="triton"), want))
    if op != "silu_mul":
        assert all(map(torch.equal, case.run(backend="triton", inplace=True), want))
        return
    from road_kernels.triton import fused_ops

    gz, near = make_x(3, 8, dtype=torch.bfloat16, seed=3), case.x.contiguous()
    for mask in ([True, True, True], [True, False, False]):
        got, want = (
            fused_ops.rotate_silu_mul_backward(far_or_near, x, case.r1, case.r2, case.ids, group_size, mask)
            for far_or_near, x in ((gz, case.x), (gz, near))
        )
        assert all(g is w is None or torch.equal(g, w) for g, w in zip(got, want, strict=True))


def test_crossed_pairs_of_a_cache_far_away():
    """A cache whose rows are 2^31 / 3 elements apart, the third position behind 2^31."""
    stride = 2**31 // 3 + 8
    for group_size in (16, 32, 6):  # a lane has one pair, two, and crossed ones
        head_dim = {16: 32, 32: 32, 6: 12}[group_size]
        positions = torch.tensor([3, 0, 2])
        case = make("rope", (3,), head_dim, group_size, positions=positions, cache_dtype=torch.float32)
        case.args = positions, case.args[1][:4]
        want = case.run(backend="triton")
        cache = torch.empty(3 * stride + head_dim).as_strided((4, head_dim), (stride, 1)).copy_(case.args[1])
        case.args = positions, cache
        assert all(map(torch.equal, case.run(backend="triton"), want))


@pytest.mark.parametrize("group_size", [32, 16, 4, 6])
@pytest.mark.parametrize("position", [-1, 40, 2**40])
def test_positions_out_of_the_cache_are_asserted_and_not_read(monkeypatch, group_size, position):
    """On a GPU, where nothing looks at positions before the launch."""
    from triton.runtime import interpreter
    from triton.runtime.errors import InterpreterError

    monkeypatch.setattr(fused_checks, "refuse_position", lambda *args: None)
    head_dim = 12 if group_size == 6 else 32
    case = make("rope", (3,), head_dim, group_size, positions=torch.tensor([5, position, 7]))
    (z,) = case.run(backend="triton")
    assert torch.equal(z[1], rk.rotate(case.x, case.r1, case.r2, group_size=group_size, backend="triton")[1])
    builder = interpreter.interpreter_builder
    monkeypatch.setattr(builder, "options", dataclasses.replace(builder.options, debug=True))
    with pytest.raises(InterpreterError, match="positions holds one"):
        case.run(backend="triton")


@pytest.mark.parametrize("op", OPS)
def test_ids_outside_the_bank_are_asserted(monkeypatch, op):
    from triton.runtime import interpreter
    from triton.runtime.errors import InterpreterError

    monkeypatch.setattr(checks, "refuse_id", lambda *args: None)
    builder = interpreter.interpreter_builder
    monkeypatch.setattr(builder, "options", dataclasses.replace(builder.options, debug=True))
    make(op, (3,), 16, 8, ids=torch.tensor([0, 3, -1])).run(backend="triton")
    for bad in (4, -2, 2**32):
        with pytest.raises(InterpreterError, match="holds an id outside"):
            make(op, (3,), 16, 8, ids=torch.tensor([0, bad, -1])).run(backend="triton")
