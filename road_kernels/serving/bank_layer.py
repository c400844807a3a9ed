"""One layer of an AdapterBank, for the loop that runs it in every step."""

import torch
from torch import Tensor

from ..functional import rotate_batched


class BankLayer:
    """A handle from ``AdapterBank.layer``: what is the same in every step is looked up once.

    bank: the bank. name: the layer. r1, r2: its tables, as ``AdapterBank.tables`` returns them, to be read only.
    group_size: g. A copy, or what is unpickled, belongs to the copy of the bank.
    """

    __slots__ = ("bank", "group_size", "name", "r1", "r2")

    def __init__(self, bank, name: str):
        self.bank, self.name, self.group_size = bank, name, bank.group_size
        self.r1, self.r2 = bank.tables(name)

    def __reduce__(self):
        return BankLayer, (self.bank, self.name)

    def rotate(
        self,
        x: Tensor,
        adapter_ids: Tensor,
        *,
        inplace: bool = False,
        overlap: bool = False,
        backend: str | None = None,
    ) -> Tensor:
        """rotate_batched of the layer's output x [..., D] by the layer's tables; arguments and errors as there.

        adapter_ids: from ``ids``, ``hold`` or ``ids_of_slots`` of the bank. Those are -1 for no adapter, which passes
        any row bit for bit; the number of an empty slot, used as it is, does so with finite rows only.

        overlap: as in rotate_batched. It holds for the layers of a model if adapters are loaded, and ids filled,
        between steps, and the kernel before is the layer's own; not for a rotation that directly follows them.
        """
        return rotate_batched(
            x,
            self.r1,
            self.r2,
            adapter_ids,
            group_size=self.group_size,
            inplace=inplace,
            overlap=overlap,
            backend=backend,
        )

    def __repr__(self) -> str:
        return f"BankLayer({self.name!r}, {list(self.r1.shape)} of {self.r1.dtype} on {self.r1.device})"


torch.serialization.add_safe_globals([BankLayer])
