"""Which adapter rotates each row of a batch: ids in memory that never moves, so that CUDA graphs can hold them."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor


class RowIds:
    """The ids of one of vLLM's punica wrappers, for each group size: int32 [tokens], -1 where no such adapter is.

    ``calls`` is what a layer runs: (group_size, ids) for each. Where ``group_sizes`` are given it is fixed, for graphs
    that were traced or captured before the first adapter; else it holds the group sizes that are in the batch.

    Beyond the tokens of a batch ids are those of earlier ones, in rows that nobody reads: slots there are always valid.
    """

    def __init__(self, tokens: int, slots: int, device: torch.device, group_sizes: Collection[int] | None):
        self._tokens, self._device = tokens, device
        self._group_sizes: list[int | None] = [None] * slots  # of the adapter in each slot; None: it is not RoAd
        self._ids: dict[int, Tensor] = {}
        self.fixed = group_sizes is not None
        for group_size in group_sizes or ():
            self._add(group_size)
        self.calls: tuple[tuple[int, Tensor], ...] = tuple(self._ids.items()) if self.fixed else ()

    def put(self, slot: int, group_size: int | None) -> None:
        """An adapter of that group size, or (None) one that is not RoAd, has taken the slot."""
        if group_size is not None and group_size not in self._ids:
            self._add(group_size)
        self._group_sizes[slot] = group_size

    def update(self, slots: Sequence[int]) -> None:
        """Of a batch whose tokens have the adapters in these slots, -1 for none. Does not synchronise."""
        present = {self._group_sizes[slot] for slot in set(slots) - {-1}}
        if not self.fixed:
            self.calls = tuple((g, ids) for g, ids in self._ids.items() if g in present)
        for group_size, ids in self.calls:
            own = [slot if g == group_size else -1 for slot, g in enumerate(self._group_sizes)] + [-1]  # own[-1]: none
            row = torch.tensor([own[slot] for slot in slots], dtype=torch.int32, pin_memory=self._device.type == "cuda")
            ids[: len(slots)].copy_(row, non_blocking=True)

    def _add(self, group_size: int) -> None:
        # Tensors created in inference mode, in which vLLM loads some adapters, cannot be written outside of it.
        with torch.inference_mode(False):
            self._ids[group_size] = torch.full((self._tokens,), -1, dtype=torch.int32, device=self._device)
