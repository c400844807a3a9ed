"""road_tables against the oracle, and rotating with its tables against rotating with the parameters."""

import numpy as np
import pytest
import torch
from support import oracle
from support.expected import f64
from support.problems import DTYPES, make_params, make_x

import road_kernels as rk

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
