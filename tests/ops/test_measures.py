"""magnitude_change and angular_displacement, per token."""

import numpy as np
import pytest
import torch
from support.expected import f64
from support.problems import make_params, make_x

import road_kernels as rk


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_against_their_definition(dtype):
    x, x0 = make_x(2, 3, 24, dtype=dtype), make_x(2, 3, 24, dtype=dtype, seed=1)
    a, b = f64(x), f64(x0)
    norm, norm0 = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    got = rk.magnitude_change(x, x0), rk.angular_displacement(x, x0)
    for value, want in zip(got, ((norm - norm0) / norm0, (a * b).sum(-1) / (norm * norm0)), strict=True):
        assert value.shape == (2, 3)
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        np.testing.assert_allclose(f64(value), want, rtol=1e-5, atol=1e-6)


def test_what_a_rotation_and_a_scale_do():
    x = make_x(5, 24)
    turned = rk.road_apply(x, torch.full((12,), 0.5), torch.ones(12), group_size=6)
    torch.testing.assert_close(rk.magnitude_change(turned, x), torch.zeros(5), rtol=0, atol=1e-6)
    torch.testing.assert_close(rk.angular_displacement(turned, x), torch.full((5,), 0.5).cos(), rtol=0, atol=1e-6)
    scaled = rk.road_apply(x, torch.zeros(12), torch.full((12,), 1.25), group_size=6)
    torch.testing.assert_close(rk.magnitude_change(scaled, x), torch.full((5,), 0.25))
    torch.testing.assert_close(rk.angular_displacement(scaled, x), torch.ones(5))


def test_large_values_zeros_and_gradients():
    x = torch.full((1, 4), 1e25)
    torch.testing.assert_close(rk.angular_displacement(x, x), torch.ones(1))
    zero, one = torch.zeros(1, 4), torch.ones(1, 4)
    assert rk.magnitude_change(one, zero).isposinf() and rk.magnitude_change(zero, zero).isnan()
    assert rk.magnitude_change(zero, one) == -1 and rk.angular_displacement(one, zero).isnan()
    theta, alpha = (t.requires_grad_() for t in make_params("road_1", None, 24))
    z = rk.road_apply(make_x(3, 24), theta, alpha, group_size=6)
    (rk.magnitude_change(z, make_x(3, 24)) + rk.angular_displacement(z, make_x(3, 24))).sum().backward()
    assert theta.grad.abs().min() > 0 and alpha.grad.abs().min() > 0


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"one shape .* got \[2, 4\] and \[2, 5\]"):
        rk.magnitude_change(torch.ones(2, 4), torch.ones(2, 5))
    with pytest.raises(TypeError, match="x0 must be float16"):
        rk.angular_displacement(torch.ones(2, 4), torch.ones(2, 4, dtype=torch.int64))
