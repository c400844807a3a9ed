"""Mixed batches of a PEFT model, one adapter per sample by adapter_names: results and calls."""

import itertools

import pytest
import torch
from support.expected import arithmetic_of, assert_close
from support.peft_models import (
    BASE,
    NAMES,
    VARIANTS,
    config,
    expect_mixed,
    first,
    in_float64,
    make_model,
    mixed_model,
)
from support.problems import make_x

from road_kernels.integrations import peft as road_peft
from road_kernels.integrations.peft import _mixed_batch

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.fixture(autouse=True)
def _on():
    with road_peft.enabled():
        yield


@pytest.fixture
def calls(monkeypatch):
    """Records (number of adapters, inplace) of each batched call."""
    made = []
    function = _mixed_batch.road_apply_batched

    def counted(x, theta, *args, inplace, **kwargs):
        made.append((len(theta), inplace))
        return function(x, theta, *args, inplace=inplace, **kwargs)

    monkeypatch.setattr(_mixed_batch, "road_apply_batched", counted)
    return made


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_call_for_all_variants(calls, dtype):
    """PEFT itself raises for float16 and bfloat16, because its index_put has float32 values."""
    layer = first(mixed_model(dtype=dtype))
    x = make_x(6, 5, 16, dtype=dtype)
    with torch.no_grad():
        z = layer(x, adapter_names=NAMES)
    assert calls == [(4, True)]
    assert z.dtype == dtype
    h, rows = expect_mixed(layer, x, NAMES)
    for b, row in enumerate(rows):
        assert_close(z[b], row, arithmetic_of(dtype))
    assert torch.equal(z[2], h[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variants", [*itertools.combinations(VARIANTS, 2), *((v, v) for v in VARIANTS)], ids=str)
def test_each_sample_gets_bit_for_bit_what_it_gets_alone(variants, dtype):
    model = mixed_model(*((v, 64) for v in variants), dtype=dtype)
    x = make_x(4, 3, 16, dtype=dtype)
    names = ["B", "A", "A", "B"]
    with torch.no_grad():
        together = model(x, adapter_names=names)
        for b, name in enumerate(names):
            model.base_model.set_adapter([name])
            assert torch.equal(together[b], model(x)[b])  # of all of x, because matmul itself depends on the batch


@pytest.mark.parametrize("group_sizes", [(2, 2), (2, 64), (64, 128)], ids=str)
def test_one_call_per_group_size(calls, group_sizes):
    layer = first(mixed_model(*(("road_1", g) for g in group_sizes), dtype=torch.bfloat16))
    x = make_x(6, 16, dtype=torch.bfloat16)
    names = ["A", "B", BASE, "B", "A", "A"]
    with torch.no_grad():
        z = layer(x, adapter_names=names)
    assert len(calls) == len(set(group_sizes))
    for b, row in enumerate(expect_mixed(layer, x, names)[1]):
        assert_close(z[b], row, torch.float32)


def test_narrow_layers():
    layer = first(mixed_model(*((v, 2) for v in VARIANTS), width=2))
    x, names = make_x(4, 16), ["A", "B", "C", BASE]
    for b, row in enumerate(expect_mixed(layer, x, names)[1]):
        assert_close(layer(x, adapter_names=names)[b], row, torch.float32)


def test_same_as_peft_where_peft_can():
    model = mixed_model(("road_1", 64), ("road_4", 2), ("road_2", 128))
    x, names = make_x(5, 3, 16), ["C", "A", BASE, "B", "C"]
    ours = model(x, adapter_names=names)
    road_peft.disable()
    torch.testing.assert_close(ours, model(x, adapter_names=names), rtol=1e-5, atol=1e-5)


def test_only_base_rows_and_adapters_that_a_layer_does_not_have(calls):
    model = make_model().eval()
    model.add_adapter("B", config(targets=("second",)))
    x = make_x(3, 16)
    layer = first(model)
    assert torch.equal(layer(x, adapter_names=[BASE] * 3), layer.base_layer(x))
    assert torch.equal(layer(x, adapter_names=["B", BASE, "B"]), layer.base_layer(x))
    assert calls == []
    model(x, adapter_names=["A", "B", BASE])
    assert [count for count, _ in calls] == [1, 2]


def test_empty_batch():
    assert first(mixed_model())(make_x(0, 3, 16), adapter_names=[]).shape == (0, 3, 128)


def test_gradients_outside_training_mode():
    model = mixed_model(("road_1", 64), ("road_4", 64), ("road_2", 2))
    model.base_model.set_adapter(["A", "B", "C"])  # PEFT trains the active adapters
    exact = in_float64(model)
    x, gz, names = make_x(6, 16), make_x(6, 128, seed=4), ["A", "B", BASE, "C", "A", "B"]
    model(x, adapter_names=names).backward(gz)
    road_peft.disable()
    exact(x.double(), adapter_names=names).backward(gz.double())
    pairs = [(p, q) for p, q in zip(model.parameters(), exact.parameters(), strict=True) if p.requires_grad]
    assert len(pairs) == 12
    for p, q in pairs:
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-4, atol=1e-5)


def test_adapters_of_several_dtypes():
    model = mixed_model(dtype=torch.bfloat16)
    layer, x = first(model), make_x(6, 16, dtype=torch.bfloat16)
    for parameters in (layer.road_theta, layer.road_alpha):
        parameters["C"] = torch.nn.Parameter(parameters["C"].detach().to(torch.bfloat16))
        parameters["B"] = torch.nn.Parameter(parameters["B"].detach().double())
    z = layer(x, adapter_names=NAMES)
    assert z.dtype == torch.bfloat16
    for b, row in enumerate(expect_mixed(layer, x, NAMES)[1]):
        assert_close(z[b], row, torch.float32)


def test_errors_are_those_of_peft():
    model, x = mixed_model(), make_x(6, 16)
    messages = []
    for on in (True, False):
        (road_peft.enable if on else road_peft.disable)()
        for names in (["A"], ["A"] * 5 + ["nobody"]):
            with pytest.raises(ValueError) as error:
                model(x, adapter_names=names)
            messages.append(str(error.value))
        model = mixed_model()  # PEFT leaves its hooks on a model whose forward has raised
        model.merge_adapter()
        with pytest.raises(ValueError, match="unmerge_adapter") as error:
            model(x, adapter_names=NAMES)
        messages.append(str(error.value))
        model = mixed_model().train()
        with pytest.raises(ValueError, match="training mode"):
            model(x, adapter_names=NAMES)
        model.eval()
    assert messages[:3] == messages[3:]
    assert "Length of `adapter_names`" in messages[0] and "nobody" in messages[1]


def test_disabled_adapters_are_not_applied():
    model, x = mixed_model(), make_x(6, 16)
    layer = first(model)
    with model.disable_adapter():
        assert torch.equal(layer(x, adapter_names=NAMES), layer.base_layer(x))
