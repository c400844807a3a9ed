"""Tiny models of transformers with random weights, PEFT checkpoints for them, and what they give merged, in float64."""

import copy

import torch
import transformers
from peft import PeftModel, RoadConfig, get_peft_model
from support.backends import DEVICE
from support.peft_models import randomize
from torch import nn

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VOCABULARY, G = 64, 8
ADAPTERS = {
    "anna": ("road_1", TARGETS),
    "ben": ("road_2", TARGETS),
    "carl": ("road_4", ("k_proj", "up_proj", "o_proj")),
}
NAMES = ["ben", None, "anna", "carl", "anna"]


def tiny(family: str, dtype=torch.float32, **settings) -> nn.Module:
    """Two layers, grouped-query attention, every bias and norm drawn; tied embeddings in Qwen2."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16 if family == "Qwen3" else 8,  # Qwen3's heads may be wider than hidden_size
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "tie_word_embeddings": family == "Qwen2",
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    config = getattr(transformers, f"{family}Config")(**(sizes | settings))
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(DEVICE).eval().requires_grad_(False)
    for name, p in model.named_parameters():
        if "norm" in name:
            p.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            p.normal_(std=0.2)
        p.copy_(p.bfloat16())  # the same function in every dtype
    return model.to(dtype)


def save_adapters(folder, family: str):
    """A checkpoint for each of ADAPTERS, as PEFT saves it."""
    for name, (variant, targets) in ADAPTERS.items():
        config = RoadConfig(variant=variant, group_size=G, target_modules=list(targets))
        model = randomize(get_peft_model(tiny(family), config))
        model.save_pretrained(folder / name)
    return folder


def load_all(served, folder):
    for name in ADAPTERS:
        served.load(name, folder / name)
    return served


def merged(model: nn.Module, folder, name: str | None) -> nn.Module:
    """The model with the adapter merged by PEFT, in the model's dtype."""
    model = copy.deepcopy(model)
    if name is None:
        return model
    return PeftModel.from_pretrained(model, folder / name).merge_and_unload().eval().requires_grad_(False)


class ExactNorm(nn.Module):
    """transformers' RMSNorm without its rounding to float32."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x):
        return self.weight * x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()


def exact(model: nn.Module) -> nn.Module:
    """The model in float64, norms included; cosines and sines of positions are float32, as its own."""
    frequencies = model.model.rotary_emb.inv_freq
    model = copy.deepcopy(model).double()
    model.model.rotary_emb.inv_freq = frequencies
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if hasattr(child, "variance_epsilon"):
                setattr(parent, name, ExactNorm(child))
    return model


def reference(model: nn.Module, folder, names, tokens, **inputs) -> torch.Tensor:
    """Logits in float64: each request alone, its adapter merged by PEFT."""
    model = exact(model)
    model.set_attn_implementation("sdpa")  # in float64 transformers' eager masks overflow
    rows = []
    for k, name in enumerate(names):
        own = {key: value[k : k + 1] for key, value in inputs.items()}
        rows.append(merged(model, folder, name)(tokens[k : k + 1], **own).logits)
    return torch.cat(rows)


def prompts(count: int = len(NAMES), length: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, VOCABULARY, (count, length), generator=generator, device="cpu").to(DEVICE)


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest relative error of a request."""
    got, want = got.double().flatten(1), want.double().flatten(1)
    return ((got - want).norm(dim=1) / want.norm(dim=1)).max().item()
