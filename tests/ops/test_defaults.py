"""Nothing depends on the default dtype or device of the moment, or on being called in inference mode."""

import pytest
import torch
from support.defaults import MODES
from support.problems import FORMS, apply, make_params, make_x

import road_kernels as rk
from road_kernels import Adapter, AdapterBank

pytestmark = pytest.mark.wiring

IDS = torch.tensor([2, -1, 0, 2])


def same(got, want):
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype and g.device == w.device
        assert torch.equal(g, w)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", FORMS)
def test_ops(backend, form, mode):
    x, gz = make_x(4, 16, dtype=torch.bfloat16), make_x(4, 16, dtype=torch.bfloat16, seed=1)
    p, q = make_params(form, 3, 16)

    def run():
        z = apply(x, p, q, form, IDS, group_size=8, backend=backend)
        if torch.is_inference_mode_enabled():
            return (z,)
        leaves = [t.clone().requires_grad_() for t in (x, p, q)]
        results = [z]
        for inplace in (False, True):
            y = apply(leaves[0] * 1, *leaves[1:], form, IDS, group_size=8, inplace=inplace, backend=backend)
            results += torch.autograd.grad(y, leaves, gz)
        return results

    want = run()
    with MODES[mode]():
        got = run()
    same(got, want[: len(got)])


@pytest.mark.parametrize("mode", MODES)
def test_tables_merge_and_algebra(mode):
    theta, alpha = make_params("road_4", None, 16)
    first, second = (make_params("table", None, 16, seed=seed) for seed in (2, 3))
    weight, bias = make_x(16, 4, dtype=torch.bfloat16), make_x(16, dtype=torch.bfloat16)

    def run():
        layer = {"variant": "road_4", "group_size": 8}
        merged = rk.road_merge(weight, bias, theta, alpha, **layer)
        return (
            *rk.road_tables(theta, alpha, **layer),
            *merged,
            *rk.road_unmerge(*merged, theta, alpha, **layer),
            *rk.compose(first, second, dim=16, group_size=8),
            *rk.invert(first, dim=16, group_size=8),
            *rk.combine([(first, range(4)), (second, range(4, 8))], dim=16, group_size=8),
            *rk.tables_to_road4(first, dim=16, group_size=8),
            rk.magnitude_change(make_x(4, 16), make_x(4, 16, seed=1)),
        )

    want = run()
    with MODES[mode]():
        got = run()
    same(got, want)


@pytest.mark.parametrize("mode", MODES)
def test_bank(mode):
    device = make_x(1).device
    layers = {"a": make_params("road_1", None, 512, dtype=torch.bfloat16)}
    x = make_x(2, 512)

    def run():
        bank = AdapterBank({"a": 512, "c": 8}, capacity=3, group_size=8, device=device)
        bank.load("one", Adapter(layers, group_size=8), partial=True)
        bank.update("one", layers, partial=True)
        ids = bank.ids(["one", None])
        return bank.rotate("a", x, ids), bank.ids_of_slots(ids), bank.rotate("c", x[:, :8], ids)

    want = run()
    with MODES[mode]():
        got = run()
    same(got, want)
