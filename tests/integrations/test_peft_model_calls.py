"""Mixed batches of whole models: heads of modules_to_save, generation, calls that raise, compiled parts, hooks."""

import copy

import pytest
import torch
from peft import PeftModelForSeq2SeqLM, RoadConfig, get_peft_model
from support.peft_models import BASE, NAMES, first, in_float64, layers, mixed_model, randomize
from support.problems import make_x
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from road_kernels.integrations import peft as road_peft


@pytest.fixture(autouse=True)
def _on():
    with road_peft.enabled():
        yield


def with_heads(head=None, **kwargs):
    """Adapters A and B with a head each, C without."""
    base = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), head or nn.Linear(64, 4))

    def config(**kwargs):
        return RoadConfig(group_size=16, target_modules=["0"], **kwargs)

    model = get_peft_model(base, config(modules_to_save=["2"]), adapter_name="A")
    model.add_adapter("B", config(modules_to_save=["2"]))
    model.add_adapter("C", config())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "modules_to_save" in name:
                p.normal_()
    model.set_adapter("A")
    return randomize(model).eval()


def alone(model, x, names):
    """Each row by its adapter, without a mixed batch."""
    rows = []
    for row, name in enumerate(names):
        if name == BASE:
            with model.disable_adapter():
                rows.append(model(x)[row])
        else:
            model.set_adapter(name)
            rows.append(model(x)[row])
    return torch.stack(rows)


@pytest.mark.parametrize("active", "ABC")
@pytest.mark.parametrize("names", [["A", "B", BASE, "C", "A", "B"], ["B"] * 6, [BASE] * 6, ["C", "B"] * 3], ids=str)
def test_every_row_has_its_own_head(names, active):
    """PEFT gives every row the head of the active adapter."""
    model, x = with_heads(), make_x(6, 16)
    exact = in_float64(model)
    model.set_adapter(active)
    z = model(x, adapter_names=names)
    with torch.no_grad():
        want = alone(exact, x.double(), names)
    torch.testing.assert_close(z.double(), want, rtol=1e-5, atol=1e-5)
    model.set_adapter(active)
    assert torch.equal(model(x, adapter_names=names), z)


def test_heads_of_disabled_adapters_are_the_original_ones():
    model, x = with_heads(), make_x(2, 16)
    with model.disable_adapter():
        want = model(x)
        assert torch.equal(model(x, adapter_names=["A", "B"]), want)
    model.base_model.disable_adapter_layers()
    assert torch.equal(model(x, adapter_names=["A", "B"]), want)


def test_gradients_of_heads():
    model, x, gz = with_heads(), make_x(3, 16), make_x(3, 4, seed=1)
    model(x, adapter_names=["B", "A", BASE]).backward(gz)
    grads = {name: p.grad for name, p in model.named_parameters() if "modules_to_save" in name and p.grad is not None}
    assert torch.equal(grads["base_model.model.2.modules_to_save.A.bias"], gz[1])


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(64, 4)

    def forward(self, x):
        return self.out(x)


def test_heads_that_peft_cannot_mix_are_refused():
    model = with_heads(Head())
    with pytest.raises(TypeError, match="Mixed batching is only supported for"):
        model(make_x(2, 16), adapter_names=["A", "B"])
    same = model(make_x(2, 16), adapter_names=["B", "B"])
    model.set_adapter("B")
    torch.testing.assert_close(same, model(make_x(2, 16)))
    assert with_heads()(make_x(0, 16), adapter_names=[]).shape == (0, 4)


def state(model):
    return {name: (vars(m).keys(), len(m._forward_pre_hooks)) for name, m in model.named_modules()}


@pytest.mark.parametrize("where", ["length", "inside", "wrapped before"])
def test_a_call_that_raises_leaves_nothing_behind(where):
    """PEFT leaves its hooks, and with them the adapter_names of that call in all later ones."""
    model, x = with_heads(), make_x(2, 16)
    layer = first(model)
    if where == "wrapped before":
        layer.forward = layer.forward  # as accelerate's hooks do
    before, want = state(model), model(x)
    names = ["B", BASE]
    if where == "length":
        with pytest.raises(ValueError, match="Length of `adapter_names` should be the same"):
            model(x, adapter_names=[*names, "A"])
    else:
        handle = layer.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(x, adapter_names=names)
        handle.remove()
    assert state(model) == before
    assert torch.equal(model(x), want)
    assert not torch.equal(model(x, adapter_names=names), want)
    assert state(model) == before


def test_a_layer_whose_forward_was_wrapped_before_enabling():
    road_peft.disable()
    model, x = mixed_model(), make_x(6, 16)
    want = model(x, adapter_names=NAMES)
    for layer in layers(model):
        theirs = layer.forward
        layer.forward = lambda *args, theirs=theirs, **kwargs: theirs(*args, **kwargs)
    road_peft.enable()
    torch.testing.assert_close(model(x, adapter_names=NAMES), want, rtol=1e-5, atol=1e-5)


def tiny(kind):
    torch.manual_seed(0)
    if kind == "llama":
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        base = LlamaForCausalLM(LlamaConfig(vocab_size=40, initializer_range=0.3, eos_token_id=None, **sizes))
        targets, task = ["q_proj", "down_proj"], "CAUSAL_LM"
    else:
        sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
        base = T5ForConditionalGeneration(T5Config(vocab_size=40, initializer_factor=3.0, eos_token_id=None, **sizes))
        targets, task = ["q", "k", "v", "o", "wi", "wo"], "SEQ_2_SEQ_LM"
    config = RoadConfig(group_size=16, target_modules=targets, task_type=task)
    model = get_peft_model(base, config, adapter_name="a")
    model.add_adapter("b", config)
    return randomize(model).eval()


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("options", ["num_beams", "both", "generation_config", "the model's own"])
def test_names_are_repeated_for_every_beam(kind, options):
    if kind == "t5" and not hasattr(T5ForConditionalGeneration, "_prepare_encoder_decoder_kwargs_for_generation"):
        parts = PeftModelForSeq2SeqLM.__init__.__code__.co_names
        if "_prepare_encoder_decoder_kwargs_for_generation" in parts:
            pytest.skip("this PEFT asks transformers for a method that it no longer has")
    model = tiny(kind)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(2, 40, (3, 5), generator=generator, device="cpu").to(make_x(1).device)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "num_beams": 3, "num_return_sequences": 1}
    if kind == "t5":
        settings["decoder_start_token_id"] = 0
    if options == "both":
        settings["num_return_sequences"] = 2
    if options in ("num_beams", "both"):
        given = settings
    else:
        config = copy.deepcopy(model.base_model.model.generation_config)
        config.update(**settings)
        given = {"generation_config": config}
        if options != "generation_config":
            model.base_model.model.generation_config, given = config, {}

    def generate(**kwargs):
        return model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), **given, **kwargs)

    names = ["a", BASE, "b"]
    mixed = generate(adapter_names=names)
    each = settings["num_return_sequences"]
    assert len(mixed) == 3 * each
    results = []
    for row, name in enumerate(names):
        model.set_adapter("a" if name == BASE else name)
        if name == BASE:
            with model.disable_adapter():
                results.append(generate())
        else:
            results.append(generate())
        mine = slice(row * each, (row + 1) * each)
        assert torch.equal(mixed[mine], results[-1][mine])
    assert len({tuple(r[0].tolist()) for r in results}) == 3  # the adapters differ


def test_sampled_sequences():
    model = tiny("llama")
    prompts = torch.ones(2, 3, dtype=torch.long)
    out = model.generate(
        input_ids=prompts,
        attention_mask=prompts,
        adapter_names=["a", "b"],
        num_return_sequences=3,
        do_sample=True,
        max_new_tokens=2,
        pad_token_id=0,
    )
    assert len(out) == 6
    with pytest.raises(ValueError, match="got 2 and 4"):  # no beams here
        model(torch.ones(4, 3, dtype=torch.long), adapter_names=["a", "b"])


@pytest.mark.parametrize("part", ["layer", "block", "model"])
def test_compiled_parts_see_the_names(part):
    """PEFT's compiled blocks do not: torch.compile guards no hooks, and goes on with the active adapter."""
    model, x = mixed_model(), make_x(6, 16)
    lists = [None, NAMES, NAMES[::-1], [BASE] * 6, None, ["D"] * 6]
    want = [model(x) if names is None else model(x, adapter_names=names) for names in lists]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = layers(model) if part == "layer" else [model.base_model.model] if part == "block" else [model]
    for m in compiled:
        m.compile(backend="aot_eager", fullgraph=True)
    for names, z in zip(lists, want, strict=True):
        got = model(x) if names is None else model(x, adapter_names=names)
        torch.testing.assert_close(got, z, rtol=1e-5, atol=1e-5)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    # Two layers of different widths, with and without names. A whole model is compiled anew for other names.
    assert graphs == {"layer": 4, "block": 2, "model": 6}[part]
