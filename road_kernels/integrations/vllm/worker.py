"""New values for adapters that are being served, without files: what a trainer sends after every step.

llm = LLM(..., enable_lora=True, worker_extension_cls="road_kernels.integrations.vllm.RoadWorker")
llm.collective_rpc("update_road_adapter", args=("anna", pack(layers)))
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...serving.adapter import Adapter

_PARTS = ("0", "1")


class RoadWorker:
    """Methods for vLLM's workers, which ``worker_extension_cls`` adds and ``collective_rpc`` calls by name."""

    def update_road_adapter(self, adapter: int | str, layers, form: str | None = None) -> None:
        """Writes new values of some layers into a loaded adapter, between two steps; the next step uses them.

        Requests of other adapters are not touched. Running requests of this one go on with the new values, over what
        they have computed with the old ones. vLLM caches prefixes by the adapter's name: call its
        ``reset_prefix_cache`` after an update.

        Args:
            adapter: its lora_int_id or lora_name.
            layers: an Adapter, a mapping of the checkpoint's layer names to (theta, alpha), or the bytes that ``pack``
                makes of either: only bytes pass between processes with vLLM's default serialisation.
            form: what the pairs are, as in AdapterBank.update: "road_1", "road_2", "road_4", "table"; None: the
                adapter's own variant.

        Raises:
            KeyError: no such adapter is loaded. TypeError, ValueError: as in AdapterBank.update; nothing is written.
        """
        layers = unpack(layers) if isinstance(layers, (bytes, bytearray, memoryview)) else layers
        self.model_runner.lora_manager._adapter_manager.update_road(adapter, layers, form)


def pack(layers: Adapter | Mapping[str, tuple[Tensor, Tensor]]) -> bytes:
    """Layers as bytes, in the format of safetensors, for ``update_road_adapter``. Needs the package safetensors."""
    from safetensors.torch import save

    layers = layers.layers if isinstance(layers, Adapter) else layers
    tensors = {
        f"{name}.{part}": torch.empty(t.shape, dtype=t.dtype, device="cpu").copy_(t.detach())
        for name, pair in layers.items()
        for part, t in zip(_PARTS, pair, strict=True)
    }
    return save(tensors)


def unpack(data: bytes) -> dict[str, tuple[Tensor, Tensor]]:
    """The layers that ``pack`` packed. Raises ValueError if the bytes are not of ``pack``."""
    import safetensors
    from safetensors.torch import load

    try:
        tensors = load(bytes(data))
        names = dict.fromkeys(key.rpartition(".")[0] for key in tensors)
        return {name: tuple(tensors[f"{name}.{part}"] for part in _PARTS) for name in names}
    except (safetensors.SafetensorError, KeyError) as error:
        raise ValueError(f"layers must be bytes that road_kernels.integrations.vllm.pack made: {error}") from None
