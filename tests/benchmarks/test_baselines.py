"""What the benchmarks call PEFT's way gives what PEFT gives, bit for bit in float32, and all LoRA ways agree."""

import pytest
import torch
from torch import nn

from benchmarks import layer
from benchmarks.baselines import formulas
from benchmarks.harness.measure import check

peft = pytest.importorskip("peft", reason="compares with the real PEFT")

NAMES = [2, -1, 0, 2, 1]
X = torch.randn(5, 3, 32, generator=torch.Generator().manual_seed(0))


def mixed_batch(configs, names):
    """Output of a linear layer under PEFT adapters "0", "1", ... for the requests' names; the wrapped layer too."""
    base = nn.Sequential(nn.Linear(32, 64, bias=False))
    model = peft.get_peft_model(base, configs[0], adapter_name="0")
    for k, config in enumerate(configs[1:], 1):
        model.add_adapter(str(k), config)
    wrapped = model.base_model.model[0]
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "base_layer" not in name:
                p.normal_()
        return wrapped, wrapped(X, adapter_names=["__base__" if n == -1 else str(n) for n in names])


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_road_loop(variant):
    config = peft.RoadConfig(variant=variant, group_size=16, target_modules=["0"])
    wrapped, want = mixed_batch([config] * 3, NAMES)
    theta, alpha = ([bank[str(k)].detach() for k in range(3)] for bank in (wrapped.road_theta, wrapped.road_alpha))
    y = nn.functional.linear(X, wrapped.base_layer.weight.detach())
    got = formulas.road_adapter_by_adapter(y, theta, alpha, NAMES, variant, 16)
    assert torch.equal(got, want)


def test_lora_loop():
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["0"])
    wrapped, want = mixed_batch([config] * 3, NAMES)
    a, b = ([bank[str(k)].weight.detach() for k in range(3)] for bank in (wrapped.lora_A, wrapped.lora_B))
    y = nn.functional.linear(X, wrapped.base_layer.weight.detach())
    assert torch.equal(formulas.lora_adapter_by_adapter(y, X, a, b, NAMES, 3.0), want)


@pytest.mark.parametrize("mix", layer.MIXES)
@pytest.mark.parametrize(("phase", "tokens"), [("decode", 1), ("prefill", 5)])
def test_all_ways_to_serve_a_layer_agree_with_float64(mix, phase, tokens):
    case = layer.build(phase, 7, 8, mix, 9, 64, 128, "float32", torch.device("cpu"), tokens=tokens)
    errors, failed = check(case)
    assert errors.keys() == {p.name for p in case.providers} and not failed
    families = [p.about["family"] for p in case.providers]
    assert families.count("LoRA") == 6 and families.count("RoAd") >= 3 and families.count("IA3") == 1


def test_bytes_of_the_layer_are_those_of_its_tensors_and_of_the_adapters_in_use():
    case = layer.build("decode", 6, 4, "half", 16, 32, 64, "float32", torch.device("cpu"))
    plain = 4 * (6 * 32 + 32 * 64 + 6 * 64)  # x, weight, y
    found = {p.about["family"]: (p.bytes, p.about["resident_bytes"]) for p in case.providers}
    assert case.bytes == plain
    assert found["none"] == (plain, 0)
    assert found["RoAd"] == (plain + 3 * 4 * 64, 16 * 4 * 64)  # two compact tables of D/2
    assert found["LoRA"] == (plain + 3 * 4 * 4 * (32 + 64), 16 * 4 * 4 * (32 + 64))
    assert found["IA3"] == (plain + 3 * 4 * 64, 16 * 4 * 64)
