"""A model whose linear layers have int4 weights, in compressed-tensors' packed format, and the same in float32."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import vllm_models

WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
}


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers in -8 .. 7, and the scale of each row, a bfloat16 value."""
    scale = (weight.abs().amax(1, keepdim=True) / 7).bfloat16().float()
    return (weight / scale).round().clamp(-8, 7), scale


def is_linear(name: str) -> bool:
    return any(f".{linear}." in f".{name}." for linear in vllm_models.LINEARS)


def make_int4(source: Path, folder: Path) -> Path:
    """From the folder of vllm_models.make_models: the base with int4 weights, the same adapters."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    shutil.copytree(source, folder)
    path = folder / "base" / "model.safetensors"
    weights = {}
    for name, t in load_file(path).items():
        if name.endswith(".weight") and is_linear(name):
            integers, scale = quantised(t)
            weights[f"{name}_packed"] = pack_to_int32(integers.to(torch.int8), 4)
            weights[f"{name}_scale"] = scale.bfloat16()
            weights[f"{name}_shape"] = torch.tensor(t.shape)
        else:
            weights[name] = t
    save_file(weights, path, metadata={"format": "pt"})
    path = folder / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": CONFIG}))
    return folder


def reference(source: Path, name: str | None) -> nn.Module:
    """transformers' float32 model with the same rounded weights, the adapter after them."""
    from peft import PeftModel

    model = vllm_models.load(source / "base")
    for module, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and is_linear(module):
            layer.weight.data = torch.mul(*quantised(layer.weight.data))
    return model if name is None else PeftModel.from_pretrained(model, source / name).eval()
