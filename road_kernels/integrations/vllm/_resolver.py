"""Adapters that requests name before anybody loads them, from the folder where vLLM's own resolver finds LoRA's."""

import json
from pathlib import Path

from vllm import envs
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from ...serving.checkpoint import CONFIG
from ._adapters import is_road


class RoadResolver(LoRAResolver):
    """FOLDER/NAME, if it is a RoAd checkpoint whose base_model_name_or_path is the model served, as for LoRA."""

    def __init__(self, folder: str):
        self.folder = Path(folder).resolve()

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        path = self.folder / lora_name
        if lora_name != path.name or lora_name == ".." or not is_road(path):  # nothing outside of the folder
            return None
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        if config.get("base_model_name_or_path") != base_model_name:
            return None
        return LoRARequest(lora_name, 1, str(path))  # vLLM gives it a number of its own


def register() -> None:
    """Beside vLLM's, if its folder is set."""
    if folder := envs.VLLM_LORA_RESOLVER_CACHE_DIR:
        LoRAResolverRegistry.register_resolver("RoAd Filesystem Resolver", RoadResolver(folder))
