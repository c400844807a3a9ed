"""torch.compile, torch.export, opcheck, torch.func, autocast, checkpointing."""

import pytest
import torch
from support.common import DEVICE, FORMS, apply, make_params, make_x, op_form
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

import road_kernels as rk

pytestmark = pytest.mark.wiring

IDS = torch.tensor([2, -1, 0, 2])
OPS = torch.ops.road_kernels


def op_arguments(form, batched, dtype=torch.float32):
    p, q = make_params(form, 3 if batched else None, 16, dtype=dtype)
    return p, q, IDS if batched else None, op_form(form), 8


@pytest.mark.parametrize(("form", "batched"), [("road_1", True), ("road_4", False), ("table_half", True)], ids=str)
def test_opcheck(form, batched):  # 10 s a case: the schema is the same for every form
    p, q, *rest = op_arguments(form, batched)
    x, grad = make_x(4, 3, 16), make_x(4, 3, 16, seed=1)
    wants_grad = [t.clone().requires_grad_() for t in (x, p, q)]
    opcheck(OPS.rotate.default, (*wants_grad, *rest))
    opcheck(
        OPS.rotate.default, (x.transpose(0, 1).contiguous().transpose(0, 1), p, q, *rest), test_utils="test_faketensor"
    )
    opcheck(OPS.rotate_.default, (x.clone(), p, q, *rest, True))
    opcheck(OPS.rotate_backward.default, (grad, *wants_grad, *rest, False, [True, False, True]))
    opcheck(
        OPS.rotate_backward.default, (grad, x, p, q, *rest, True, [False, True, False]), test_utils="test_faketensor"
    )


@pytest.mark.parametrize("form", ["road_1", "road_4"])
def test_the_ops_are_differentiable_on_their_own(form):
    p, q = make_params(form, 2, 4, dtype=torch.float64)
    rest = torch.tensor([1, -1]), form, 4
    x = make_x(2, 4, dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in (x, p, q)]
    assert torch.autograd.gradcheck(lambda *t: OPS.rotate(*t, *rest), leaves)
    assert torch.autograd.gradgradcheck(lambda *t: OPS.rotate(*t, *rest), leaves)
    with pytest.raises(RuntimeError, match="inplace=True"):
        OPS.rotate_(leaves[0] * 1, *leaves[1:], *rest, False)


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_compile(backend, batched, inplace):
    """One graph, forward and backward, and one compilation for any number of rows."""
    p, q = (t.requires_grad_() for t in make_params("road_2", 3 if batched else None, 16))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def f(x, ids):
        y = x * 2
        return apply(y, p, q, "road_2", ids, group_size=8, inplace=inplace, backend=backend) + y

    compiled = torch.compile(f, fullgraph=True, dynamic=True)
    for rows in (4, 4, 7, 9):
        ids = torch.arange(rows) % 4 - 1 if batched else None
        results = []
        for g in (f, compiled):
            x = make_x(rows, 3, 16).requires_grad_()
            p.grad = q.grad = None
            z = g(x, ids)
            z.square().sum().backward()
            results.append((z.detach(), x.grad, p.grad, q.grad))
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_compile_follows_the_choice_of_backend():
    theta, alpha = make_params("road_1", None, 64)
    graphs = []

    def record(graph, inputs):
        graphs.append(any("road_kernels" in str(n.target) for n in graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    f = torch.compile(lambda x: rk.road_apply(x, theta, alpha), fullgraph=True, backend=record)
    x = make_x(2, 64)
    f(x)
    with rk.use_backend("python"):
        f(x)
    assert graphs == [rk.backend_info()["automatic"][DEVICE] != "python", False]


class Layer(torch.nn.Module):
    def forward(self, x, theta, alpha, ids):
        return rk.road_apply_batched(x, theta, alpha, ids, group_size=8)


def test_export():
    rows = torch.export.Dim("rows")
    x, (theta, alpha) = make_x(4, 3, 16), make_params("road_1", 3, 16)
    program = torch.export.export(Layer(), (x, theta, alpha, IDS), dynamic_shapes=({0: rows}, None, None, {0: rows}))
    more, ids = make_x(6, 3, 16), torch.tensor([0, 1, 2, -1, 1, 1])
    assert torch.equal(program.module()(more, theta, alpha, ids), Layer()(more, theta, alpha, ids))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_func(backend, form, batched):
    p, q = make_params(form, 3 if batched else None, 16, dtype=torch.float64)
    x = make_x(4, 16, dtype=torch.float64)
    ids = IDS if batched else None

    def f(x, p, q):
        return apply(x, p, q, form, ids, group_size=8, backend=backend).square().sum()

    leaves = [t.clone().requires_grad_() for t in (x, p, q)]
    want = torch.autograd.grad(f(*leaves), leaves)
    for got, expected in zip(torch.func.grad(f, argnums=(0, 1, 2))(x, p, q), want, strict=True):
        torch.testing.assert_close(got, expected)
    tangents = [torch.randn_like(t) for t in (x, p, q)]
    _, jvp = torch.func.jvp(f, (x, p, q), tuple(tangents))
    torch.testing.assert_close(jvp, sum((g * t).sum() for g, t in zip(want, tangents, strict=True)))
    stacked = [torch.stack([t, t * 1.1]) for t in (x, p, q)]
    torch.testing.assert_close(torch.vmap(f)(*stacked), torch.stack([f(*(s[k] for s in stacked)) for k in range(2)]))
    assert torch.autograd.gradcheck(f, leaves, check_forward_ad=True, check_batched_grad=True)


def test_vmap_over_adapter_ids(backend):
    x, (p, q) = make_x(5, 16), make_params("road_1", 3, 16)
    many = torch.tensor([[0, 1, 2, -1, 0], [2, 2, -1, -1, 1]])
    got = torch.vmap(lambda ids: rk.road_apply_batched(x, p, q, ids, group_size=4, backend=backend))(many)
    for k in range(2):
        want = rk.road_apply_batched(x, p, q, many[k], group_size=4, backend=backend)
        torch.testing.assert_close(got[k], want)


@pytest.mark.asserts_on_device
def test_vmap_over_adapter_ids_outside_the_bank(backend):
    x, (p, q), many = make_x(5, 16), make_params("road_1", 3, 16), torch.tensor([[0, 1, 2, 3, 0]])
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):  # RuntimeError is torch's own choice there
        torch.vmap(lambda ids: rk.road_apply_batched(x, p, q, ids, group_size=4, backend=backend))(many)


def test_autocast_changes_no_dtype(backend):
    x, (theta, alpha) = make_x(2, 64, dtype=torch.float32), make_params("road_1", None, 64)
    want = rk.road_apply(x, theta, alpha, backend=backend)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert torch.equal(rk.road_apply(x, theta, alpha, backend=backend), want)
        h = torch.nn.functional.linear(x, torch.eye(64))  # bfloat16 here, under float32 parameters
        assert rk.road_apply(h, theta, alpha, backend=backend).dtype == torch.bfloat16


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
def test_checkpoint(backend, inplace, reentrant):
    theta, alpha = (t.requires_grad_() for t in make_params("road_1", None, 64))

    def layer(x):
        return rk.road_apply(x * 2, theta, alpha, inplace=inplace, backend=backend).tanh()

    results = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant)):
        x = make_x(3, 64).requires_grad_()
        theta.grad = alpha.grad = None
        run(x).sum().backward()
        results.append((x.grad, theta.grad, alpha.grad))
    assert all(map(torch.equal, *results))


def test_inference_mode(backend):
    theta, alpha = make_params("road_1", None, 64)
    x = make_x(2, 64)
    want = rk.road_apply(x, theta, alpha, backend=backend)
    with torch.inference_mode():
        assert torch.equal(rk.road_apply(x, theta, alpha, backend=backend), want)
        y = x.clone()
        assert torch.equal(rk.road_apply(y, theta, alpha, inplace=True, backend=backend), want)


def test_fake_and_meta_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, theta = torch.empty(3, 64, dtype=torch.bfloat16), torch.empty(32)
        assert rk.road_apply(x, theta, theta).shape == (3, 64)
    x, theta = torch.empty(3, 64, device="meta"), torch.empty(32, device="meta")
    assert rk.road_apply(x, theta, theta).device.type == "meta"
