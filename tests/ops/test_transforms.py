"""torch.func, autocast, checkpointing, inference mode, and gradients of the ops themselves."""

import pytest
import torch
from support.backends import DEVICE
from support.problems import FORMS, apply, make_params, make_x
from torch.utils.checkpoint import checkpoint

import road_kernels as rk

pytestmark = pytest.mark.wiring

IDS = torch.tensor([2, -1, 0, 2])
OPS = torch.ops.road_kernels


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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_torch_func(backend, form, batched):
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
    call = torch.vmap(lambda ids, x: rk.road_apply_batched(x, p, q, ids, group_size=4, backend=backend), (0, None))
    for wrapped in (call, torch.func.functionalize(call), torch.func.jacfwd(call, argnums=1)):
        with pytest.raises(IndexError, match=r"adapter_ids holds 3 \(flat position 3\), but must hold -1"):
            wrapped(many, x)


def test_autocast_changes_no_dtype(backend):
    x, (theta, alpha) = make_x(2, 64, dtype=torch.float32), make_params("road_1", None, 64)
    want = rk.road_apply(x, theta, alpha, backend=backend)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert torch.equal(rk.road_apply(x, theta, alpha, backend=backend), want)
        h = torch.nn.functional.linear(x, torch.eye(64))  # bfloat16, with float32 parameters
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
