"""Refusals of the fused ops and of RoAd + LoRA that come before any write or read: found by attacking them."""

import pytest
import torch
from support.fused_cases import make
from support.problems import make_x

import road_kernels as rk


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads"), [(2, 2**61 + 1), (2**62 + 2, 1), (2**62 - 2, 2**61 + 3), (2**63 - 2, 2**62 + 3)]
)
@pytest.mark.parametrize("inplace", [False, True])
def test_numbers_of_heads_that_overflow(backend, num_heads, num_kv_heads, inplace):
    """Their product with head_dim is the width of qkv, modulo 2^64."""
    x, r, cache = make_x(2, 16), torch.ones(16), torch.ones(3, 4)
    with pytest.raises(ValueError, match="the last dimension of qkv must be"):
        rk.rotate_rope(
            x,
            torch.zeros(2, dtype=torch.int64),
            cache,
            r,
            r,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=4,
            group_size=4,
            inplace=inplace,
            backend=backend,
        )


def test_one_tensor_for_x_and_residual_while_traced():
    case = make("add_rms_norm", (4,), 16, 8)
    f = torch.compile(lambda x: case.run_on(x, x, case.args[1], case.r1, case.r2, inplace=True), backend="eager")
    with pytest.raises(ValueError, match="residual shares memory with x"):
        f(case.x)


def test_a_residual_of_inference_mode(backend):
    case = make("add_rms_norm", (4,), 16, 8)
    with torch.inference_mode():
        residual = case.args[0].clone()
    before = case.x.clone(), residual.clone()
    case.args = residual, case.args[1]
    with pytest.raises(RuntimeError, match="inference"):
        case.run(inplace=True, backend=backend)
    assert torch.equal(case.x, before[0]) and torch.equal(residual, before[1])


def lora(rows=8, width=8, bank=None):
    theta, alpha = torch.full((width // 2,), 0.3), torch.ones(width // 2)
    a, b = make_x(3, 5, seed=3), make_x(width, 3, seed=4)
    if bank:
        theta, alpha, a, b = (t.expand(bank, *t.shape).contiguous() for t in (theta, alpha, a, b))
    return make_x(rows, width), make_x(rows, 5, seed=2), theta, alpha, a, b


@pytest.mark.parametrize("records", [False, True])
def test_lora_factors_in_the_memory_of_h(records):
    h, x, theta, alpha, a, _ = lora()
    before = h.clone()
    theta.requires_grad_(records)
    with pytest.raises(ValueError, match="h shares memory"):
        rk.road_lora_apply(h, x, theta, alpha, a, h[:, :3], group_size=8, inplace=True)
    assert torch.equal(h, before)


def test_scales_in_the_memory_of_h():
    h, *rest = lora(rows=4, bank=4)
    before = h.clone()
    with pytest.raises(ValueError, match="h shares memory"):
        rk.road_lora_apply_batched(h, *rest, torch.arange(4), scaling=h[0, :4], group_size=8, inplace=True)
    assert torch.equal(h, before)


@pytest.mark.parametrize("scaling", [1e300, 2**70, 10**400, -(2**64)], ids=["1e300", "2**70", "10**400", "-2**64"])
def test_scalings_that_no_kernel_takes(scaling):
    h, *rest = lora()
    before = h.clone()
    for call in (
        lambda: rk.road_lora_apply(h, *rest, scaling=scaling, group_size=8, inplace=True),
        lambda: rk.road_lora_merge(make_x(8, 5), None, *rest[1:], scaling=scaling, group_size=8),
    ):
        with pytest.raises(ValueError, match="scaling must"):
            call()
    assert torch.equal(h, before)


def test_lora_arguments_that_are_missing():
    h, x, theta, alpha, a, b = lora()
    with pytest.raises(TypeError, match=r"theta must be a torch\.Tensor, got NoneType"):
        rk.road_lora_apply(h, x, None, alpha, a, b, group_size=8, inplace=True)
    with pytest.raises(ValueError, match="x must have features"):
        rk.road_lora_apply(h, x[:, :0], theta, alpha, a[:, :0], b, group_size=8, inplace=True)


def test_lora_of_meta_tensors():
    h, *rest = (t.to("meta") for t in lora())
    assert rk.road_lora_apply(h, *rest, group_size=8).shape == (8, 8)


@pytest.mark.parametrize("eps", [10**400, 10**39], ids=["10**400", "10**39"])
def test_an_eps_that_is_no_float(backend, eps):
    case = make("add_rms_norm", (4,), 16, 8)
    case.keywords["eps"] = eps
    with pytest.raises(ValueError, match="eps must be a float32 number"):
        case.run(backend=backend)
