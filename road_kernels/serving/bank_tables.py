"""The memory of an AdapterBank: a pair of tables per layer, each with one row per slot."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from ..ops import checks
from .bank_rows import RowMaker, Rows


class BankTables:
    """by_layer: layer -> (r1, r2), allocated once and written row by row. Arguments as in AdapterBank.

    of_packed: name -> (r1, r2) of all layers packed under that name; those in by_layer are column slices of them.

    filled: int32 [capacity], the slot's own number where it holds an adapter, -1 where it is the identity. Written
    beside the tables, on the same stream.
    """

    def __init__(self, widths, capacity: int, group_size: int, compact: bool, device, dtype: torch.dtype, packed=None):
        _check_arguments(widths, group_size, dtype)
        self.widths = MappingProxyType(dict(widths))
        self.packed = _checked_packed({} if packed is None else packed, self.widths)
        self.rows = RowMaker(self.widths, group_size, bool(compact), dtype)
        # Tensors created in inference mode cannot be written outside of it.
        with torch.inference_mode(False):
            self.of_packed: dict[str, tuple[Tensor, Tensor]] = {}
            found: dict[str, tuple[Tensor, Tensor]] = {}
            taken = {part for parts in self.packed.values() for part in parts}
            apart = {layer: (layer,) for layer in self.widths if layer not in taken}
            for name, parts in {**self.packed, **apart}.items():
                sizes = [self.rows.table_width(part) for part in parts]
                shape = capacity, sum(sizes)
                r1, r2 = (torch.full(shape, value, dtype=dtype, device=device) for value in (1.0, 0.0))
                found |= zip(parts, zip(r1.split(sizes, 1), r2.split(sizes, 1), strict=True), strict=True)
                if name in self.packed:
                    self.of_packed[name] = r1, r2
            self.by_layer = {layer: found[layer] for layer in self.widths}
            self.device = self.rows.device = next(iter(self.by_layer.values()))[0].device
            self.filled = torch.full((capacity,), -1, dtype=torch.int32, device=self.device)
            self._identity = self.rows.identity()

    def write(self, slot: int, rows: Rows) -> None:
        """Writes the layers of ``rows``. On a GPU a few launches for all of them together."""
        self._copy(self._row_of(slot, rows.layers), rows)
        self.filled[slot].fill_(slot)

    def clear(self, slot: int) -> None:
        self.filled[slot].fill_(-1)
        self._copy(self._row_of(slot, self._identity.layers), self._identity)

    def read(self, slots: Sequence[int]) -> Tensor:
        """A copy of the rows of some slots, [len(slots), 2, W]: r1 and r2 of all layers side by side."""
        at = torch.tensor(slots, dtype=torch.int64, device=self.device)
        tables = zip(*self.by_layer.values(), strict=True)
        return torch.stack([torch.cat([t.index_select(0, at) for t in part], 1) for part in tables], 1)

    def restore(self, slots: Sequence[int], rows: Tensor) -> None:
        """Writes what ``read`` of the same slots returned. Raises ValueError if it is of another size."""
        width = self._identity.flat.shape[1]
        if rows.shape != (len(slots), 2, width):
            raise ValueError(f"rows must be [{len(slots)}, 2, {width}], got {list(rows.shape)}")
        for slot, flat in zip(slots, rows, strict=True):
            self.write(slot, Rows(tuple(self.widths), flat.contiguous()))

    def read_slot(self, slot: int) -> Rows:
        return Rows(tuple(self.widths), self.read([slot])[0])

    def _row_of(self, slot: int, layers: Sequence[str]) -> list[Tensor]:
        return [self.by_layer[layer][part][slot] for part in (0, 1) for layer in layers]

    def _copy(self, targets: list[Tensor], rows: Rows) -> None:
        sizes = [self.rows.table_width(layer) for layer in rows.layers]
        with torch.no_grad():
            torch._foreach_copy_(targets, rows.flat.view(-1).split(sizes * 2))


def _check_arguments(widths, group_size, dtype) -> None:
    if not isinstance(widths, Mapping):
        raise TypeError(f"widths must map layer names to numbers of features, got {type(widths).__name__}")
    if not widths:
        raise ValueError("widths must hold at least one layer, got none")
    for layer, width in widths.items():
        if not isinstance(layer, str) or isinstance(width, bool) or not isinstance(width, int):
            raise TypeError(f"widths must map str to int, got {layer!r}: {width!r}")
        checks.check_group_size(group_size, width, f"the width of layer {layer!r}")
    if dtype not in checks.FLOATS:
        raise TypeError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype}")


def _checked_packed(packed, widths: Mapping[str, int]) -> Mapping[str, tuple[str, ...]]:
    if not isinstance(packed, Mapping):
        raise TypeError(f"packed must map names to the layers packed together, got {type(packed).__name__}")
    owner: dict[str, str] = {}
    for name, parts in packed.items():
        if not isinstance(name, str) or not isinstance(parts, (tuple, list)) or not parts:
            raise TypeError(f"packed must map str to a list of layers, got {name!r}: {parts!r}")
        if name in widths:
            raise ValueError(f"packed has the name {name!r}, which is that of a layer")
        for part in parts:
            if not isinstance(part, str) or part not in widths:
                raise ValueError(f"packed[{name!r}] has {part!r}, which is no layer of the bank")
            if (other := owner.setdefault(part, name)) != name or list(parts).count(part) > 1:
                raise ValueError(f"layer {part!r} is packed twice, in {other!r} and {name!r}")
    return MappingProxyType({name: tuple(parts) for name, parts in packed.items()})
