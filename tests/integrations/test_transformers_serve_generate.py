"""generate with served models: what each request gives alone, from the model with its adapter merged by PEFT."""

import inspect

import pytest
import torch
from support.served_models import FAMILIES, NAMES, load_all, merged, prompts, relative, tiny
from transformers import LlamaForCausalLM, LogitsProcessor, LogitsProcessorList, StaticCache

from road_kernels.integrations.transformers import serve

# Renamed by later versions of transformers 5.
CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"
WAYS = {
    "greedy": {"do_sample": False},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
    "without a cache": {"do_sample": False, "use_cache": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "beams returned": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
}


def generate(model, tokens, mask=None, **kwargs):
    mask = torch.ones_like(tokens) if mask is None else mask
    return model.generate(input_ids=tokens, attention_mask=mask, max_new_tokens=8, **kwargs)


def served_model(checkpoints, family="Llama", **settings):
    model = tiny(family, **settings)
    return model, load_all(serve(model, capacity=4, group_size=8), checkpoints(family)), checkpoints(family)


@pytest.mark.parametrize(
    ("family", "way"), [*((f, "greedy") for f in FAMILIES), *(("Qwen3", way) for way in WAYS if way != "greedy")]
)
def test_tokens_of_each_request_are_those_of_its_merged_model(family, way, checkpoints):
    model, served, folder = served_model(checkpoints, family)
    tokens, kwargs = prompts(), WAYS[way]
    together = generate(served, tokens, adapter_names=NAMES, **kwargs)
    rows = together.split(kwargs.get("num_return_sequences", 1))
    alone = [generate(merged(model, folder, n), tokens[k : k + 1], **kwargs) for k, n in enumerate(NAMES)]
    for name, got, want in zip(NAMES, rows, alone, strict=True):
        assert torch.equal(got, want), name
    base = generate(model, tokens, **kwargs).split(kwargs.get("num_return_sequences", 1))
    assert sum(torch.equal(*pair) for pair in zip(base, alone, strict=True)) < len(NAMES) - 1  # adapters do something


@pytest.mark.parametrize("way", ["greedy", "static cache", "beams"])
def test_left_padding(way, checkpoints):
    model, served, folder = served_model(checkpoints)
    tokens, lengths = prompts(length=7), [7, 3, 5, 6, 2]
    mask = torch.stack([(torch.arange(7) >= 7 - n).long() for n in lengths]).to(tokens.device)
    together = generate(served, tokens * mask, mask, adapter_names=NAMES, **WAYS[way])
    for k, (name, n) in enumerate(zip(NAMES, lengths, strict=True)):
        want = generate(merged(model, folder, name), tokens[k : k + 1, 7 - n :], **WAYS[way])
        assert torch.equal(together[k, 7 - n :], want[0]), name


def test_sampling_draws_what_the_merged_model_draws(checkpoints):
    """One request, several samples: the same seed and, but for rounding, the same probabilities."""
    model, served, folder = served_model(checkpoints, "Qwen3")
    about = {"do_sample": True, "num_return_sequences": 4, "top_k": 20}
    for name in ("anna", "ben"):
        torch.manual_seed(5)
        want = generate(merged(model, folder, name), prompts(1), **about)
        torch.manual_seed(5)
        got = generate(served, prompts(1), adapter_names=[name], **about)
        assert torch.equal(got, want)
    assert len({tuple(row) for row in got.tolist()}) > 1


def test_ids_and_embeddings_in_place_of_names_and_tokens(checkpoints):
    model, served, _ = served_model(checkpoints)
    tokens = prompts()
    want = generate(served, tokens, adapter_names=NAMES, do_sample=False)
    ids = served.bank.ids(NAMES)
    assert torch.equal(generate(served, tokens, adapter_ids=ids, do_sample=False), want)
    assert torch.equal(served.generate(tokens, adapter_ids=ids, max_new_tokens=8, do_sample=False), want)
    embeds = model.model.embed_tokens(tokens)
    got = served.generate(inputs_embeds=embeds, adapter_ids=ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(got, want[:, tokens.shape[1] :])
    assert torch.equal(generate(served, tokens, do_sample=False), generate(model, tokens, do_sample=False))


class Between(LogitsProcessor):
    """Calls a function between the steps, as another thread of a server would."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        if self.calls == 3:
            self.function()
        return scores


def test_adapters_that_are_evicted_and_replaced_meanwhile_stay_to_the_end(checkpoints):
    _, served, folder = served_model(checkpoints)
    want = generate(served, prompts(), adapter_names=NAMES, do_sample=False)

    def write():
        served.evict("ben")
        served.bank.replace("anna", folder / "carl", partial=True)

    between = Between(write)
    got = generate(
        served, prompts(), adapter_names=NAMES, do_sample=False, logits_processor=LogitsProcessorList([between])
    )
    assert between.calls == 8 and torch.equal(got, want)
    assert served.bank.names == ("anna", "carl") and served.bank.free == 2


def test_a_step_with_ids_that_stay_in_place(checkpoints):
    """What a captured CUDA graph replays: the same tensors in every call, filled before it."""
    _, served, _ = served_model(checkpoints)
    tokens, ids = prompts(3), torch.full((3,), -1, dtype=torch.int32, device=prompts().device)
    for names in (["anna", None, "ben"], ["carl", "carl", "anna"]):
        served.bank.ids(names, out=ids)
        inputs = {CACHE: StaticCache(config=served.config, max_cache_len=16), "adapter_ids": ids}
        logits = [served(input_ids=tokens, **inputs).logits[:, -1]]
        for token in tokens[:, :3].split(1, dim=1):
            logits.append(served(input_ids=token, **inputs).logits[:, -1])
        whole = served(input_ids=torch.cat((tokens, tokens[:, :3]), 1), adapter_names=names).logits[:, -4:]
        assert relative(torch.stack(logits, 1), whole) < 1e-5


@pytest.mark.parametrize("way", ["greedy", "static cache"])
@pytest.mark.parametrize("family", ["Mistral", "Qwen3"])
def test_sliding_windows(family, way):
    settings = {"sliding_window": 4}
    if family != "Mistral":
        settings |= {"use_sliding_window": True, "max_window_layers": 1}
    model = tiny(family, **settings)
    served = serve(model, capacity=1, group_size=8)
    assert torch.equal(generate(served, prompts(), **WAYS[way]), generate(model, prompts(), **WAYS[way]))
    assert not torch.equal(generate(tiny(family), prompts(), **WAYS[way]), generate(model, prompts(), **WAYS[way]))
