"""vLLM's managers of adapters, which take RoAd adapters as well."""

import dataclasses
import logging
from collections.abc import Collection

import vllm
from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.lora.utils import get_adapter_absolute_path
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

from ..._version import __version__
from ...backends.registry import choose
from ...serving.adapter import Adapter
from . import _options
from ._adapters import RoadModel, is_road
from ._modules import Modules
from ._rows import RowIds
from ._versions import LOGGER

logger = logging.getLogger(LOGGER)


class RoadModelManager(LRUCacheLoRAModelManager):
    """Slots, eviction and pinning are vLLM's; what a slot holds in each layer is a LoRA or a RoAd adapter."""

    def __init__(self, *args, vllm_config, **kwargs):
        self.road_options = _options.of_config(vllm_config)
        super().__init__(*args, vllm_config=vllm_config, **kwargs)
        self.road_modules = Modules(self.model, self.modules, self.packed_modules)
        self._say_what_is_served()

    def _say_what_is_served(self) -> None:
        sizes = self.road_options.group_sizes
        logger.info(
            "road_kernels %s in vLLM %s: RoAd adapters on %d layers, %d at once, %s, %s; kernels: %s",
            __version__,
            vllm.__version__,
            len(self.road_modules.rotated),
            self.lora_slots,
            "of any group_size" if sizes is None else f"of group_size {' or '.join(map(str, sizes))}",
            "beside LoRA adapters" if self.road_options.lora else "without LoRA adapters",
            choose(None, self.device).__name__.rpartition(".")[2],
        )

    def _init_punica_wrapper(self, *args, **kwargs) -> None:
        super()._init_punica_wrapper(*args, **kwargs)
        for wrapper in self.punica_wrapper_mapping.values():
            tokens = len(wrapper._token_lora_indices)
            wrapper.road_rows = RowIds(tokens, self.lora_slots, self.device, self.road_options.group_sizes)

    def _create_lora_modules(self) -> None:
        with _options.used(self.road_options):
            super()._create_lora_modules()

    def _add_adapter(self, lora) -> None:
        if isinstance(lora, RoadModel):  # has no matrices to pack
            self._registered_adapters[lora.id] = lora
        else:
            super()._add_adapter(lora)

    def activate_adapter(self, lora_id: int) -> bool:
        activated = super().activate_adapter(lora_id)  # the slot is the identity, for a RoAd adapter
        if activated:
            slot, model = self.lora_index_to_id.index(lora_id), self._registered_adapters[lora_id]
            is_road = isinstance(model, RoadModel)
            if is_road:
                self._write_tables(slot, model, model.tables)
            for wrapper in self.punica_wrapper_mapping.values():
                wrapper.road_rows.put(slot, model.group_size if is_road else None)
            self._last_mapping = None  # the ids of the same slots may be others now
        return activated

    def _write_tables(self, slot: int, model: RoadModel, modules) -> None:
        for name in modules:
            self.road_modules.rotated[name].set_tables(slot, *model.tables[name])

    def _set_adapter_mapping(self, mapping) -> None:
        slots = {adapter: slot for slot, adapter in enumerate(self.lora_index_to_id) if self._is_road(adapter)}
        super()._set_adapter_mapping(self._for_lora(mapping, slots.keys()))
        for wrapper in self.punica_wrapper_mapping.values():
            wrapper.road_rows.update([slots.get(adapter, -1) for adapter in mapping.index_mapping])

    def _is_road(self, adapter: int | None) -> bool:
        return isinstance(self._registered_adapters.cache.get(adapter), RoadModel)

    def _for_lora(self, mapping, road: Collection[int]):
        """What LoRA's kernels see: no adapter where it is RoAd, so that a batch without LoRA costs nothing of it.

        In a batch with LoRA vLLM's kernels for CPUs take -1 for the last slot. There RoAd's rows keep their own slot,
        where LoRA's matrices are zeros.
        """
        if not road or (self.device.type == "cpu" and not {*mapping.index_mapping} <= {0, *road}):
            return mapping
        without = (
            tuple(0 if adapter in road else adapter for adapter in adapters)
            for adapters in (mapping.index_mapping, mapping.prompt_mapping)
        )
        return dataclasses.replace(mapping, **dict(zip(("index_mapping", "prompt_mapping"), without, strict=True)))

    def update_road(self, adapter: int | str, layers, form: str | None) -> None:
        """See RoadWorker.update_road_adapter."""
        model = self._find_road(adapter)
        changed = model.update(layers, form)
        if model.id in self.lora_index_to_id:
            self._write_tables(self.lora_index_to_id.index(model.id), model, changed)

    def _find_road(self, adapter: int | str) -> RoadModel:
        models = [m for m in self.list_adapters().values() if isinstance(m, RoadModel)]
        found = [m for m in models if adapter in (m.id, m.name)]
        if not found:
            loaded = ", ".join(f"{m.name!r} ({m.id})" for m in models) or "none"
            raise KeyError(f"no RoAd adapter {adapter!r} is loaded; those that are: {loaded}")
        return found[-1]


class RoadWorkerManager(LRUCacheWorkerLoRAManager):
    """Reads RoAd checkpoints itself and leaves others to vLLM."""

    _manager_cls = RoadModelManager

    def _load_adapter(self, lora_request):
        manager, name = self._adapter_manager, lora_request.lora_name
        folder = get_adapter_absolute_path(lora_request.lora_path)
        if not is_road(folder):
            if not manager.road_options.lora:
                raise ValueError(
                    f"{folder} is no RoAd checkpoint, and this server serves no LoRA adapters: "
                    'it was started with "lora": false'
                )
            return super()._load_adapter(lora_request)
        try:
            adapter = Adapter.from_peft(folder)
        except FileNotFoundError as error:  # which vLLM would report as a folder that does not exist
            raise ValueError(str(error)) from None
        check_group_size(adapter.group_size, manager.road_options.group_sizes)
        try:
            model = RoadModel(lora_request.lora_int_id, name, adapter, manager.road_modules)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{folder}: {error}") from None
        logger.debug("RoAd adapter %r: %s, group_size %d", name, adapter.variant, adapter.group_size)
        return model


def check_group_size(group_size: int, served: tuple[int, ...] | None) -> None:
    if served is not None and group_size not in served:
        wanted = str(sorted({*served, group_size}))
        raise ValueError(
            f"the adapter has group_size {group_size}, and this server rotates by {', '.join(map(str, served))} only, "
            "which was fixed when its model was compiled or captured: start it with --additional-config "
            f'\'{{"road_kernels": {{"group_sizes": {wanted}}}}}\', or with --enforce-eager'
        )
