"""Gradients of RoAd + LoRA: by autograd, in and out of place, by torch.func and under torch.compile."""

import pytest
import torch
from support.lora_cases import DIM, GROUP, SCALING, VARIANTS, leaves_of, make
from support.problems import make_params, make_x

import road_kernels as rk


@pytest.mark.numerical
@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck(backend, variant, inplace):
    h, x, theta, alpha = (
        make_x(2, 4, dtype=torch.float64),
        make_x(2, 3, dtype=torch.float64, seed=1),
        *make_params(variant, None, 4, dtype=torch.float64),
    )
    a, b = make_x(2, 3, dtype=torch.float64, seed=2), make_x(4, 2, dtype=torch.float64, seed=3)

    def f(h, *rest):
        options = {"scaling": 0.5, "variant": variant, "group_size": 4, "inplace": inplace, "backend": backend}
        return rk.road_lora_apply(h * 1, *rest, **options)

    leaves = leaves_of((h, x, theta, alpha, a, b))
    assert torch.autograd.gradcheck(f, leaves)
    assert torch.autograd.gradgradcheck(f, leaves)


@pytest.mark.numerical
@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
def test_gradcheck_batched(inplace):
    h, x = make_x(3, 4, dtype=torch.float64), make_x(3, 3, dtype=torch.float64, seed=1)
    theta, alpha = make_params("road_1", 2, 4, dtype=torch.float64)
    a, b = make_x(2, 2, 3, dtype=torch.float64, seed=2), make_x(2, 4, 2, dtype=torch.float64, seed=3)
    ids = torch.tensor([1, -1, 0]), torch.tensor([-1, 1, 1])
    scaling = torch.tensor([0.5, 2.0], dtype=torch.float64)

    def f(h, x, theta, alpha, a, b, scaling):
        options = {"scaling": scaling, "group_size": 4, "inplace": inplace}
        return rk.road_lora_apply_batched(h * 1, x, theta, alpha, a, b, *ids, **options)

    leaves = leaves_of((h, x, theta, alpha, a, b, scaling))
    assert torch.autograd.gradcheck(f, leaves)
    assert torch.autograd.gradgradcheck(f, leaves)


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_gradients_of_mixed_dtypes(backend, batched, inplace):
    tensors = make("road_4", dtype=torch.bfloat16, bank=(3, 3) if batched else None)
    ids = (torch.tensor([2, -1, 0, 1, 2, -1]),) if batched else ()
    apply = rk.road_lora_apply_batched if batched else rk.road_lora_apply
    options = {"scaling": SCALING, "variant": "road_4", "group_size": GROUP, "inplace": inplace, "backend": backend}
    gz = make_x(6, 5, DIM, dtype=torch.bfloat16, seed=9)
    leaves, exact = leaves_of(tensors), leaves_of([t.double() for t in tensors])
    apply(leaves[0] * 1, *leaves[1:], *ids, **options).backward(gz)
    apply(exact[0] * 1, *exact[1:], *ids, **options).backward(gz.double())
    for got, want in zip(leaves, exact, strict=True):
        assert got.grad.dtype == got.dtype
        error = (got.grad.double() - want.grad).norm() / want.grad.norm()
        assert error < 8e-3, error  # two units of bfloat16


@pytest.mark.parametrize("wanted", range(6))
def test_nothing_is_computed_for_what_asks_for_no_gradient(wanted):
    tensors = make()
    for inplace in (False, True):
        leaves = [t.clone().requires_grad_(k == wanted) for k, t in enumerate(tensors)]
        rk.road_lora_apply(leaves[0] * 1, *leaves[1:], group_size=GROUP, inplace=inplace).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [k == wanted for k in range(6)]


@pytest.mark.wiring
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_transforms_and_compile(batched):
    h, x, *parameters = make(bank=(3, 3) if batched else None)
    ids = (torch.tensor([2, -1, 0, 1, 2, -1]),) if batched else ()
    apply = rk.road_lora_apply_batched if batched else rk.road_lora_apply

    def f(h, x, *parameters, inplace=False):
        return apply(h * 1, x, *parameters, *ids, scaling=SCALING, group_size=GROUP, inplace=inplace)

    want = f(h, x, *parameters)
    leaves = leaves_of((h, x, *parameters))
    grads = torch.autograd.grad(f(*leaves).square().sum(), leaves)
    got = torch.func.grad(lambda *t: f(*t).square().sum(), argnums=tuple(range(6)))(h, x, *parameters)
    for g, w in zip(got, grads, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)
    stacked = torch.vmap(f, (0, 0, *[None] * 4))(torch.stack((h, h)), torch.stack((x, x)), *parameters)
    torch.testing.assert_close(stacked[1], want)
    for inplace in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(lambda *t, i=inplace: f(*t, inplace=i), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(h, x, *parameters), want)
        compiled_grads = torch.autograd.grad(compiled(*leaves).square().sum(), leaves)
        for g, w in zip(compiled_grads, grads, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)
