"""The memory of an AdapterBank: a pair of tables per layer, each with one row per slot."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from .. import python_fallback
from ..functional import road_tables
from ..ops import checks
from .adapter import Adapter
from .layer_names import LayerNames


class BankTables:
    """by_layer: layer -> (r1, r2), allocated once and written row by row. Arguments as in AdapterBank."""

    def __init__(self, widths, capacity: int, group_size: int, compact: bool, device, dtype: torch.dtype):
        _check_arguments(widths, group_size, dtype)
        self.widths = MappingProxyType(dict(widths))
        self.group_size, self.compact, self.dtype = group_size, bool(compact), dtype
        self._names = LayerNames(self.widths)
        # Tensors created in inference mode cannot be written outside of it.
        with torch.inference_mode(False):
            self.by_layer = {
                layer: tuple(
                    torch.full((capacity, width // 2 if compact else width), value, dtype=dtype, device=device)
                    for value in (1.0, 0.0)
                )
                for layer, width in self.widths.items()
            }
            self.device = next(iter(self.by_layer.values()))[0].device
            self.identity = self._stage({})

    def rows_of(self, adapter: Adapter, partial: bool) -> tuple[Tensor, ...]:
        """What ``write`` writes to a slot for this adapter. Raises TypeError or ValueError if it does not fit."""
        if adapter.group_size != self.group_size:
            raise ValueError(f"the adapter has group_size {adapter.group_size}, but the bank {self.group_size}")
        if self.compact and adapter.variant != "road_1":
            raise ValueError(
                f"compact tables hold road_1 only, got {adapter.variant}: make the bank with compact=False"
            )
        names, widths = self._names.match(adapter.layers, partial), adapter.widths
        for layer, name in names.items():
            if widths[name] != self.widths[layer]:
                raise ValueError(
                    f"layer {name!r} is {self.widths[layer]} features wide in the bank, got {widths[name]}"
                )
        return self._stage({layer: self._tables_of(adapter, name) for layer, name in names.items()})

    def write(self, slot: int, rows: Sequence[Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_copy_([table[slot] for pair in self.by_layer.values() for table in pair], rows)

    def _tables_of(self, adapter: Adapter, name: str) -> tuple[Tensor, Tensor]:
        """On the CPU, where reading the values does not synchronise; float32 or wider."""
        theta, alpha = adapter.layers[name]
        dtype = torch.promote_types(torch.promote_types(theta.dtype, alpha.dtype), self.dtype)
        theta, alpha = (t.detach().to("cpu", torch.promote_types(dtype, torch.float32)) for t in (theta, alpha))
        tables = road_tables(theta, alpha, variant=adapter.variant, group_size=self.group_size)
        if self.compact:
            return tables
        return python_fallback.expand_tables(*tables, adapter.widths[name], self.group_size)

    def _stage(self, tables: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        """r1 and r2 of every layer, the identity where ``tables`` has none; checked to be finite, copied at once."""
        sizes = [table.shape[1] for pair in self.by_layer.values() for table in pair]
        flat = torch.empty(sum(sizes), dtype=self.dtype, device="cpu", pin_memory=self.device.type == "cuda")
        rows = iter(flat.split(sizes))
        identity = torch.ones(1, device="cpu"), torch.zeros(1, device="cpu")
        for layer in self.by_layer:
            for row, values in zip((next(rows), next(rows)), tables.get(layer, identity), strict=True):
                if not row.copy_(values).isfinite().all():
                    raise ValueError(
                        f"theta or alpha of layer {layer!r} has a NaN, an infinity, or a value beyond {self.dtype}"
                    )
        return flat.to(self.device, non_blocking=True).split(sizes)


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
