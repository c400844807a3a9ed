"""RoAd adapters as vLLM's manager keeps them: read, checked in full, and cut to what this rank has."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from vllm.lora.lora_model import LoRAModel

from ...serving.adapter import Adapter
from ...serving.bank_rows import RowMaker, Rows
from ...serving.checkpoint import CONFIG
from ._modules import Modules
from ._slices import cut, width_of


def is_road(folder: str | os.PathLike) -> bool:
    """Whether a folder is a RoAd checkpoint. What is damaged or missing is left to vLLM's own reader, which says so."""
    try:
        config = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("peft_type") == "ROAD"


class RoadModel(LoRAModel):
    """An adapter in vLLM's cache, which keeps, evicts and pins it like others: a LoRAModel without LoRA weights.

    ``tables`` has those of each module that the adapter changes: [2, features on this rank], r1 and r2, float32, on the
    CPU. They are replaced, never written, so that a copy to the device may still be under way.

    Raises ValueError, naming the layer, if the model cannot be served with the adapter.
    """

    def __init__(self, id: int, name: str, adapter: Adapter, modules: Modules):
        super().__init__(id, 1, {})
        self.name, self.variant, self.group_size = name, adapter.variant, adapter.group_size
        self._modules = modules
        self.tables: dict[str, Tensor] = {}
        self.update(adapter)

    def update(self, layers: Adapter | Mapping[str, tuple[Tensor, Tensor]], form: str | None = None) -> list[str]:
        """New values for some layers, checked in full first; arguments as in AdapterBank.update. Returns the modules
        whose tables have changed."""
        if isinstance(layers, Adapter):
            if layers.group_size != self.group_size:
                raise ValueError(f"adapter {self.name!r} has group_size {self.group_size}, got {layers.group_size}")
            form, layers = form or layers.variant, layers.layers
        layers = {own: layers[name] for own, name in self._modules.renamed(layers).items()}
        if not layers:  # all of them on other stages of a pipeline
            return []
        for name in layers:
            self._modules.check_group_size(name, self.group_size)
        form = self.variant if form is None else form
        if form != "table":
            for name, width in Adapter(layers, form, self.group_size).widths.items():
                self._modules.check_width(name, width)
        widths = {name: self._modules.targets[name].full for name in layers}
        rows = RowMaker(widths, self.group_size, compact=False, dtype=torch.float32).of_update(layers, form, False)
        return self._replace(rows, widths)

    def _replace(self, rows: Rows, widths: Mapping[str, int]) -> list[str]:
        changed: dict[str, Tensor] = {}
        for name, flat in zip(rows.layers, rows.flat.split([widths[name] for name in rows.layers], 1), strict=True):
            target = self._modules.targets[name]
            if target.module not in changed:
                changed[target.module] = self._copy_of(target.module)
            own = cut(flat, target.slices)
            changed[target.module][:, target.start : target.start + own.shape[1]] = own
        self.tables |= changed
        return list(changed)

    def _copy_of(self, module: str) -> Tensor:
        layer, before = self._modules.rotated[module], self.tables.get(module)
        table = torch.empty(2, width_of(layer.road_slices), pin_memory=layer.device.type == "cuda")
        if before is not None:
            return table.copy_(before)
        table[0], table[1] = 1, 0
        return table
