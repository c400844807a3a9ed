"""RoAd + LoRA, one adapter or one of each per row: numbers, layouts and what a call costs."""

import pytest
import torch
from support.expected import expect_forward
from support.lora_cases import DIM, GROUP, IN, RANK, SCALING, VARIANTS, assert_right, make, products
from support.problems import DTYPES, make_x

import road_kernels as rk
from road_kernels import python_fallback


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward(backend, dtype, parameters, variant, inplace):
    h, x, theta, alpha, a, b = make(variant, dtype=dtype, parameters=parameters)
    want = expect_forward(h, theta, alpha, variant, GROUP), products(x, a, b)
    given = h.clone()
    options = {"scaling": SCALING, "variant": variant, "group_size": GROUP, "backend": backend}
    z = rk.road_lora_apply(given, x, theta, alpha, a, b, inplace=inplace, **options)
    assert (z is given) == inplace
    assert_right(z, h, *want)
    spec = python_fallback.road_lora_apply(h, x, theta, alpha, a, b, SCALING, variant, GROUP)
    assert_right(spec, h, *want)


IDS = {
    "one id": (torch.tensor([2, 2, 2, 2, 2, 2]), None),
    "per request": (torch.tensor([2, -1, 0, 1, 2, -1]), None),
    "two ids": (torch.tensor([2, -1, 0, 1, 2, -1]), torch.tensor([-1, 1, 1, 0, 2, -1], dtype=torch.int32)),
    "per token": (torch.arange(30).view(6, 5) % 4 - 1, torch.arange(29, -1, -1).view(6, 5) % 4 - 1),
}


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_batched(backend, dtype, kind, inplace):
    h, x, *parameters = make("road_2", dtype=dtype, bank=(3, 3))
    ids, lora_ids = (t if t is None else t.to(h.device) for t in IDS[kind])
    scaling = torch.tensor([0.5, 1.5, -1.0], device=h.device)
    theta, alpha, a, b = parameters
    for scale in (SCALING, scaling):
        given = h.clone()
        options = {"scaling": scale, "variant": "road_2", "group_size": GROUP}
        args = x, theta, alpha, a, b, ids, lora_ids
        z = rk.road_lora_apply_batched(given, *args, inplace=inplace, backend=backend, **options)
        assert (z is given) == inplace
        of_lora = ids if lora_ids is None else lora_ids
        want = expect_forward(h, theta, alpha, "road_2", GROUP, ids), products(x, a, b, of_lora, scale)
        assert_right(z, h, *want)
        assert_right(python_fallback.road_lora_apply_batched(h, *args, **options), h, *want)
        none = (ids == -1) & (of_lora == -1)
        assert torch.equal(z[none], h[none])


@pytest.mark.parametrize("way", ["groups", "gathering"])
def test_rows_without_lora_do_not_see_the_others(monkeypatch, way):
    """Nor those of a LoRA the NaNs of another's."""
    from road_kernels.functional import lora_products

    if way == "gathering":
        monkeypatch.setattr(lora_products, "_by_groups", lora_products._by_gathering)
        monkeypatch.setattr(lora_products, "_GATHERED", 1)  # in several steps
    h, x, theta, alpha, a, b = make(bank=(3, 3))
    ids = torch.tensor([0, -1, 1, 2, -1, 2])
    a[0], b[0], x[1] = float("nan"), float("nan"), float("inf")
    z = rk.road_lora_apply_batched(h, x, theta, alpha, a, b, ids, group_size=GROUP)
    rotated = rk.road_apply_batched(h, theta, alpha, ids, group_size=GROUP)
    assert z[0].isnan().all() and z[1:].isfinite().all()
    assert torch.equal(z[[1, 4]], h[[1, 4]])
    product = x[5] @ a[2].t() @ b[2].t()
    torch.testing.assert_close(z[5], rotated[5] + product)


@pytest.mark.wiring
@pytest.mark.cpu_only
@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
def test_no_further_pass(inplace):
    """One rotation, two products, the second into memory that is there."""
    h, x, *rest = make()
    rows = h.shape[0] * h.shape[1]
    with torch.no_grad(), torch.profiler.profile(record_shapes=True, profile_memory=True) as profile:
        rk.road_lora_apply(h, x, *rest, group_size=GROUP, inplace=inplace)
    ops = [event.name for event in profile.events()]
    assert ops.count("aten::addmm_") == ops.count("aten::mm") == 1
    assert not {"aten::add", "aten::add_", "aten::copy_", "aten::mul"} & set(ops)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    assert allocated == 4 * (rows * RANK + (0 if inplace else h.numel()))


def test_strides(backend):
    """A slice of a packed output in place, x expanded, factors transposed."""
    _, x, theta, alpha, a, b = make()
    packed = make_x(6, 5, 3 * DIM, seed=7)
    before = packed.clone()
    x = x[:1].expand(6, 5, IN)
    a, b = a.t().contiguous().t(), b.t().contiguous().t()
    middle = packed[..., DIM : 2 * DIM]
    want = rk.road_lora_apply(middle.clone(), x.contiguous(), theta, alpha, a, b, group_size=GROUP)
    for slices, result in ((middle, want), (packed.transpose(0, 1)[..., DIM : 2 * DIM], want.transpose(0, 1))):
        packed.copy_(before)
        seen = x if slices is middle else x.transpose(0, 1)
        rk.road_lora_apply(slices, seen, theta, alpha, a, b, group_size=GROUP, inplace=True, backend=backend)
        torch.testing.assert_close(slices, result)
        assert torch.equal(packed[..., :DIM], before[..., :DIM])
        assert torch.equal(packed[..., 2 * DIM :], before[..., 2 * DIM :])


@pytest.mark.parametrize("rows", [(0,), (0, 3), (1,)], ids=str)
def test_few_rows(rows):
    h, x, theta, alpha, a, b = make(leading=rows)
    assert rk.road_lora_apply(h, x, theta, alpha, a, b, group_size=GROUP).shape == h.shape
    bank = [t[None] for t in (theta, alpha, a, b)]
    ids = torch.zeros(rows[:1], dtype=torch.long)
    batched = rk.road_lora_apply_batched(h, x, *bank, ids, group_size=GROUP)
    torch.testing.assert_close(batched, rk.road_lora_apply(h, x, theta, alpha, a, b, group_size=GROUP))


def test_autocast():
    h, x, *parameters = make()
    want = rk.road_lora_apply(h, x, *parameters, group_size=GROUP)
    with torch.autocast(h.device.type, dtype=torch.bfloat16):
        assert torch.equal(rk.road_lora_apply(h, x, *parameters, group_size=GROUP), want)
        z = rk.road_lora_apply(h.bfloat16(), x, *parameters, group_size=GROUP)
    assert z.dtype == torch.bfloat16
