"""Llama models with random weights, and random adapters on all their linear layers, for generation.py and training.py.

All weights and adapters are drawn as bfloat16 values and then converted: models of every dtype are the same function,
and one reference in float64 serves them all. Needs transformers and peft.
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from road_kernels import python_fallback

SHAPES = {
    "tiny": {  # k_proj and v_proj are narrower than the rest
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 256,
    },
    "small": {  # a quarter of the widths below
        "hidden_size": 1024,
        "intermediate_size": 2752,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "vocab_size": 8000,
    },
    "7b": {  # LLaMA-7B
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
}
SHAPES["7b-8"] = SHAPES["7b"] | {"num_hidden_layers": 8}  # a quarter of its depth
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GROUP_SIZE = 64


def llama(shape: str, device: torch.device | str, layers: int | None = None) -> nn.Module:
    """transformers' LlamaForCausalLM in bfloat16, frozen; ``layers`` overrides the depth."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = SHAPES[shape] | ({} if layers is None else {"num_hidden_layers": layers})
    config = LlamaConfig(**sizes, max_position_embeddings=4096, attn_implementation="sdpa")
    # No end of sequence and no special ids: prompts are random.
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


def shared_copy(model: nn.Module) -> nn.Module:
    """A model with modules of its own on the same weights."""
    return copy.deepcopy(model, {id(t): t for t in itertools.chain(model.parameters(), model.buffers())})


def converted(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with its parameters in ``dtype``, sharing those that already are. Buffers stay as they are: the rotary
    frequencies are float32 in a model of any dtype."""
    model = shared_copy(model)
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(p.to(dtype), requires_grad=False))
    return model


def adapted(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> linear layer, for the layers that get adapters."""
    return {name: m for name, m in model.named_modules() if name.rpartition(".")[2] in LINEARS}


def replaced(model: nn.Module, make: Callable[[str, nn.Module], nn.Module]) -> nn.Module:
    """A shared copy whose adapted layers are ``make(name, layer)``."""
    model = shared_copy(model)
    for name, layer in adapted(model).items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, make(name, layer))
    return model


def _drawn(seed: int, *shape: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """bfloat16 values in float32."""
    values = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    return (mean + std * values).bfloat16().float()


# ---- adapters: {layer: one tensor for all adapters}, as if trained


@dataclass
class Road:
    """road_1: theta some tenths of a radian, alpha around 1; [A, D/2] each."""

    theta: dict[str, Tensor]
    alpha: dict[str, Tensor]

    @classmethod
    def draw(cls, model: nn.Module, count: int) -> "Road":
        theta, alpha = {}, {}
        for k, (name, layer) in enumerate(adapted(model).items()):
            size = (count, layer.out_features // 2)
            theta[name] = _drawn(2 * k, *size, std=0.3).to(layer.weight.device)
            alpha[name] = _drawn(2 * k + 1, *size, mean=1.0, std=0.1).to(layer.weight.device)
        return cls(theta, alpha)

    def merged(self, name: str, adapter: int, weight: Tensor) -> Tensor:
        """R W, by the specification in PyTorch."""
        parameters = (p[name][adapter].to(weight.dtype) for p in (self.theta, self.alpha))
        tables = python_fallback.road_tables(*parameters, "road_1", GROUP_SIZE)
        return python_fallback.rotate(weight.t(), *tables, GROUP_SIZE).t()


@dataclass
class Lora:
    """y = x W^T + x a b: a [A, in, r], b [A, r, out], which includes the scaling."""

    a: dict[str, Tensor]
    b: dict[str, Tensor]

    @classmethod
    def draw(cls, model: nn.Module, count: int, rank: int) -> "Lora":
        a, b = {}, {}
        for k, (name, layer) in enumerate(adapted(model).items()):
            device = layer.weight.device
            a[name] = _drawn(2 * k, count, layer.in_features, rank, std=layer.in_features**-0.5).to(device)
            b[name] = _drawn(2 * k + 1, count, rank, layer.out_features, std=0.1).to(device)
        return cls(a, b)

    def merged(self, name: str, adapter: int, weight: Tensor) -> Tensor:
        return weight + (self.a[name][adapter].to(weight.dtype) @ self.b[name][adapter].to(weight.dtype)).t()


# ---- the reference


class _MergedLinear(nn.Module):
    """Merges in float64 in every call: a merged copy of the model would take four times its bytes in bfloat16."""

    def __init__(self, merged: Callable[[], Tensor]):
        super().__init__()
        self.merged = merged

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.merged())


@torch.no_grad()
def reference_logits(model: nn.Module, adapters: Road | Lora | None, tokens: Tensor, keep: int) -> Tensor:
    """[requests, keep, vocabulary] in float64: the last ``keep`` positions, each request alone, its adapter merged."""
    which = [0]  # the adapter of the current request

    def make(name, layer):
        if adapters is None:
            return _MergedLinear(lambda: layer.weight.double())
        return _MergedLinear(lambda: adapters.merged(name, which[0], layer.weight.double()))

    reference = converted(replaced(model, make), torch.float64)
    # Each request alone; without adapters one batch will do.
    parts = [tokens] if adapters is None else tokens.split(1)
    rows = []
    for adapter, part in enumerate(parts):
        which[0] = adapter
        rows.append(reference(input_ids=part, use_cache=False, logits_to_keep=keep).logits)
    return torch.cat(rows)
