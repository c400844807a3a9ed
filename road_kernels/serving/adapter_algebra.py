"""Adapters out of adapters: compositions, interpolations and tables, as parameters that can be saved and trained.

The functions return (layers, variant[, group_size]) for the constructor of Adapter. They compute in float64 on the
device of each layer, rounded once to the widest of the inputs' dtypes, float32 at least.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .. import python_fallback
from ..ops import checks

Pair = tuple[Tensor, Tensor]


def compose(adapters: Sequence) -> tuple[dict[str, Pair], str, int]:
    """See Adapter.compose."""
    variant, group_size = _widest(adapters), _one_group_size(adapters)

    def product(layer: str, width: int, parts: list[Pair]) -> Pair:
        if variant == "road_1":  # blocks that are complex numbers
            thetas, alphas = zip(*parts, strict=True)
            return sum(thetas), math.prod(alphas)
        tables = [python_fallback.road_tables(*part, variant, group_size) for part in parts]
        result = tables[0]
        for then in tables[1:]:
            result = python_fallback.compose_tables(result, then, width, group_size)
        return python_fallback.road_4_parameters(result, width, group_size)

    layers = _layer_by_layer(adapters, variant, group_size, product)
    return layers, variant if variant == "road_1" else "road_4", group_size


def interpolate(adapters: Sequence, weights: Sequence[float]) -> tuple[dict[str, Pair], str, int]:
    """See Adapter.interpolate."""
    for n, weight in enumerate(weights):
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise TypeError(f"the weight of parts[{n}] must be a number, got {type(weight).__name__}")
        if not math.isfinite(weight):
            raise ValueError(f"the weight of parts[{n}] must be finite, got {weight}")
    variant, group_size = _widest(adapters), _one_group_size(adapters)

    def mean(layer: str, width: int, parts: list[Pair]) -> Pair:
        for n, (_, alpha) in enumerate(parts):
            if not (alpha > 0).all():
                raise ValueError(
                    f"layer {layer!r} of parts[{n}] has an alpha of {alpha.min().item():g}: scales are interpolated by "
                    "their logarithms, and must be above 0"
                )
        thetas, alphas = zip(*parts, strict=True)
        theta = sum(weight * theta for weight, theta in zip(weights, thetas, strict=True))
        return theta, math.prod(alpha**weight for weight, alpha in zip(weights, alphas, strict=True))

    return _layer_by_layer(adapters, variant, group_size, mean), variant, group_size


def from_tables(tables: Mapping[str, Pair], widths: Mapping[str, int], group_size: int) -> tuple[dict[str, Pair], str]:
    """See Adapter.from_tables."""
    if not isinstance(widths, Mapping):
        raise TypeError(f"widths must map layer names to numbers of features, got {type(widths).__name__}")
    for name, pair in tables.items():
        if name not in widths:
            raise ValueError(f"widths has no width of layer {name!r}")
        try:
            checks.check_tables_of(widths[name], group_size, tables=tuple(pair))
            if pair[0].dim() != 1:
                raise ValueError(f"r1 must be [D] or [D/2], one adapter, got {list(pair[0].shape)}")
        except (TypeError, ValueError) as error:
            raise type(error)(f"layer {name!r}: {error}") from None
    compact = all(pair[0].shape[-1] != widths[name] for name, pair in tables.items())
    layers: dict[str, Pair] = {}
    with torch.no_grad():
        for name, pair in tables.items():
            r1, r2 = (t.double() for t in pair)
            if compact:  # the angle of (0, 0) is 0
                theta, alpha = torch.atan2(r2, r1), torch.hypot(r1, r2)
            else:
                theta, alpha = python_fallback.road_4_parameters((r1, r2), widths[name], group_size)
            dtype = _result_dtype(pair)
            layers[name] = theta.to(dtype), alpha.to(dtype)
    return layers, "road_1" if compact else "road_4"


def _layer_by_layer(
    adapters: Sequence, variant: str, group_size: int, combine: Callable[[str, int, list[Pair]], Pair]
) -> dict[str, Pair]:
    """``combine(layer, width, [(theta, alpha) of each adapter])`` of every layer that any of them has, in float64."""
    widths: dict[str, int] = {}
    for n, adapter in enumerate(adapters):
        for layer, width in adapter.widths.items():
            if widths.setdefault(layer, width) != width:
                raise ValueError(f"layer {layer!r} is {widths[layer]} features wide, but {width} in adapter {n}")
    layers: dict[str, Pair] = {}
    with torch.no_grad():
        for layer, width in widths.items():
            given = [adapter.layers[layer] for adapter in adapters if layer in adapter.layers]
            device = given[0][0].device
            parts = [_widened(adapter, layer, width, variant, device) for adapter in adapters]
            dtype = _result_dtype([t for pair in given for t in pair])
            theta, alpha = combine(layer, width, parts)
            layers[layer] = theta.to(dtype), alpha.to(dtype)
    return layers


def _widened(adapter, layer: str, width: int, variant: str, device: torch.device) -> Pair:
    """(theta, alpha) of the layer packed as ``variant``, which holds the adapter's own; float64."""
    if layer not in adapter.layers:
        size = checks.packed_width(variant, width)
        theta, alpha = (torch.full((size,), value, dtype=torch.float64, device=device) for value in (0.0, 1.0))
        return theta, alpha
    theta, alpha = (t.detach().to(device, torch.float64) for t in adapter.layers[layer])
    if adapter.variant == "road_1" != variant:  # both rows of a pair
        theta, alpha = python_fallback.expand_tables(theta, alpha, width, adapter.group_size)
    if variant == "road_4" != adapter.variant:  # both slots
        groups = (t.reshape(-1, 1, adapter.group_size).expand(-1, 2, -1) for t in (theta, alpha))
        theta, alpha = (t.reshape(-1) for t in groups)
    return theta, alpha


def _widest(adapters: Sequence) -> str:
    return max((adapter.variant for adapter in adapters), key=checks.VARIANTS.index)


def _one_group_size(adapters: Sequence) -> int:
    sizes = sorted({adapter.group_size for adapter in adapters})
    if len(sizes) > 1:
        raise ValueError(f"all adapters must have one group_size, got {' and '.join(map(str, sizes))}")
    return sizes[0]


def _result_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
