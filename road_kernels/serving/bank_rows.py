"""From the parameters of an adapter to what a slot of an AdapterBank holds, checked in full and not yet written.

All layers of an adapter are computed, checked and moved at once, as one flat tensor: groups are adjacent in every
packing, so that layers side by side are packed like one wide layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import python_fallback
from ..backends.registry import backend_info
from ..functional.tables import tables_in
from ..ops import checks
from .adapter import Adapter, check_layers
from .layer_names import LayerNames

Pair = tuple[Tensor, Tensor]
_ON_CPU = "cpu" if backend_info()["backends"]["cpu"]["usable"] else "python"


@dataclass(frozen=True)
class Rows:
    """What is written to a slot: ``flat`` [2, W], r1 and r2 of ``layers`` side by side, on the bank's device."""

    layers: tuple[str, ...]
    flat: Tensor


class RowMaker:
    """Makes the rows of a bank with these widths, checked by its caller."""

    def __init__(self, widths: Mapping[str, int], group_size: int, compact: bool, dtype: torch.dtype):
        self.widths, self.group_size, self.compact, self.dtype = widths, group_size, compact, dtype
        self.names = LayerNames(widths)
        self.device = torch.device("cpu")  # until the bank has its memory

    def table_width(self, layer: str) -> int:
        return self.widths[layer] // 2 if self.compact else self.widths[layer]

    def of_adapter(self, adapter: Adapter, partial: bool) -> Rows:
        """All layers of the bank; where the adapter has none, the identity. Raises TypeError or ValueError.

        Computed on the CPU, where the check does not synchronise, wherever the parameters are.
        """
        pairs = self._matched(adapter, partial)
        return self._rows(tuple(self.widths), pairs, adapter.variant, torch.device("cpu"))

    def of_update(self, layers: Adapter | Mapping[str, Pair], form: str | None, partial: bool) -> Rows:
        """The given layers only. Raises TypeError or ValueError.

        Computed where the parameters are, if that is the bank's device; the check then synchronises once.
        """
        if isinstance(layers, Adapter):
            if form not in (None, layers.variant):
                raise ValueError(f"the form of an Adapter is its variant, {layers.variant!r}, got {form!r}")
            form, pairs = layers.variant, self._matched(layers, partial)
        elif form == "table":
            pairs = self._matched_tables(layers, partial)
        else:
            form = "road_1" if form is None else form
            if form not in checks.FORMS:
                raise ValueError(f"form must be 'road_1', 'road_2', 'road_4' or 'table', got {form!r}")
            pairs = self._matched(Adapter(layers, form, self.group_size), partial)
        there = all(t.device == self.device for pair in pairs.values() for t in pair)
        return self._rows(tuple(pairs), pairs, form, self.device if there else torch.device("cpu"))

    def identity(self) -> Rows:
        return self._rows(tuple(self.widths), {}, "table", torch.device("cpu"))

    def _matched(self, adapter: Adapter, partial: bool) -> dict[str, Pair]:
        """Bank layer -> (theta, alpha)."""
        if adapter.group_size != self.group_size:
            raise ValueError(f"the adapter has group_size {adapter.group_size}, but the bank {self.group_size}")
        if self.compact and adapter.variant != "road_1":
            raise ValueError(
                f"compact tables hold road_1 only, got {adapter.variant}: make the bank with compact=False"
            )
        names, widths = self.names.match(adapter.layers, partial), adapter.widths
        for layer, name in names.items():
            if widths[name] != self.widths[layer]:
                raise ValueError(
                    f"layer {name!r} is {self.widths[layer]} features wide in the bank, got {widths[name]}"
                )
        return {layer: adapter.layers[name] for layer, name in names.items()}

    def _matched_tables(self, tables: Mapping[str, Pair], partial: bool) -> dict[str, Pair]:
        """Bank layer -> (r1, r2), of the width of the bank's own tables."""
        check_layers(tables, "(r1, r2)")
        pairs: dict[str, Pair] = {}
        for layer, name in self.names.match(tables, partial).items():
            width, pair = self.widths[layer], tuple(tables[name])
            try:
                checks.check_tables_of(width, self.group_size, tables=pair)
                if pair[0].dim() != 1:
                    raise ValueError(f"r1 must be [D] or [D/2], one adapter, got {list(pair[0].shape)}")
                if pair[0].is_meta:
                    raise ValueError("r1 and r2 are on the meta device, without values")
                if self.compact and len(pair[0]) == width:
                    raise ValueError(f"the bank's tables are compact, [{width // 2}], got [{width}]")
            except (TypeError, ValueError) as error:
                raise type(error)(f"layer {name!r}: {error}") from None
            r1, r2 = pair
            pairs[layer] = (r1, r2) if self.compact else python_fallback.expand_tables(r1, r2, width, self.group_size)
        return pairs

    def _rows(self, layers: tuple[str, ...], pairs: Mapping[str, Pair], form: str, device: torch.device) -> Rows:
        """The rows of ``layers`` in this order, made on ``device``: the identity where ``pairs`` has none."""
        with torch.no_grad():
            if form == "table":
                r1, r2 = (self._side_by_side(layers, pairs, k, device, 1.0 - k, self.table_width) for k in (0, 1))
            else:
                r1, r2 = self._tables(layers, pairs, form, device)
            flat = torch.empty(2, len(r1), dtype=self.dtype, device=device)
            torch._foreach_copy_([flat[0], flat[1]], [r1, r2])
            # Both propagate a NaN; 1.4 million float32 values take 0.2 ms on one core, isfinite().all() 7 ms.
            if not torch.stack(flat.aminmax()).isfinite().all():
                self._refuse(layers, flat)
            if flat.device != self.device:
                flat = flat.pin_memory() if self.device.type == "cuda" else flat
                flat = flat.to(self.device, non_blocking=True)
        return Rows(layers, flat)

    def _tables(self, layers, pairs, variant: str, device: torch.device) -> Pair:
        """r1 and r2 of all layers, in float32 or wider: rounded to the dtype of the bank's tables afterwards."""

        def width(layer: str) -> int:
            return checks.packed_width(variant, self.widths[layer])

        theta, alpha = (self._side_by_side(layers, pairs, k, device, float(k), width) for k in (0, 1))
        wide = torch.float64 if torch.float64 in (theta.dtype, alpha.dtype, self.dtype) else torch.float32
        # A server that insists on set_backend("cuda") still has its adapters computed on the CPU.
        backend = None if device == self.device else _ON_CPU
        tables = tables_in(wide, theta, alpha, variant, self.group_size, backend)
        if self.compact:
            return tables
        return python_fallback.expand_tables(*tables, sum(map(self.widths.__getitem__, layers)), self.group_size)

    def _side_by_side(self, layers, pairs, part: int, device: torch.device, default: float, width) -> Tensor:
        """One parameter, or table, of all layers; moved at once if they are on one device."""
        given = {layer: pairs[layer][part].detach() for layer in layers if layer in pairs}
        homes = {t.device for t in given.values()}
        home = homes.pop() if len(homes) == 1 else device
        parts = [
            given[layer].to(home)
            if layer in given
            else torch.full((width(layer),), default, dtype=torch.float32, device=home)
            for layer in layers
        ]
        return torch.cat(parts).to(device)

    def _refuse(self, layers: Sequence[str], flat: Tensor) -> None:
        for layer, rows in zip(layers, flat.split([self.table_width(layer) for layer in layers], 1), strict=True):
            if not rows.isfinite().all():
                raise ValueError(
                    f"theta or alpha of layer {layer!r} has a NaN, an infinity, or a value beyond {self.dtype}"
                )
