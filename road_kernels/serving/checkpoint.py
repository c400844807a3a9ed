"""Reading and writing PEFT's RoAd checkpoints, without PEFT. SECURITY.md says what a hostile one can do."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..ops import checks
from . import weights_file
from .layer_names import plain_name

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."  # PEFT's own wrappers around the model
PARAMETERS = ("road_theta", "road_alpha")

Layers = dict[str, tuple[Tensor, Tensor]]


def read_peft(folder, ignore: Collection[str], max_bytes: int) -> tuple[Layers, str, int]:
    """(module name -> (theta, alpha), variant, group_size) of a checkpoint folder; see Adapter.from_peft."""
    if isinstance(ignore, str):
        raise TypeError(f"ignore must be a collection of module names, got the str {ignore!r}")
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: a RoAd checkpoint is one that holds {CONFIG} and {WEIGHTS}")
    variant, group_size = _read_config(folder)
    layers = _pair_up(_read_weights(folder, ignore, max_bytes), folder)
    return layers, variant, group_size


def write_peft(
    folder, layers: Mapping[str, tuple[Tensor, Tensor]], variant: str, group_size: int, base_model: str | None
) -> None:
    """See Adapter.save."""
    try:
        from safetensors.torch import save
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "writing a checkpoint needs the package safetensors: pip install safetensors"
        ) from error
    names: dict[str, str] = {}  # in the checkpoint -> in the adapter
    for name in layers:
        if (other := names.setdefault(plain_name(name), name)) != name:
            raise ValueError(f"layers {other!r} and {name!r} have one name in a checkpoint, {plain_name(name)!r}")
    config = {
        "base_model_name_or_path": base_model,
        "group_size": group_size,
        "inference_mode": True,
        "init_weights": True,
        "peft_type": "ROAD",
        "target_modules": sorted(names),
        "task_type": None,
        "variant": variant,
    }
    weights = {}
    for name, pair in layers.items():
        for parameter, tensor in zip(PARAMETERS, pair, strict=True):
            # A copy: safetensors takes no two tensors of one storage, which slices of a flat tensor are.
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor.detach())
            weights[f"{PREFIX}{plain_name(name)}.{parameter}"] = copy
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Renamed when complete, the weights first: a reader never finds half a file, nor a config without weights.
    for name, data in (
        (WEIGHTS, save(weights, metadata={"format": "pt"})),
        (CONFIG, json.dumps(config, indent=2).encode()),
    ):
        part = folder / f"{name}.{os.getpid()}.part"
        try:
            part.write_bytes(data)
            part.replace(folder / name)
        finally:
            part.unlink(missing_ok=True)


def _read_config(folder: Path) -> tuple[str, int]:
    path = _existing(folder, CONFIG)
    if path.stat().st_size > weights_file.MAX_HEADER:
        raise ValueError(f"{path} is damaged: larger than {weights_file.MAX_HEADER} bytes")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: of json and of utf-8 alike
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "ROAD":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"{path} is not that of a RoAd adapter: peft_type must be 'ROAD', got {kind!r}")
    variant, group_size = config.get("variant"), config.get("group_size")
    if variant not in checks.VARIANTS:
        raise ValueError(f"{path}: variant must be 'road_1', 'road_2' or 'road_4', got {variant!r}")
    if type(group_size) is not int or group_size < 2 or group_size % 2:
        raise ValueError(f"{path}: group_size must be an even int, 2 or more, got {group_size!r}")
    return variant, group_size


def _read_weights(folder: Path, ignore: Collection[str], max_bytes: int) -> dict[str, Tensor]:
    path = _existing(folder, WEIGHTS)

    def wanted(key: str) -> bool:
        module, parameter = _split(key)
        if parameter in PARAMETERS:
            return True
        if any(f".{name}." in f".{module}." for name in ignore):
            return False
        raise ValueError(
            f"{folder} also holds {key!r}, which is no RoAd parameter. If {module!r} is served in another way, "
            f"read the checkpoint with Adapter.from_peft(folder, ignore=[...])"
        )

    return weights_file.read(path, wanted, max_bytes)


def _existing(folder: Path, name: str) -> Path:
    path = folder / name
    if path.is_file():
        return path
    hint = ""
    if name == WEIGHTS and (folder / PICKLE).is_file():
        hint = f". {PICKLE} is pickled, which can run any code when read: save the adapter as safetensors"
    raise FileNotFoundError(f"{folder} has no {name}{hint}")


def _split(key: str) -> tuple[str, str]:
    """(module, parameter)"""
    module, _, parameter = plain_name(key).removeprefix(PREFIX).rpartition(".")
    return module, parameter


def _pair_up(weights: dict[str, Tensor], folder: Path) -> Layers:
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in weights.items():
        module, parameter = _split(key)
        if parameter in found.setdefault(module, {}):
            raise ValueError(
                f"{folder} holds {parameter} of layer {module!r} twice, with and without {PREFIX!r} or a wrapper"
            )
        found[module][parameter] = tensor
    for module, pair in found.items():
        if missing := [parameter for parameter in PARAMETERS if parameter not in pair]:
            raise ValueError(f"{folder} has no {missing[0]} of layer {module!r}")
    if not found:
        raise ValueError(f"{folder} holds no RoAd parameter")
    theta, alpha = PARAMETERS
    return {module: (pair[theta], pair[alpha]) for module, pair in found.items()}
