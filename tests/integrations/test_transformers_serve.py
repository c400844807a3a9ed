"""Served models of transformers: every request gets the logits of the model with its adapter merged by PEFT."""

import pytest
import torch
from support.served_models import (
    FAMILIES,
    NAMES,
    exact,
    load_all,
    merged,
    prompts,
    reference,
    relative,
    tiny,
)

import road_kernels as rk
from road_kernels.integrations.transformers import serve


@pytest.mark.parametrize("family", FAMILIES)
def test_float64_is_the_merged_model(family, checkpoints):
    model, folder, tokens = tiny(family), checkpoints(family), prompts()
    want = reference(model, folder, NAMES, tokens)
    frequencies = model.model.rotary_emb.inv_freq
    double = tiny(family, torch.float64)
    double.model.rotary_emb.inv_freq = frequencies
    served = load_all(serve(double, capacity=4, group_size=8), folder)
    got = served(tokens, adapter_names=NAMES).logits
    assert relative(got, want) < 3e-7  # the bank's tables are float32
    assert relative(served(tokens).logits, exact(model)(tokens).logits) < 1e-12
    assert relative(served(tokens).logits, want) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_rounding_is_no_larger_than_that_of_merged_models(family, dtype, checkpoints):
    model, folder, tokens = tiny(family, dtype), checkpoints(family), prompts()
    want = reference(tiny(family), folder, NAMES, tokens)
    served = load_all(serve(model, capacity=3, group_size=8), folder)
    got = served(input_ids=tokens, adapter_names=NAMES).logits
    assert got.dtype == dtype
    for k, name in enumerate(NAMES):
        row = slice(k, k + 1)
        alone = merged(model, folder, name)(tokens[row]).logits
        # By the norm of all logits of the request, so that luck in single ones does not count.
        assert relative(got[row], want[row]) < 1.5 * relative(alone, want[row]) + torch.finfo(dtype).eps, name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_is_each_request_alone(family, checkpoints):
    served = load_all(serve(tiny(family), capacity=3, group_size=8), checkpoints(family))
    tokens = prompts()
    together = served(tokens, adapter_names=NAMES).logits
    for k, name in enumerate(NAMES):
        row = tokens[k : k + 1]
        torch.testing.assert_close(together[k : k + 1], served(row, adapter_names=[name]).logits, rtol=1e-4, atol=1e-4)
    ids = served.bank.ids(NAMES)
    assert torch.equal(served(tokens, adapter_ids=ids).logits, together)
    assert torch.equal(served(tokens, adapter_ids=ids[:, None].expand(tokens.shape)).logits, together)
    assert torch.equal(served(tokens, adapter_names=[None] * 5).logits, served(tokens).logits)


@pytest.mark.parametrize("group_size", [2, 16, 32], ids="g={}".format)
def test_other_group_sizes(group_size):
    """8 divides the heads; 16 and 32 pair features across them, and are rotated before RoPE."""
    model = tiny("Llama", intermediate_size=64, num_key_value_heads=4)
    adapter = rk.Adapter(
        {
            f"model.layers.1.{name}": (torch.randn(width // 2), torch.rand(width // 2) + 0.5)
            for name, width in (("self_attn.q_proj", 32), ("self_attn.v_proj", 32), ("mlp.gate_proj", 64))
        },
        group_size=group_size,
    )
    served = serve(model, capacity=1, group_size=group_size, compact=True)
    served.load("anna", adapter)
    want = exact(model)
    for name, (theta, alpha) in adapter.layers.items():
        layer = want.get_submodule(name)
        layer.weight.copy_(rk.road_merge(layer.weight, None, theta, alpha, variant="road_1", group_size=group_size)[0])
    tokens = prompts()
    got = served(tokens, adapter_names=["anna"] * 5).logits
    assert relative(got, want(tokens).logits) < 2e-6
    assert relative(got, model(tokens).logits) > 0.1


ROPES = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
}


@pytest.mark.parametrize("rope", ROPES)
def test_rope_types(rope):
    model = tiny("Llama", rope_parameters={"rope_theta": 10000.0, **ROPES[rope]})
    served, tokens = serve(model, capacity=1, group_size=8), prompts(length=40)
    assert relative(served(tokens).logits, model(tokens).logits) < 1e-5
    assert relative(tiny("Llama")(tokens).logits, model(tokens).logits) > 1e-2


@pytest.mark.parametrize("family", ["Mistral", "Qwen2", "Qwen3"])
def test_sliding_windows(family):
    settings = {"sliding_window": 4}
    if family != "Mistral":
        settings |= {"use_sliding_window": True, "max_window_layers": 1}
    model = tiny(family, **settings)
    served, tokens = serve(model, capacity=1, group_size=8), prompts(length=20)
    assert relative(served(tokens).logits, model(tokens).logits) < 1e-5
    assert relative(tiny(family)(tokens).logits, model(tokens).logits) > 1e-2


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_of_the_config_and_masks(attention, checkpoints):
    model = tiny("Llama", attn_implementation=attention)
    folder, tokens = checkpoints("Llama"), prompts()
    mask = torch.ones_like(tokens)
    mask[0, :3] = mask[2, :1] = 0
    served = load_all(serve(model, capacity=3, group_size=8), folder)
    got = served(input_ids=tokens, attention_mask=mask, adapter_names=NAMES).logits
    want = reference(model, folder, NAMES, tokens, attention_mask=mask)
    assert relative(got[mask.bool()], want[mask.bool()]) < 1e-5  # position by position
    embeds = model.model.embed_tokens(tokens)
    before = embeds.clone()
    assert torch.equal(served(inputs_embeds=embeds, attention_mask=mask, adapter_names=NAMES).logits, got)
    assert torch.equal(embeds, before)


def test_loading_and_evicting_between_steps(checkpoints):
    model, folder, tokens = tiny("Qwen2"), checkpoints("Qwen2"), prompts(1)
    served = serve(model, capacity=1, group_size=8)
    base = served(tokens).logits
    for name in ("anna", "carl", "ben", "anna"):
        served.load(name, folder / name)
        want = reference(model, folder, [name], tokens)
        assert relative(served(tokens, adapter_names=[name]).logits, want) < 2e-6
        assert torch.equal(served(tokens, adapter_names=[None]).logits, base)
        with pytest.raises(rk.BankFullError):
            served.load("more", folder / "ben")
        served.evict(name)
    served.load("anna", rk.Adapter.from_peft(folder / "anna"))
    served.bank.update("anna", rk.Adapter.from_peft(folder / "ben"))
    assert relative(served(tokens, adapter_names=["anna"]).logits, reference(model, folder, ["ben"], tokens)) < 2e-6


def test_compiled(checkpoints):
    served = load_all(serve(tiny("Llama"), capacity=3, group_size=8), checkpoints("Llama"))
    tokens, ids = prompts(), served.bank.ids(NAMES)
    torch._dynamo.reset()
    compiled = torch.compile(served, backend="eager", fullgraph=True)
    got = compiled(input_ids=tokens, adapter_ids=ids, use_cache=False).logits
    torch.testing.assert_close(got, served(tokens, adapter_ids=ids).logits, rtol=1e-5, atol=1e-5)
