"""Which models can be served. Everything else is refused by name, before anything is changed."""

import importlib
from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn

from ...ops import checks

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
# Cosines and sines that depend on the position alone; "dynamic" and "longrope" change with the length of the sequence.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
QKV, GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")


def check(model) -> str:
    """The family of the model. Raises TypeError or ValueError, which name the class or the setting, for any other."""
    module, name = type(model).__module__, type(model).__name__
    family = name.removesuffix("ForCausalLM")
    if family not in FAMILIES or module != f"transformers.models.{family.lower()}.modeling_{family.lower()}":
        hint = ""
        if callable(getattr(model, "get_base_model", None)):
            hint = ": pass the model without PEFT, and its adapters to load"
        elif module.startswith(__package__):
            hint = ": it is served already"
        wanted = ", ".join(f"{family}ForCausalLM" for family in FAMILIES)
        raise TypeError(f"model must be one of {wanted} of transformers, got {module}.{name}{hint}")
    config = model.config
    if getattr(model, "is_quantized", False) or getattr(config, "quantization_config", None) is not None:
        raise ValueError("model must not be quantized: quantized layers cannot be packed")
    if config.hidden_act not in ("silu", "swish"):
        raise ValueError(f"config.hidden_act must be 'silu', got {config.hidden_act!r}")
    _check_modules(model, family)
    _check_weights(model)
    return family


def projections(model) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of the seven linear layers of every decoder layer, by their names in the model."""
    for k, layer in enumerate(model.model.layers):
        for part, names in (("self_attn", (*QKV, "o_proj")), ("mlp", (*GATE_UP, "down_proj"))):
            for name in names:
                yield f"model.layers.{k}.{part}.{name}", getattr(getattr(layer, part), name)


def packs(model) -> dict[str, list[str]]:
    """Name of a packed layer -> the names of those that it packs."""
    return {
        f"model.layers.{k}.{part}.{name}": [f"model.layers.{k}.{part}.{one}" for one in parts]
        for k in range(len(model.model.layers))
        for part, name, parts in (("self_attn", "qkv_proj", QKV), ("mlp", "gate_up_proj", GATE_UP))
    }


def _check_modules(model, family: str) -> None:
    modeling = importlib.import_module(type(model).__module__)

    def require(name: str, module, kind: type) -> None:
        if type(module) is not kind:
            raise TypeError(f"{name} must be a {kind.__name__}, got {type(module).__module__}.{type(module).__name__}")

    classes = {
        name: getattr(modeling, family + name)
        for name in ("Model", "DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding")
    }
    inner = model.model
    require("model.model", inner, classes["Model"])
    require("model.model.norm", inner.norm, classes["RMSNorm"])
    require("model.model.rotary_emb", inner.rotary_emb, classes["RotaryEmbedding"])
    if inner.rotary_emb.rope_type not in ROPE_TYPES:
        raise ValueError(f"the rope_type of model must be one of {ROPE_TYPES}, got {inner.rotary_emb.rope_type!r}")
    for k, layer in enumerate(inner.layers):
        name = f"model.layers.{k}"
        require(name, layer, classes["DecoderLayer"])
        require(f"{name}.self_attn", layer.self_attn, classes["Attention"])
        require(f"{name}.mlp", layer.mlp, classes["MLP"])
        for norm in ("input_layernorm", "post_attention_layernorm"):
            require(f"{name}.{norm}", getattr(layer, norm), classes["RMSNorm"])
    for name, layer in projections(model):
        require(name, layer, nn.Linear)
    for name, module in model.named_modules():
        if hasattr(module, "_hf_hook"):
            raise ValueError(f"{name or 'model'} is dispatched by accelerate: load the model on one device")


def _check_weights(model) -> None:
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    dtype = model.model.layers[0].self_attn.q_proj.weight.dtype
    if dtype not in checks.FLOATS:
        raise TypeError(f"the weights of model must be float16, bfloat16, float32 or float64, got {dtype}")
    for name, p in model.named_parameters():
        if type(p) is not nn.Parameter or type(p.data) is not torch.Tensor:
            raise TypeError(f"{name} must be a plain parameter, got {type(p).__name__} of {type(p.data).__name__}")
        if p.is_meta or p.device != model.device:
            raise ValueError(f"the model must be on one device, {model.device}, got {name} on {p.device}")
    for name, layer in projections(model):
        for p in layer.parameters():
            if p.dtype != dtype:
                raise TypeError(f"all linear layers must be {dtype}, got {p.dtype} in {name}")
            if uses[id(p)] > 1:
                raise ValueError(f"{name} shares a parameter with another module: such weights cannot be packed")
