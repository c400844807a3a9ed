"""serve leaves the model as it was and shares its weights, launches nothing for adapters, and names what it refuses."""

import collections
import copy

import pytest
import torch
from peft import RoadConfig, get_peft_model
from support.backends import DEVICE
from support.served_models import FAMILIES, NAMES, load_all, prompts, relative, tiny
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import road_kernels as rk
from road_kernels.integrations.transformers import _layers, serve

PACKED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"} | dict.fromkeys(
    ("gate_proj", "up_proj"), "gate_up_proj"
)


def storages(*models) -> dict[int, int]:
    """Address -> bytes of every storage that the parameters of the models lie in."""
    found = [p.untyped_storage() for model in models for p in model.parameters()]
    return {s.data_ptr(): s.nbytes() for s in found}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_stays_as_it_is_and_shares_all_weights(family, tmp_path):
    model, tokens = tiny(family), prompts()
    before, logits, bytes_before = copy.deepcopy(model), model(tokens).logits, sum(storages(model).values())
    names = [name for name, _ in model.named_modules()]
    objects = dict(model.named_parameters())
    served = serve(model, capacity=1, group_size=8)

    assert type(model) is type(before) and [name for name, _ in model.named_modules()] == names
    assert torch.equal(model(tokens).logits, logits)
    for name, p in model.named_parameters():
        assert p is objects[name] and torch.equal(p, before.get_parameter(name)) and p.is_contiguous(), name
        if "_proj" in name:  # a row of the packed parameter, or the parameter itself
            *_, k, _, layer, kind = name.split(".")
            own = served.model.layers[int(k)].get_submodule(PACKED.get(layer, layer)).get_parameter(kind)
            assert p.untyped_storage().data_ptr() == own.untyped_storage().data_ptr(), name
    assert storages(model, served) == storages(model)
    assert sum(storages(model).values()) == bytes_before  # nothing is there twice

    weight = model.model.layers[1].self_attn.v_proj.weight
    old = served(tokens).logits
    weight.mul_(1.5)  # both see it
    assert relative(served(tokens).logits, model(tokens).logits) < 1e-5 and relative(served(tokens).logits, old) > 1e-3
    weight.copy_(before.model.layers[1].self_attn.v_proj.weight)

    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path).to(DEVICE)(tokens).logits, logits)


def test_serving_twice_shares_the_weights_too():
    model = tiny("Qwen2")
    first = serve(model, capacity=1, group_size=8)
    sizes = storages(model)
    second = serve(model, capacity=2, group_size=4)
    assert storages(model, first, second) == sizes
    assert relative(first(prompts()).logits, second(prompts()).logits) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_add_no_launch(family, checkpoints, monkeypatch):
    """Four kernels of ours a layer, of which three stand for elementwise ones that the model has anyway: RoPE, twice
    add + norm, and SiLU times up. Qwen3 normalises between the rotation and RoPE, which costs one more."""
    served = load_all(serve(tiny(family), capacity=3, group_size=8), checkpoints(family))
    calls = collections.Counter()
    for name in ("rotate_batched", "rotate_rope", "rotate_add_rms_norm", "rotate_silu_mul"):
        function = getattr(_layers, name)
        monkeypatch.setattr(_layers, name, lambda *a, f=function, n=name, **kw: calls.update([n]) or f(*a, **kw))
    ids, none = served.bank.ids(NAMES), served.bank.ids([None] * 5)
    served(prompts(), adapter_ids=ids)
    layers = 2
    expected = {"rotate_rope": layers, "rotate_add_rms_norm": 2 * layers, "rotate_silu_mul": layers}
    assert calls == expected | ({"rotate_batched": layers} if family == "Qwen3" else {})

    def operators(ids) -> collections.Counter:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            served(prompts(), adapter_ids=ids)
        return collections.Counter(event.name for event in profile.events())

    with_adapters = operators(ids)
    assert with_adapters == operators(none)
    if DEVICE != "cpu" or rk.backend_info()["backends"]["cpu"]["usable"]:  # the formula has no ops of ours
        ours = sum(count for name, count in with_adapters.items() if name.startswith("road_kernels::"))
        assert ours == sum(expected.values()) + (layers if family == "Qwen3" else 0)


def test_a_copy_has_weights_and_adapters_of_its_own(checkpoints):
    served = load_all(serve(tiny("Mistral"), capacity=3, group_size=8), checkpoints("Mistral"))
    other = copy.deepcopy(served)
    want = served(prompts(), adapter_names=NAMES).logits
    for name in ("anna", "ben", "carl"):
        served.evict(name)
    served.model.layers[0].qkv_proj.weight.zero_()
    assert torch.equal(other(prompts(), adapter_names=NAMES).logits, want)


def of(change):
    model = tiny("Llama")
    change(model)
    return model


def tie(model):
    layers = model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight


REFUSED = {
    "another class": (
        lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=8)),
        TypeError,
        "model must be one of LlamaForCausalLM, .*Qwen3ForCausalLM of transformers, got .*GPT2LMHeadModel",
    ),
    "the inner model": (lambda: tiny("Llama").model, TypeError, "got .*LlamaModel"),
    "a served model": (lambda: serve(tiny("Llama"), capacity=1, group_size=8), TypeError, "it is served already"),
    "PEFT around it": (
        lambda: get_peft_model(tiny("Llama"), RoadConfig(target_modules=["q_proj"], group_size=8)),
        TypeError,
        "PeftModel: pass the model without PEFT, and its adapters to load",
    ),
    "PEFT inside": (
        lambda: of(lambda m: get_peft_model(m, RoadConfig(target_modules=["v_proj"], group_size=8))),
        TypeError,
        r"model.layers.0.self_attn.v_proj must be a Linear, got peft\.tuners\.road\.layer\.Linear",
    ),
    "quantized": (
        lambda: of(lambda m: setattr(m.config, "quantization_config", {"quant_method": "awq"})),
        ValueError,
        "model must not be quantized",
    ),
    "activation": (
        lambda: tiny("Qwen2", hidden_act="gelu"),
        ValueError,
        "config.hidden_act must be 'silu', got 'gelu'",
    ),
    "rope": (
        lambda: tiny("Llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        ValueError,
        "the rope_type of model must be one of .*, got 'dynamic'",
    ),
    "norm": (
        lambda: of(lambda m: setattr(m.model.layers[1], "input_layernorm", torch.nn.RMSNorm(32))),
        TypeError,
        r"model.layers.1.input_layernorm must be a LlamaRMSNorm, got torch\.nn",
    ),
    "tied": (lambda: of(tie), ValueError, "model.layers.0.mlp.up_proj shares a parameter with another module"),
    "meta": (lambda: copy.deepcopy(tiny("Llama")).to("meta"), ValueError, "the model must be on one device, meta"),
    "mixed": (
        lambda: of(lambda m: m.model.layers[1].mlp.down_proj.bfloat16()),
        TypeError,
        r"all linear layers must be torch.float32, got torch.bfloat16 in model.layers.1.mlp.down_proj",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_are_refused(case):
    make, error, message = REFUSED[case]
    model = make()
    places = [p.data_ptr() for p in model.parameters()]
    with pytest.raises(error, match=message):
        serve(model, capacity=1, group_size=8)
    assert [p.data_ptr() for p in model.parameters()] == places


def test_arguments_that_are_refused():
    model = tiny("Llama")
    with pytest.raises(ValueError, match=r"group_size must .* divide the width of layer .*q_proj. .32., got 64"):
        serve(model, capacity=1)
    with pytest.raises(ValueError, match="capacity must be 1 or more, got 0"):
        serve(model, capacity=0, group_size=8)
    with pytest.raises(ValueError, match="max_positions must be an int, 1 or more, got 0"):
        serve(model, capacity=1, group_size=8, max_positions=0)


@pytest.mark.asserts_on_device
def test_calls_that_are_refused():
    served, tokens = serve(tiny("Llama"), capacity=2, group_size=8, max_positions=9), prompts(2, 9)
    adapter = rk.Adapter({"self_attn.q_proj": (torch.zeros(16), torch.ones(16))}, group_size=8)
    with pytest.raises(ValueError, match=r"layer 'self_attn\.q_proj' of the adapter may be any of"):
        served.load("anna", adapter)
    ids = served.bank.ids([None, None])
    for call in (served, served.generate):
        with pytest.raises(KeyError, match="no adapter named 'anna' is loaded"):
            call(tokens, adapter_names=["anna", None])
        with pytest.raises(ValueError, match="adapter_names must be one per request, 2, got 3"):
            call(tokens, adapter_names=[None] * 3)
        with pytest.raises(ValueError, match="adapter_ids must be one per request, 2, got 1"):
            call(tokens, adapter_ids=ids[:1])
        with pytest.raises(ValueError, match="adapter_names and adapter_ids were both given"):
            call(tokens, adapter_names=[None] * 2, adapter_ids=ids)
        with pytest.raises(IndexError):
            call(tokens, adapter_ids=ids + 3)
        for wrong, got in ((0, "int"), ([0, -1], "list"), (ids[0], "a tensor without dimensions")):
            with pytest.raises(TypeError, match=f"adapter_ids must be a tensor of one id per request, got {got}"):
                call(tokens, adapter_ids=wrong)
        with pytest.raises(TypeError, match="adapter_names must be a list of names, one per request, got int"):
            call(tokens, adapter_names=3)
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match=r"outside of torch\.autocast"):
            call(tokens)
    with pytest.raises(ValueError, match=r"adapter_ids must be \[requests\] to generate, got \[2, 9\]"):
        served.generate(tokens, adapter_ids=ids[:, None].expand(2, 9))
    for name in ("output_attentions", "output_hidden_states"):
        with pytest.raises(ValueError, match=f"{name} must be False"):
            served(tokens, **{name: True})
    served(tokens)
    with pytest.raises(IndexError):
        served(prompts(2, 10))
    with pytest.raises(RuntimeError, match="a served model cannot be moved or converted"):
        served.half()
    with pytest.raises(NotImplementedError, match="a served model is not saved"):
        served.save_pretrained("anywhere")
