"""PEFT's 4-bit and 8-bit RoAd layers on the kernels, with bitsandbytes on the CPU."""

import copy

import pytest
import torch
from support.expected import assert_close, f64
from support.peft_models import TwoLinears, expect_rotated, first, make_model, matrix_of
from support.problems import make_x

from road_kernels.integrations import peft as road_peft

bnb = pytest.importorskip(
    "bitsandbytes", reason="bitsandbytes is not installed, and without it PEFT has no quantized RoAd layers"
)

from peft.tuners.road import bnb as peft_bnb  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(Merge|Unmerge) .* module to"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
]


def quantized(bits: int, *adapters):
    base = TwoLinears(inputs=64)  # whole blocks of the 4-bit format
    if bits == 4:
        layer = bnb.nn.Linear4bit(64, 128, compute_dtype=torch.float32, quant_type="nf4")
    else:
        layer = bnb.nn.Linear8bitLt(64, 128, has_fp16_weights=False)
    layer.load_state_dict(base.first.state_dict())
    base.first = layer.to("cpu")
    setattr(base, f"is_loaded_in_{bits}bit", True)
    model = make_model(*adapters, base=base, targets=("first",)).eval()
    assert type(first(model)).__name__ == {4: "Linear4bit", 8: "Linear8bitLt"}[bits]
    return model


def dequantized(layer) -> torch.Tensor:
    weight = layer.base_layer.weight
    if type(weight).__name__ == "Params4bit":
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    scale = weight.SCB if layer.base_layer.state.SCB is None else layer.base_layer.state.SCB
    return bnb.functional.int8_vectorwise_dequant(weight.data, scale)


@pytest.fixture(params=[4, 8], ids=["4 bits", "8 bits"])
def bits(request):
    return request.param


def test_all_of_it_is_replaced_and_put_back(bits):
    cls = type(first(quantized(bits)))
    before = cls.forward, cls.merge, cls.unmerge
    with road_peft.enabled():
        assert not any(a is b for a, b in zip(before, (cls.forward, cls.merge, cls.unmerge), strict=True))
    assert before == (cls.forward, cls.merge, cls.unmerge)


@pytest.mark.parametrize("adapters", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_forward_in_the_dtype_that_peft_promises(bits, dtype, adapters):
    layer = first(quantized(bits, ("road_4", 64), ("road_1", 64)))
    layer._active_adapter = ["A", "B"]
    for parameters in (layer.road_theta, layer.road_alpha):
        parameters.to(adapters)
    x = make_x(5, 64, dtype=dtype)
    promised = layer(x).dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        promised_in_autocast = layer(x).dtype
    with road_peft.enabled():
        z = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == promised_in_autocast
    assert z.dtype == promised == adapters
    want = expect_rotated(layer.base_layer(x), matrix_of(layer, "A"), matrix_of(layer, "B"))
    assert_close(z, want, torch.float32, units=8)


def test_gradients(bits):
    model = quantized(bits)
    layer, x = first(model), make_x(5, 64)
    gz = make_x(5, 128, seed=3)
    grads = []
    for on in (False, True):
        (road_peft.enable if on else road_peft.disable)()
        model.zero_grad()
        layer(x).backward(gz)
        grads.append([layer.road_theta["A"].grad, layer.road_alpha["A"].grad])
    road_peft.disable()
    for theirs, ours in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_mixed_batch(bits):
    """PEFT itself has no mixed batches for these layers."""
    layer = first(quantized(bits, ("road_4", 64), ("road_1", 64)))
    x, names = make_x(4, 64, dtype=torch.bfloat16), ["A", "__base__", "B", "A"]
    with road_peft.enabled():
        z = layer(x, adapter_names=names)
        with pytest.raises(ValueError, match="Length of `adapter_names`"):
            layer(x, adapter_names=["A"])
    h = layer.base_layer(x)
    assert z.dtype == torch.bfloat16
    for b, name in enumerate(names):
        if name == "__base__":
            assert torch.equal(z[b], h[b])
        else:
            assert_close(z[b], expect_rotated(h[b], matrix_of(layer, name)), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("safe", [False, True], ids=["merge", "safe_merge"])
def test_merge_and_unmerge_as_peft_does(bits, safe, dtype):
    model = quantized(bits, ("road_4", 64), ("road_1", 2))
    model.base_model.set_adapter(["A", "B"])
    x = make_x(5, 64, dtype=dtype)
    first(model)(x)  # the first call prepares bitsandbytes' state and casts the bias to x's dtype
    other = copy.deepcopy(model)
    other.merge_adapter(safe_merge=safe)
    with road_peft.enabled():
        assert type(peft_bnb._get_delta_weight("road_1", 64, *[torch.zeros(64)] * 2)).__name__ == "RoadMatrix"
        model.merge_adapter(safe_merge=safe)
        assert first(model).merged_adapters == ["A", "B"]
    ours, theirs = dequantized(first(model)), dequantized(first(other))
    # A weight between two quantization steps may be rounded to either.
    assert ((ours - theirs).abs() > 1e-6).float().mean() < 0.01
    bias, eps = first(model).base_layer.bias, torch.finfo(dtype).eps
    torch.testing.assert_close(bias, first(other).base_layer.bias, rtol=2 * eps, atol=2 * eps)
    before, matrix = f64(bias), matrix_of(first(model), "B") @ matrix_of(first(model), "A")
    with road_peft.enabled():
        model.unmerge_adapter()  # PEFT itself fails here if the bias does not have the adapter's dtype
    assert first(model).merged_adapters == []
    assert abs(matrix @ f64(bias) - before).max() < 40 * eps


@pytest.mark.parametrize("what", ["weights", "bias"])
def test_safe_merge_refuses_before_anything_is_written(bits, what):
    layer = first(quantized(bits))
    if what == "weights":
        layer.road_theta["A"].data[3] = float("nan")
    else:
        layer.base_layer.bias.data[3] = float("inf")
    weight, bias = dequantized(layer).clone(), layer.base_layer.bias.clone()
    with road_peft.enabled(), pytest.raises(ValueError, match=f"NaNs detected in the merged {what}"):
        layer.merge(safe_merge=True)
    assert torch.equal(dequantized(layer), weight)
    assert torch.equal(layer.base_layer.bias, bias)
    assert not layer.merged


def test_refused_unmerge_leaves_the_adapter_merged(bits):
    layer = first(quantized(bits, ("road_2", 64), ("road_1", 64)))
    layer.road_alpha["A"].data[5] = 0
    layer.road_alpha["A"].data[37] = 0
    with road_peft.enabled():
        layer.merge(adapter_names=["A", "B"])
        with pytest.raises(torch.linalg.LinAlgError, match=r"\(5, 37\)"):
            layer.unmerge()
    assert layer.merged_adapters == ["A"]
