"""Checks that the vLLM that is installed has what this integration builds on: names, signatures, attributes.

Written for vLLM 0.32 and 0.33, whose parts used here are the same. What is checked is what is used, not the number.
"""

import inspect
from dataclasses import fields
from types import ModuleType
from typing import NamedTuple

# Below vLLM's own logger, whose handler and level it gets.
LOGGER = "vllm.road_kernels"


class Hooks(NamedTuple):
    """The modules in which names are replaced."""

    lora_utils: ModuleType  # _all_lora_classes: from_layer takes the first class that can replace a layer
    mixin: ModuleType  # LRUCacheWorkerLoRAManager: what the model runner makes


# Class -> method -> the parameters that it must have, in this order, possibly among others.
_MANAGER = {
    "_init_punica_wrapper": (),
    "_create_lora_modules": (),
    "_add_adapter": ("lora",),
    "_set_adapter_mapping": ("mapping",),
    "activate_adapter": ("lora_id",),
}
_WORKER_MANAGER = {"create_lora_manager": ("model", "vllm_config"), "_load_adapter": ("lora_request",)}
_LAYER = {
    "create_lora_weights": ("max_loras", "lora_config", "model_config"),
    "reset_lora": ("index",),
    "set_lora": ("index", "lora_a", "lora_b"),
    "set_mapping": ("punica_wrapper",),
}


def find() -> Hooks:
    """Raises ImportError, in one sentence, if something is missing or takes other arguments."""
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise ImportError(f"vLLM cannot be imported ({error})") from error
    try:
        import vllm.lora.utils as lora_utils
        import vllm.v1.worker.lora_model_runner_mixin as mixin
        from vllm.lora.layers import LoRAMapping
        from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.model_manager import LRUCacheLoRAModelManager
        from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
        from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
        from vllm.model_executor.layers.linear import LinearBase, QKVParallelLinear
    except ImportError as error:
        raise ImportError(_unknown(str(error))) from error
    _require(isinstance(getattr(lora_utils, "_all_lora_classes", None), tuple), "vllm.lora.utils._all_lora_classes")
    _require(hasattr(mixin, "LRUCacheWorkerLoRAManager"), "LRUCacheWorkerLoRAManager in lora_model_runner_mixin")
    _require(hasattr(LRUCacheWorkerLoRAManager, "_manager_cls"), "LRUCacheWorkerLoRAManager._manager_cls")
    for cls, methods in (
        (BaseLinearLayerWithLoRA, _LAYER),
        (LRUCacheLoRAModelManager, _MANAGER),
        (LRUCacheWorkerLoRAManager, _WORKER_MANAGER),
        (LoRAModel, {"__init__": ("lora_model_id", "rank", "loras")}),
    ):
        for name, parameters in methods.items():
            _require_parameters(cls, name, parameters)
    _require_attributes(PunicaWrapperBase, "_token_lora_indices")
    _require({"index_mapping", "prompt_mapping"} <= {f.name for f in fields(LoRAMapping)}, "LoRAMapping.index_mapping")
    _require_attributes(LinearBase, "tp_rank", "tp_size", "skip_bias_add", "output_size")
    _require_attributes(QKVParallelLinear, "total_num_heads", "total_num_kv_heads", "num_kv_head_replicas", "head_size")
    return Hooks(lora_utils, mixin)


def _require_parameters(cls: type, name: str, parameters: tuple[str, ...]) -> None:
    function = getattr(cls, name, None)
    got = list(inspect.signature(function).parameters) if callable(function) else None
    if got is None or [p for p in got if p in parameters] != list(parameters):
        found = "is missing" if got is None else f"takes ({', '.join(got)})"
        raise ImportError(_unknown(f"{cls.__name__}.{name}(self{''.join(f', {p}' for p in parameters)}) {found}"))


def _require_attributes(cls: type, *names: str) -> None:
    """Attributes that a constructor of the class sets."""
    constructors = [inspect.unwrap(vars(c)["__init__"]) for c in cls.__mro__ if "__init__" in vars(c)]
    known = {name for function in constructors if hasattr(function, "__code__") for name in function.__code__.co_names}
    for name in names:
        _require(name in known, f"{cls.__name__}.{name}")


def _require(there: bool, what: str) -> None:
    if not there:
        raise ImportError(_unknown(f"{what} is missing"))


def _unknown(what: str) -> str:
    import vllm

    version = getattr(vllm, "__version__", "of unknown version")
    return f"road_kernels.integrations.vllm does not know this vLLM, {version}: {what}; vLLM 0.32 and 0.33 are known"
