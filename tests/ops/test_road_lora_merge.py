"""RoAd + LoRA merged into the weights of their layer, and unmerged."""

import pytest
import torch
from support.expected import expect_forward, f64
from support.lora_cases import DIM, GROUP, IN, SCALING, make
from support.problems import make_x

import road_kernels as rk
from road_kernels import python_fallback


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_merge_and_unmerge(backend, dtype, inplace):
    _, x, theta, alpha, a, b = make("road_2")
    weight, bias = make_x(DIM, IN, dtype=dtype, seed=5), make_x(DIM, dtype=dtype, seed=6)
    options = {"scaling": SCALING, "variant": "road_2", "group_size": GROUP, "backend": backend}
    given = weight.clone(), bias.clone()
    merged = rk.road_lora_merge(*given, theta, alpha, a, b, inplace=inplace, **options)
    assert (merged[0] is given[0]) == (merged[1] is given[1]) == inplace
    rotated = expect_forward(weight.t(), theta, alpha, "road_2", GROUP)
    exact = rotated.value.T + SCALING * f64(b) @ f64(a)
    size = rotated.magnitude.T + SCALING * abs(f64(b)) @ abs(f64(a))
    half_ulp = 0.5 * torch.finfo(dtype).eps * abs(exact) * 1.001
    spec = python_fallback.road_lora_merge(weight, bias, theta, alpha, a, b, SCALING, "road_2", GROUP)
    for of in (merged[0], spec[0]):
        assert (abs(f64(of) - exact) <= half_ulp + 4 * torch.finfo(torch.float32).eps * size).all()
    torch.testing.assert_close(merged[1], spec[1])
    if dtype == torch.float32:
        layer = torch.nn.functional.linear
        z = rk.road_lora_apply(layer(x, weight, bias), x, theta, alpha, a, b, **options)
        torch.testing.assert_close(layer(x, *merged), z, rtol=1e-5, atol=1e-5)
        back = rk.road_lora_unmerge(*merged, theta, alpha, a, b, inplace=inplace, **options)
        torch.testing.assert_close(back, (weight, bias), rtol=1e-5, atol=1e-5)
    assert rk.road_lora_merge(weight, None, theta, alpha, a, b, **options)[1] is None
