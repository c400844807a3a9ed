"""Tiny random models with adapters for tests in vLLM, and what transformers makes of them: adapters merged by PEFT."""

import functools
from pathlib import Path

import torch
from torch import nn

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VOCABULARY = 512
# Name -> (variant, group_size, the linear layers it is for).
ROAD = {
    "all": ("road_1", 64, LINEARS),
    "some": ("road_2", 64, ("q_proj", "v_proj", "down_proj")),
    "others": ("road_4", 64, ("k_proj", "o_proj", "up_proj")),
    "narrow": ("road_1", 16, LINEARS),
    "wide": ("road_2", 128, ("q_proj", "o_proj", "gate_proj", "up_proj")),
}
LORA = {"lora": 4, "lora_2": 8}  # name -> rank


def make_models(folder: Path, kind: str, **config) -> Path:
    """Writes ``folder``/base, a model of transformers ("llama" or "qwen2"), and beside it every adapter by its name."""
    import peft

    with torch.random.fork_rng():
        model = _random_model(kind, config)
        model.save_pretrained(folder / "base")
        _tokenizer().save_pretrained(folder / "base")
        for name, (variant, group_size, layers) in ROAD.items():
            made = peft.RoadConfig(variant=variant, group_size=group_size, target_modules=list(layers))
            _save(folder, name, made)
        for name, rank in LORA.items():
            _save(folder, name, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(LINEARS)))
    return folder


def _random_model(kind: str, config: dict) -> nn.Module:
    import transformers

    cls = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[kind]
    size = {
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "eos_token_id": None,
        "bos_token_id": None,
    }
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(cls(**(size | config)))
    for p in model.parameters():  # so large that tokens differ from each other, and with every adapter
        torch.nn.init.normal_(p, std=0.08) if p.dim() == 2 else p.data.add_(0.1 * torch.randn_like(p))
    return model


def _save(folder: Path, name: str, config) -> None:
    import peft

    torch.manual_seed(sum(map(ord, name)))
    model = peft.get_peft_model(load(folder / "base"), config)
    for key, p in model.named_parameters():
        if "road_theta" in key or "lora_B" in key:
            p.data.normal_(0, 0.6 if "road" in key else 0.3)
        if "road_alpha" in key:
            p.data.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(folder / name)


def load(folder: Path) -> nn.Module:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _tokenizer():
    """A word for each id: "w0 w1 ..."."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{k}": k for k in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")


@functools.lru_cache(maxsize=16)
def merged(folder: Path, name: str | None) -> nn.Module:
    """transformers' model with an adapter merged into its weights, by PEFT's own code."""
    from peft import PeftModel

    model = load(folder / "base")
    return model if name is None else PeftModel.from_pretrained(model, folder / name).merge_and_unload().eval()


def continuation(model: nn.Module, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """The greedy tokens after a prompt, and the log-probability of each."""
    tokens = torch.tensor([prompt])
    logprobs, cache = [], None
    with torch.inference_mode():
        for _ in range(count):
            out = model(tokens[:, -1:] if cache else tokens, past_key_values=cache, use_cache=True)
            cache, row = out.past_key_values, out.logits[0, -1].log_softmax(-1)
            logprobs.append(row.max().item())
            tokens = torch.cat([tokens, row.argmax().view(1, 1)], 1)
    return tokens[0, len(prompt) :].tolist(), logprobs


def logprobs_of(model: nn.Module, prompt: list[int], tokens: list[int]) -> list[float]:
    """The log-probability of each of these tokens after the prompt and those before it."""
    with torch.inference_mode():
        rows = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return rows.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()


def prompt(seed: int, length: int) -> list[int]:
    return torch.randint(1, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
