"""Which adapter rotates each row of a batch: ids in memory that never moves, so that CUDA graphs can hold them."""

from collections.abc import Collection

import torch
from torch import Tensor


class RowIds:
    """The ids of one of vLLM's punica wrappers, for each group size: int32 [tokens], -1 where no such adapter is.

    ``calls`` is what a layer runs: (group_size, ids) for each. Where ``group_sizes`` are given it is fixed, for graphs
    that were traced or captured before the first adapter; else it holds the group sizes that are in the batch.

    token_slots: the wrapper's own slot of each token, -1 for none, int64 on the device, which vLLM writes before a
    step. Beyond the tokens of the batch it holds slots of earlier ones, and so do the ids: rows that nobody reads.
    """

    def __init__(self, token_slots: Tensor, slots: int, group_sizes: Collection[int] | None):
        self._token_slots, self._slots = token_slots, slots
        self._group_sizes: list[int | None] = [None] * slots  # of the adapter in each slot; None: it is not RoAd
        self._own_slot: dict[int, Tensor] = {}  # group size -> [1 + slots]: the slot where such an adapter is, else -1
        self._ids: dict[int, Tensor] = {}
        self.fixed = group_sizes is not None
        for group_size in group_sizes or ():
            self._add(group_size)
        self.calls: tuple[tuple[int, Tensor], ...] = tuple(self._ids.items()) if self.fixed else ()

    def put(self, slot: int, group_size: int | None) -> None:
        """An adapter of that group size, or (None) one that is not RoAd, has taken the slot. Does not synchronise."""
        if group_size is not None and group_size not in self._ids:
            self._add(group_size)
        self._group_sizes[slot] = group_size
        for own, table in self._own_slot.items():
            table[1 + slot].fill_(slot if own == group_size else -1)

    def update(self, tokens: int, slots: Collection[int]) -> None:
        """After vLLM has written the slots of a batch: of so many tokens, among ``slots``. Does not synchronise."""
        places = self._token_slots[:tokens] + 1
        for group_size, ids in self._ids.items():
            torch.index_select(self._own_slot[group_size], 0, places, out=ids[:tokens])
        if not self.fixed:
            present = {self._group_sizes[slot] for slot in slots}
            self.calls = tuple((g, ids) for g, ids in self._ids.items() if g in present)

    def _add(self, group_size: int) -> None:
        def empty(count: int) -> Tensor:
            return torch.full((count,), -1, dtype=torch.int32, device=self._token_slots.device)

        # Tensors created in inference mode, in which vLLM loads some adapters, cannot be written outside of it.
        with torch.inference_mode(False):
            self._own_slot[group_size] = empty(1 + self._slots)
            self._ids[group_size] = empty(len(self._token_slots))
