"""PEFT's RoAd layers on the kernels with several active adapters: one rotation where their group sizes agree."""

import pytest
import torch
from support.expected import assert_close
from support.peft_models import expect_rotated, first, in_float64, make_model, matrix_of
from support.problems import make_x

from road_kernels.integrations import peft as road_peft

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_adapters_are_one_rotation_rounded_once(calls, dtype):
    model = make_model(("road_1", 64), ("road_4", 64), ("road_2", 64), dtype=dtype)
    model.base_model.set_adapter(["A", "C", "B"])
    layer, x = first(model), make_x(5, 16, dtype=dtype)
    with road_peft.enabled():
        z = layer(x)
    assert calls == ["rotate"]
    assert_close(z, expect_rotated(layer.base_layer(x), *(matrix_of(layer, n) for n in "ACB")), torch.float32, units=12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_adapters_of_different_group_sizes(calls, dtype):
    model = make_model(("road_1", 64), ("road_2", 2), ("road_1", 2), ("road_1", 64), dtype=dtype)
    model.base_model.set_adapter(["A", "B", "C", "D"])
    layer, x = first(model), make_x(5, 16, dtype=dtype)
    with road_peft.enabled():
        z = layer(x)
    assert calls == ["rotate"] * 3
    assert z.dtype == dtype
    matrices = [matrix_of(layer, n) for n in "ABCD"]
    assert_close(z, expect_rotated(layer.base_layer(x), *matrices), torch.float32, units=16)


@pytest.mark.parametrize("active", ["A", "AB"])
def test_float64_models_compute_in_float64_with_any_adapter(active):
    model = make_model(("road_1", 64), ("road_4", 64), dtype=torch.float64)
    model.base_model.set_adapter(list(active))
    layer, x = first(model), make_x(5, 16, dtype=torch.float64)
    for parameters in (layer.road_theta, layer.road_alpha):
        parameters.to(torch.float32)
    with road_peft.enabled():
        z = layer(x)
    want = expect_rotated(layer.base_layer(x), *(matrix_of(layer, n) for n in active))
    assert_close(z, want, torch.float64, units=8)


def test_several_adapters_are_trained_together():
    model = make_model(("road_1", 64), ("road_4", 64), ("road_2", 2))
    model.base_model.set_adapter(["A", "B", "C"])
    exact = in_float64(model)
    x, gz = make_x(7, 16), make_x(7, 128, seed=5)
    exact(x.double()).backward(gz.double())
    with road_peft.enabled():
        model(x).backward(gz)
    pairs = [(p, q) for p, q in zip(model.parameters(), exact.parameters(), strict=True) if p.requires_grad]
    assert len(pairs) == 12
    for p, q in pairs:
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-4, atol=1e-5)
