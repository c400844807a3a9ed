"""vLLM's classes of linear layers with LoRA, each with the rotation after it."""

import functools

import torch
from vllm.lora.layers import ColumnParallelLinearWithLoRA, ReplicatedLinearWithLoRA, RowParallelLinearWithLoRA
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA

from ...functional import rotate_batched
from . import _options
from ._rows import RowIds
from ._slices import Slice, rotated_ranges, slices_of, width_of


class RotatedLinear:
    """In front of one of vLLM's classes: its forward, then one rotation in place of what it returns, R (W x + b).

    A slot holds an adapter of one kind: LoRA's matrices are zeros where it is RoAd, the tables the identity where it is
    LoRA, and ids leave those rows out. road_r1, road_r2: [slots, features on this rank], float32.
    """

    road_rows: RowIds | None = None  # None: of a manager other than ours, which has no RoAd adapters
    road_with_lora = True

    def create_lora_weights(self, max_loras, lora_config, model_config=None) -> None:
        self.road_with_lora = _options.current().lora
        if self.road_with_lora:
            super().create_lora_weights(max_loras, lora_config, model_config)
        else:  # read for their shapes alone, when vLLM makes the adapters of its warm-up
            self.lora_config = lora_config
            one = torch.zeros(1, 1, 1, 1, dtype=lora_config.lora_dtype, device=self.device)
            self.lora_a_stacked = self.lora_b_stacked = (one,) * self.n_slices
        self.set_road_slices(slices_of(self.base_layer))
        size = max_loras, width_of(self.road_slices)
        self.road_r1 = torch.ones(size, dtype=torch.float32, device=self.device)
        self.road_r2 = torch.zeros(size, dtype=torch.float32, device=self.device)

    def set_mapping(self, punica_wrapper) -> None:
        super().set_mapping(punica_wrapper)
        self.road_rows = getattr(punica_wrapper, "road_rows", None)

    def set_road_slices(self, slices: tuple[Slice, ...]) -> None:
        """Slices that adapters know by one name count as one: a group may lie across them."""
        self.road_slices = slices
        self._road_ranges: dict[int, tuple[tuple[int, int], ...]] = {}

    def _ranges(self, group_size: int) -> tuple[tuple[int, int], ...]:
        found = self._road_ranges.get(group_size)
        if found is None:
            found = self._road_ranges[group_size] = rotated_ranges(self.road_slices, group_size)
        return found

    def reset_lora(self, index: int) -> None:
        if self.road_with_lora:
            super().reset_lora(index)
        self.road_r1[index].fill_(1)
        self.road_r2[index].fill_(0)

    def set_lora(self, index: int, lora_a, lora_b) -> None:
        if self.road_with_lora:
            super().set_lora(index, lora_a, lora_b)  # calls reset_lora
        else:  # zeros, of the warm-up
            self.reset_lora(index)

    def set_tables(self, index: int, r1: torch.Tensor, r2: torch.Tensor) -> None:
        """r1, r2: [features on this rank]. From pinned memory without waiting for the device."""
        self.road_r1[index].copy_(r1, non_blocking=True)
        self.road_r2[index].copy_(r2, non_blocking=True)

    def forward(self, input_):
        output = super().forward(input_) if self.road_with_lora else self.base_layer(input_)
        if self.road_rows is None:
            return output
        y = output[0] if isinstance(output, tuple) else output
        y = y.view(-1, y.shape[-1])
        for group_size, ids in self.road_rows.calls:
            ids = ids[: y.shape[0]]
            for start, stop in self._ranges(group_size):
                whole = stop - start == y.shape[1]
                columns, r1, r2 = (t if whole else t[:, start:stop] for t in (y, self.road_r1, self.road_r2))
                # overlap: ids and tables are written between steps, and the layer itself has run since.
                rotate_batched(columns, r1, r2, ids, group_size=group_size, inplace=True, overlap=True)
        return output


# What they return is the whole output. Classes for one model's layers may return parts of it.
_FORWARDS = {cls.forward for cls in (ColumnParallelLinearWithLoRA, ReplicatedLinearWithLoRA, RowParallelLinearWithLoRA)}


@functools.cache
def with_rotation(cls: type) -> type:
    """The subclass of one of vLLM's LoRA classes that rotates; the class itself if it is not for linear layers."""
    if not issubclass(cls, BaseLinearLayerWithLoRA) or cls.forward not in _FORWARDS:
        return cls
    return type(f"{cls.__name__}AndRoad", (RotatedLinear, cls), {"__module__": __name__, "__doc__": cls.__doc__})
