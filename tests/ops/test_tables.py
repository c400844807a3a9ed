"""road_tables against the oracle, and rotating with its tables against rotating with the parameters."""

import numpy as np
import pytest
import torch
from support import oracle
from support.backends import DEVICE
from support.expected import f64
from support.problems import DTYPES, make_params, make_x

import road_kernels as rk
from road_kernels.backends import registry
from road_kernels.ops import schemas

VARIANTS = ("road_1", "road_2", "road_4")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("group_size", [2, 6, 24])
def test_tables(variant, group_size):
    theta, alpha = make_params(variant, 3, 24)
    r1, r2 = rk.road_tables(theta, alpha, variant=variant, group_size=group_size)
    assert r1.dtype == torch.float32
    assert r1.shape == (3, 12 if variant == "road_1" else 24)
    for a in range(3):
        want = oracle.tables(f64(theta[a]), f64(alpha[a]), variant, 24, group_size)
        for got, w in zip((r1[a], r2[a]), want, strict=True):
            np.testing.assert_allclose(oracle.expand(f64(got), 24, group_size), w, rtol=4e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("parameters", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_op_of_every_backend(backend, variant, parameters, dtype):
    """One adapter, a bank, an empty bank; adjacent elements or not. Bounds: some roundings in dtype."""
    tables = registry._loaded[backend][0].tables
    theta, alpha = make_params(variant, 3, 144, dtype=parameters)
    theta = (theta * 30).float().to(parameters)  # many turns, exact in the arithmetic
    want = [oracle.tables(f64(theta[a]), f64(alpha[a]), variant, 144, 24) for a in range(3)]
    spread = torch.empty(3, 2 * theta.shape[1], dtype=parameters)[:, ::2].copy_(theta)
    for p, q, adapters in ((theta[1], alpha[1], [1]), (theta, alpha, [0, 1, 2]), (spread[1:], alpha[1:], [1, 2])):
        for k, got in enumerate(tables(p, q, variant, 24, dtype)):
            width = 72 if variant == "road_1" else 144
            assert (got.dtype, got.shape) == (dtype, (*p.shape[:-1], width))
            for row, a in zip(got.reshape(-1, width), adapters, strict=True):
                bound = 4e-7 if dtype == torch.float32 else 1e-14
                np.testing.assert_allclose(oracle.expand(f64(row), 144, 24), want[a][k], rtol=bound, atol=bound)
    empty = tables(theta[:0], alpha[:0], variant, 24, dtype)
    assert [t.shape[0] for t in empty] == [0, 0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_to_second_order(variant):
    leaves = [t.requires_grad_() for t in make_params(variant, 2, 8, dtype=torch.float64)]
    for function in (
        lambda *t: rk.road_tables(*t, variant=variant, group_size=4),
        lambda *t: schemas.tables(*t, variant, 4, torch.float64),
    ):
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)
    theta, alpha = leaves
    r1, _ = rk.road_tables(theta, alpha.detach(), variant=variant, group_size=4)
    r1.sum().backward()
    assert theta.grad is not None and alpha.grad is None


@pytest.mark.wiring
@pytest.mark.parametrize("variant", ["road_1", "road_4"])
def test_opcheck(variant):
    theta, alpha = (t.requires_grad_() for t in make_params(variant, 2, 8))
    torch.library.opcheck(schemas.tables, (theta, alpha, variant, 4, torch.float32))


def test_compile():
    theta, alpha = (t.requires_grad_() for t in make_params("road_2", 2, 8))
    function = lambda *t: rk.road_tables(*t, variant="road_2", group_size=4)  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(theta, alpha), function(theta, alpha), strict=True):
        assert torch.equal(got, want)


def test_refusals(backend):
    tables = registry._loaded[backend][0].tables
    if backend == "python":
        pytest.skip("the formula is called with checked arguments")
    theta, alpha = make_params("road_1", 2, 8)
    with pytest.raises(ValueError, match="alpha must have the shape of theta"):
        tables(theta, alpha[:1], "road_1", 4, torch.float32)
    with pytest.raises(ValueError, match="group_size"):
        tables(theta, alpha, "road_1", 6, torch.float32)
    with pytest.raises(ValueError, match="variant must be"):
        tables(theta, alpha, "table", 4, torch.float32)
    with pytest.raises(TypeError, match="theta must be float16"):
        tables(theta.int(), alpha, "road_1", 4, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tables_are_float32_or_wider(dtype):
    theta, alpha = make_params("road_1", None, 8, dtype=dtype)
    assert rk.road_tables(theta, alpha.float(), group_size=4)[0].dtype == (
        torch.float64 if dtype == torch.float64 else torch.float32
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_rotating_with_tables_equals_rotating_with_parameters(backend, variant):
    x = make_x(4, 5, 24)
    theta, alpha = (t.requires_grad_() for t in make_params(variant, 3, 24))
    ids = torch.tensor([2, 0, -1, 1])
    want = rk.road_apply_batched(x, theta, alpha, ids, variant=variant, group_size=6, backend=backend)
    tables = rk.road_tables(theta, alpha, variant=variant, group_size=6)
    got = rk.rotate_batched(x, *tables, ids, group_size=6, backend=backend)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    gz = make_x(4, 5, 24, seed=3)
    for g, w in zip(
        torch.autograd.grad(got, (theta, alpha), gz), torch.autograd.grad(want, (theta, alpha), gz), strict=True
    ):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "named"), [(torch.float32, 1.7e-3), (torch.float16, 1.7e-3), (torch.bfloat16, 2.4e-3)], ids=str
)
def test_rms_errors_that_the_docs_name(backend, dtype, named):
    """Of bfloat16 results, by the dtype of tables with scales around 1: docs/numerics.md, AdapterBank."""
    generator = torch.Generator("cpu").manual_seed(0)
    theta, alpha, x = (torch.randn(n, generator=generator, device="cpu") for n in ((512,), (512,), (64, 1024)))
    r1, r2 = (t.to(DEVICE) for t in rk.road_tables(0.3 * theta, 1 + 0.1 * alpha))
    x = x.bfloat16().to(DEVICE)
    want = rk.rotate(x.double(), r1.double(), r2.double(), backend="python")
    z = rk.rotate(x, r1.to(dtype), r2.to(dtype), backend=backend).double()
    assert abs(float((z - want).norm() / want.norm()) - named) < 1e-4
