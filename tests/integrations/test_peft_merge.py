"""Merging PEFT's RoAd adapters into their layers, and unmerging them."""

import copy
import warnings

import numpy as np
import pytest
import torch
from peft.tuners.road import layer as peft_road
from support.expected import arithmetic_of, assert_close, f64
from support.oracle import Result
from support.peft_models import VARIANTS, TwoLinears, first, make_model, matrix_of
from support.problems import DTYPES, make_x

from road_kernels.integrations import peft as road_peft


@pytest.fixture(autouse=True)
def _on():
    with road_peft.enabled():
        yield


def expect_product(matrix, t: torch.Tensor) -> Result:
    return Result(matrix @ f64(t), abs(matrix) @ abs(f64(t)))


def weights(layer):
    return layer.base_layer.weight.detach().clone(), layer.base_layer.bias.detach().clone()


@pytest.mark.parametrize("safe", [False, True], ids=["merge", "safe_merge"])
@pytest.mark.parametrize("group_size", [2, 64])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merge_is_rounded_once_and_unmerge_undoes_it(dtype, variant, group_size, safe):
    model = make_model((variant, group_size), dtype=dtype)
    layer = first(model)
    weight, bias = weights(layer)
    parameter = layer.base_layer.weight
    matrix = matrix_of(layer, "A")
    model.merge_adapter(safe_merge=safe)
    assert layer.merged_adapters == ["A"]
    assert layer.base_layer.weight is parameter
    for merged, before in ((layer.base_layer.weight, weight), (layer.base_layer.bias, bias)):
        assert merged.dtype == dtype and merged.requires_grad == before.requires_grad
        assert_close(merged, expect_product(matrix, before), arithmetic_of(dtype))
    model.unmerge_adapter()
    assert layer.merged_adapters == []
    # The merged weight is rounded once, which the norm of R^-1 amplifies, and the result once.
    lost = (np.linalg.norm(np.linalg.inv(matrix), 2) + 1) * max(torch.finfo(dtype).eps, 2e-7)
    for after, before in zip(weights(layer), (weight, bias), strict=True):
        assert (f64(after) - f64(before)).__abs__().max() <= lost * abs(f64(before)).max()


def test_no_square_matrix(monkeypatch):
    """24576 features, for which PEFT allocates 2.4 GB several times."""
    monkeypatch.setattr(peft_road, "_get_delta_weight", None)
    base = TwoLinears(2)
    base.first = torch.nn.Linear(16, 24576)
    model = make_model(base=base, targets=("first",))
    layer, x = first(model), make_x(2, 16)
    want = layer(x)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()


def test_merged_model_computes_what_the_adapter_computed():
    model = make_model(("road_4", 64), ("road_1", 2))
    model.base_model.set_adapter(["A", "B"])
    x = make_x(5, 16)
    want = model(x)
    model.merge_adapter()
    assert first(model).merged_adapters == ["A", "B"]
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)
    plain = model.merge_and_unload()
    torch.testing.assert_close(plain(x), want, rtol=1e-4, atol=1e-5)
    assert isinstance(plain.first, torch.nn.Linear)


def test_merged_by_one_code_and_unmerged_by_the_other():
    model, x = make_model(), make_x(5, 16)
    want = model(x)
    model.merge_adapter()
    road_peft.disable()
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    model.merge_adapter()
    road_peft.enable()
    model.unmerge_adapter()
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("broken", ["theta", "bias of the layer", "overflow of the bias"])
def test_safe_merge_refuses_before_anything_is_written(broken):
    model = make_model(("road_1", 64), ("road_2", 64), dtype=torch.float16)
    layer = first(model)
    match broken:
        case "theta":
            layer.road_theta["A"].data[3] = float("nan")
        case "bias of the layer":
            layer.base_layer.bias.data[3] = float("inf")
        case "overflow of the bias":
            layer.base_layer.bias.data[:] = 65000
    what = "weights" if broken == "theta" else "bias"
    weight, bias = weights(layer)
    with pytest.raises(ValueError, match=f"NaNs detected in the merged {what}. The adapter A seems to be broken"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, weight)
    assert torch.equal(layer.base_layer.bias, bias)
    assert not layer.merged
    layer.merge()  # without safe_merge nothing is checked
    assert layer.merged


def test_safe_merge_of_several_keeps_those_before_the_broken_one():
    model = make_model(("road_1", 64), ("road_2", 64))
    layer = first(model)
    layer.road_alpha["B"].data[0] = float("inf")
    x = make_x(2, 16)
    alone = layer(x)
    with pytest.raises(ValueError, match="The adapter B seems to be broken"):
        layer.merge(safe_merge=True, adapter_names=["A", "B"])
    assert layer.merged_adapters == ["A"]
    torch.testing.assert_close(layer(x), alone, rtol=1e-4, atol=1e-5)


def test_unmerge_of_a_singular_adapter_is_refused_and_leaves_it_merged():
    model = make_model(("road_2", 64), ("road_1", 64))
    layer = first(model)
    layer.road_alpha["A"].data[5] = 0
    layer.road_alpha["A"].data[37] = 0
    layer.merge(adapter_names=["A", "B"])
    with pytest.raises(torch.linalg.LinAlgError, match=r"cannot unmerge adapter A: .* \(5, 37\)"):
        layer.unmerge()
    assert layer.merged_adapters == ["A"]


def test_same_warnings_and_errors_as_peft():
    def run():
        layer = first(make_model(("road_1", 64), ("road_2", 64)))
        said = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            layer.unmerge()
            layer.merge()
            layer.merge()
            layer.merge(adapter_names=["A", "B"])
            layer.merge(adapter_names=[])
            layer.merge(adapter_names=["nobody"])
            said = [str(w.message) for w in caught]
        try:
            layer.merge(adapter_names="A")
        except (TypeError, ValueError) as error:  # the type depends on PEFT's version
            said.append((type(error), str(error)))
        return said, layer.merged_adapters

    ours = run()
    road_peft.disable()
    assert run() == ours
    assert len(ours[0]) >= 4


def test_a_state_dict_taken_before_a_merge_keeps_the_old_weights():
    layer = first(make_model())
    weight, bias = weights(layer)
    state = layer.base_layer.state_dict()
    layer.merge()
    assert not torch.equal(layer.base_layer.weight, weight)
    layer.unmerge()
    assert torch.equal(state["weight"], weight)
    assert torch.equal(state["bias"], bias)


def test_in_place_merge_uses_the_memory_of_the_weights():
    model = make_model(dtype=torch.bfloat16)
    layer = first(model)
    other = copy.deepcopy(model)
    other.merge_adapter()
    address = layer.base_layer.weight.data_ptr()
    with road_peft.enabled(inplace=True):
        model.merge_adapter()
        assert layer.base_layer.weight.data_ptr() == address
        assert torch.equal(layer.base_layer.weight, first(other).base_layer.weight)
        assert torch.equal(layer.base_layer.bias, first(other).base_layer.bias)
        model.unmerge_adapter()
        other.unmerge_adapter()
        assert layer.base_layer.weight.data_ptr() == address
        assert torch.equal(layer.base_layer.weight, first(other).base_layer.weight)
        layer.road_theta["A"].data[0] = float("nan")
        before = layer.base_layer.weight.clone()
        with pytest.raises(ValueError, match="seems to be broken"):
            layer.merge(safe_merge=True)
        assert torch.equal(layer.base_layer.weight, before)


def test_weights_of_other_layouts():
    model = make_model(("road_2", 64))
    layer = first(model)
    weight, bias = weights(layer)
    layer.base_layer.weight.data = weight.t().contiguous().t()  # as when a checkpoint of transposed weights is loaded
    layer.merge()
    assert_close(layer.base_layer.weight, expect_product(matrix_of(layer, "A"), weight), torch.float32)
    assert_close(layer.base_layer.bias, expect_product(matrix_of(layer, "A"), bias), torch.float32)


def test_weights_that_are_subclasses_are_left_to_peft():
    class Own(torch.Tensor):
        pass

    layer = first(make_model())
    weight, _ = weights(layer)
    layer.base_layer.weight.data = weight.as_subclass(Own)
    layer.base_layer.weight = torch.nn.Parameter(weight.as_subclass(Own))
    assert type(layer.base_layer.weight.data) is Own
    layer.merge()
    want = matrix_of(layer, "A") @ f64(weight)
    np.testing.assert_allclose(f64(layer.base_layer.weight.as_subclass(torch.Tensor)), want, rtol=1e-4, atol=1e-5)
    layer.unmerge()
    np.testing.assert_allclose(
        f64(layer.base_layer.weight.as_subclass(torch.Tensor)), f64(weight), rtol=1e-3, atol=1e-4
    )
