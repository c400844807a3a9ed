"""Gradients on every backend against the float64 oracle, and gradcheck to second order."""

import pytest
import torch
from support.expected import expect_backward
from support.gradients import check, run
from support.problems import DTYPES, FORMS, apply, make_params, make_x, op_form

from road_kernels.backends import registry


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dim", "group_size"), [(2, 2), (70, 2), (18, 6), (192, 64)], ids=str)
def test_single(backend, form, dtype, dim, group_size):
    x, gz = make_x(6, 3, dim, dtype=dtype), make_x(6, 3, dim, dtype=dtype, seed=5)
    p, q = make_params(form, None, dim)
    grads = run(x, p, q, form, gz, group_size=group_size, backend=backend)
    check(grads, expect_backward(gz, x, p, q, form, group_size), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "ids",
    [[3, -1, 0, 3, 3, -1, 0], [-1] * 7, [0] * 7, [3] * 7, [0, 1, 2, 3, 2, 1, 0]],
    ids=["unused adapters", "all none", "first only", "last only", "all"],
)
def test_batched(backend, form, dtype, ids):
    x, gz = make_x(7, 3, 12, dtype=dtype), make_x(7, 3, 12, dtype=dtype, seed=5)
    p, q = make_params(form, 4, 12)
    ids = torch.tensor(ids)
    grads = run(x, p, q, form, gz, ids, group_size=4, backend=backend)
    check(grads, expect_backward(gz, x, p, q, form, 4, ids), dtype)
    unused = [a for a in range(4) if a not in ids.tolist()]
    assert not grads[1][unused].any()
    assert torch.equal(grads[0][ids == -1], gz[ids == -1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_sums_over_many_rows(backend, form, batched):
    """More rows than one block of partial sums, unevenly split between adapters."""
    x, gz = make_x(3000, 16), make_x(3000, 16, seed=5)
    p, q = make_params(form, 3 if batched else None, 16)
    ids = torch.tensor([0] * 2500 + [2] * 499 + [-1])[torch.randperm(3000)] if batched else None
    grads = run(x, p, q, form, gz, ids, group_size=8, backend=backend)
    # At most 0.2 units were measured on cpu, 0.9 on python: far below the worst case of a serial float32 sum.
    check(grads, expect_backward(gz, x, p, q, form, 8, ids), torch.float32)


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1)], ids=str)
@pytest.mark.parametrize("form", ["road_1", "road_4", "table"])
def test_only_what_is_asked_for(backend, form, wanted):
    x, gz = make_x(5, 12), make_x(5, 12, seed=5)
    p, q = make_params(form, 2, 12)
    ids = torch.tensor([1, 0, -1, 1, 1])
    everything = run(x, p, q, form, gz, ids, group_size=6, backend=backend)
    some = run(x, p, q, form, gz, ids, wanted=map(bool, wanted), group_size=6, backend=backend)
    for w, got, full in zip(wanted, some, everything, strict=True):
        assert torch.equal(got, full) if w else got is None


@pytest.mark.parametrize("param_dtype", DTYPES, ids=str)
def test_parameter_gradients_have_the_parameters_dtype(backend, param_dtype):
    x, gz = make_x(40, 8, dtype=torch.bfloat16), make_x(40, 8, dtype=torch.bfloat16, seed=5)
    p, q = make_params("road_1", None, 8, dtype=param_dtype)
    q = q.float()
    gx, gp, gq = run(x, p, q, "road_1", gz, group_size=4, backend=backend)
    assert (gx.dtype, gp.dtype, gq.dtype) == (torch.bfloat16, param_dtype, torch.float32)
    check((gx, gp, gq), expect_backward(gz, x, p, q, "road_1", 4), torch.bfloat16)


@pytest.mark.numerical
@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_gradcheck(backend, form, batched, inplace):
    """First and second order, at random parameters, because at theta = 0 half of road_4's gradients are zero."""
    x = make_x(3, 2, 8, dtype=torch.float64).requires_grad_()
    params = make_params(form, 3 if batched else None, 8, dtype=torch.float64)
    params = [t.requires_grad_() for t in params]
    ids = torch.tensor([2, -1, 0]) if batched else None

    def f(x, p, q):
        return apply(x * 1, p, q, form, ids, group_size=4, inplace=inplace, backend=backend)

    assert torch.autograd.gradcheck(f, (x, *params))
    assert torch.autograd.gradgradcheck(f, (x, *params))


def test_saves_x_in_its_own_dtype_and_nothing_else_of_that_size(backend):
    saved = []

    def pack(t):
        saved.append((t.shape, t.dtype))
        return t

    x = make_x(16, 64, dtype=torch.bfloat16).requires_grad_()
    theta, alpha = (t.requires_grad_() for t in make_params("road_1", None, 64))
    for kw, tensors in (
        ({"inplace": False}, (x, theta, alpha)),
        ({"inplace": False}, (x, theta.detach(), alpha.detach())),
    ):
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            apply(*tensors, "road_1", backend=backend, **kw)
        large = [s for s in saved if s[0].numel() == x.numel()]
        assert large == ([(x.shape, torch.bfloat16)] if tensors[1].requires_grad else [])


def test_a_call_without_gradients_records_nothing(backend):
    x, (theta, alpha) = make_x(2, 64), make_params("road_1", None, 64)
    assert apply(x, theta, alpha, "road_1", backend=backend).grad_fn is None
    with torch.no_grad():
        assert apply(x.requires_grad_(), theta, alpha, "road_1", backend=backend).grad_fn is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_pass_through_rows_do_not_leak_into_gradients(backend, value):
    """No NaN or infinity of a pass-through row: not from x, not from the incoming gradient, not in second order."""
    x, gz = make_x(3, 8, dtype=torch.float64), make_x(3, 8, dtype=torch.float64, seed=5)
    x[1], gz[1] = value, value
    params = [t.requires_grad_() for t in make_params("road_2", 2, 8, dtype=torch.float64)]
    x, gz, ids = x.requires_grad_(), gz.requires_grad_(), torch.tensor([0, -1, 1])
    z = apply(x, *params, "road_2", ids, group_size=4, backend=backend)
    for g in torch.autograd.grad(z, params, gz, retain_graph=True):
        assert g.isfinite().all()
    (gx,) = torch.autograd.grad(z, x, gz, create_graph=True)
    for g in torch.autograd.grad(gx[[0, 2]].sum(), params):
        assert g.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("from_output", [False, True], ids=["from x", "from z"])
def test_gradients_of_adapters_without_rows_are_zero(backend, form, from_output):
    """Exactly 0, whatever the parameters are: 0 times a NaN would be a NaN."""
    p, q = make_params(form, 4, 16)
    p[1], q[2] = float("nan"), float("nan")
    p[3], q[3] = float("inf"), 0.0
    x, gz, ids = make_x(4, 16), make_x(4, 16, seed=5), torch.tensor([0, 0, -1, 0])
    module = registry._loaded[backend][0]
    for rows in (4, 0):
        name = op_form(form)
        _, gp, gq = module.rotate_backward(
            gz[:rows], x[:rows], p, q, ids[:rows], name, 4, from_output, [True, True, True]
        )
        for g in (gp, gq):
            assert torch.equal(g[1:], torch.zeros_like(g[1:]))
            assert g[0].isfinite().all()
