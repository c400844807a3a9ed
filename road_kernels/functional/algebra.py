"""Tables as an algebra: products, inverses, transposes and parts of RoAd matrices are again pairs of tables.

Functions take and return ``(r1, r2)`` as road_tables makes them and rotate takes them: [D] or compact [D/2], or a bank
[A, D] or [A, D/2]; a bank and a single adapter can be combined. ``dim`` is D, which the width of a compact table does
not determine. Results are float32 or wider, compact if all inputs are, and differentiable.

Pairs are numbered in the packed order of theta: pair k is (i, i + g/2) with i = k // (g/2) * g + k % (g/2).

Source: Liao & Monz, "3-in-1: 2D Rotary Adaptation", arXiv 2409.00119, section 3.3 (composability).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .. import python_fallback
from ..ops import checks
from ..python_fallback.tables import arithmetic_dtype

Tables = tuple[Tensor, Tensor]
Pairs = slice | range | Sequence[int] | Tensor


def identity(
    dim: int,
    *,
    adapters: int | None = None,
    compact: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tables:
    """The identity, bit for bit: r1 = 1, r2 = 0, [D] or [A, D], or compact with D/2."""
    checks.check_tables_of(dim, 2)
    if adapters is not None and adapters < 0:
        raise ValueError(f"adapters must be 0 or more, got {adapters}")
    width = dim // 2 if compact else dim
    shape = (width,) if adapters is None else (adapters, width)
    return torch.ones(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device)


def compose(first: Tables, then: Tables, *, dim: int, group_size: int = 64) -> Tables:
    """The adapter that is equal to ``first`` followed by ``then``: R_then R_first.

    Adapters trained one after the other, or stacked, cost one rotation. Products of "road_1" adapters stay compact.

    Raises:
        TypeError, ValueError: not tables for ``dim`` and ``group_size``, or banks of different sizes.
    """
    checks.check_tables_of(dim, group_size, first=first, then=then)
    return python_fallback.compose_tables(first, then, dim, group_size)


def transpose(tables: Tables, *, dim: int, group_size: int = 64) -> Tables:
    """R^T, which is also R^-1 where every block is a rotation (alpha = 1). Errors as in compose."""
    checks.check_tables_of(dim, group_size, tables=tables)
    return python_fallback.transpose_tables(tables, dim, group_size)


def invert(tables: Tables, *, dim: int, group_size: int = 64) -> Tables:
    """R^-1, by the closed form of each 2x2 block, computed in float64.

    Raises:
        ValueError: a block is singular (determinant at most eps x the product of its rows' norms); names the feature
            pair and the determinant. Reading it synchronises with the device.
        The rest as in compose.
    """
    checks.check_tables_of(dim, group_size, tables=tables)
    dtype = arithmetic_dtype(*tables)
    inverse = python_fallback.inverse_or_refuse(tables, dim, group_size, torch.finfo(dtype).eps, "invert")
    return inverse[0].to(dtype), inverse[1].to(dtype)


def select_pairs(tables: Tables, pairs: Pairs, *, dim: int, group_size: int = 64) -> Tables:
    """The part of an adapter on ``pairs``; the identity, and a gradient of exactly zero, on all others.

    Args:
        pairs: a slice or range of 0 .. D/2 - 1, the numbers themselves, or a bool mask [D/2] ([A, D/2] for a bank).

    Raises:
        IndexError: a pair outside 0 .. D/2 - 1. The rest as in compose.
    """
    checks.check_tables_of(dim, group_size, tables=tables)
    return python_fallback.select_pairs(tables, _mask_for(tables, pairs, dim), dim, group_size)


def combine(parts: Iterable[tuple[Tables, Pairs]], *, dim: int, group_size: int = 64) -> Tables:
    """One adapter out of several on disjoint pairs: ``combine([(a, range(0, n)), (b, range(n, 2 * n))], dim=...)``.

    Each part is (tables, pairs) as in select_pairs. The parts commute, so there is no order to choose; pairs of no
    part are the identity.

    Raises:
        ValueError: no part at all, or a pair in two of them, which is named (compose says which comes first).
        The rest as in select_pairs.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("combine needs at least one (tables, pairs)")
    for n, part in enumerate(parts):
        if not isinstance(part, (tuple, list)) or len(part) != 2:
            raise TypeError(f"parts[{n}] must be (tables, pairs), got {type(part).__name__}")
    checks.check_tables_of(dim, group_size, **{f"parts[{n}]": tables for n, (tables, _) in enumerate(parts)})
    masks = [_mask_for(tables, pairs, dim) for tables, pairs in parts]
    for n, (_, pairs) in enumerate(parts):
        for m, (_, others) in enumerate(parts[:n]):
            if (shared := _shared_pair(pairs, others, dim)) is not None:
                raise ValueError(f"parts[{m}] and parts[{n}] share pair {shared}")
    selected = [
        python_fallback.select_pairs(tables, mask, dim, group_size)
        for (tables, _), mask in zip(parts, masks, strict=True)
    ]
    result = selected[0]
    for then in selected[1:]:
        result = python_fallback.compose_tables(result, then, dim, group_size)
    return result


def tables_to_road4(tables: Tables, *, dim: int, group_size: int = 64) -> Tables:
    """(theta, alpha) of a "road_4" adapter with these tables, [2 D] or [A, 2 D], in PEFT's packing.

    Any chain of adapters becomes one that can be saved as a PEFT checkpoint, and trained on: both slots get the angle
    and the length of (r1_k, r2_k), so that the identity comes back as theta = 0, alpha = 1. road_tables of the result
    differs from ``tables`` by rounding, at most 4e-7 of the length in float32. Errors as in compose.
    """
    checks.check_tables_of(dim, group_size, tables=tables)
    return python_fallback.road_4_parameters(tables, dim, group_size)


def pair_mask(pairs: Pairs, dim: int, device: torch.device | str | None = None) -> Tensor:
    """bool [D/2], true at ``pairs``; a bool mask is returned as it is. Arguments and errors as in select_pairs."""
    count = dim // 2
    if isinstance(pairs, Tensor) and pairs.dtype == torch.bool:
        if pairs.shape[-1:] != (count,) or pairs.dim() > 2:
            raise ValueError(f"pairs must be a bool mask [{count}] or [A, {count}], got {list(pairs.shape)}")
        return pairs.to(device)
    chosen = set(_numbers(pairs, count))
    if chosen and not (min(chosen) >= 0 and max(chosen) < count):
        raise IndexError(f"pairs must lie in 0 .. {count - 1}, got {min(chosen)} .. {max(chosen)}")
    return torch.tensor([k in chosen for k in range(count)], dtype=torch.bool, device=device)


def _shared_pair(a: Pairs, b: Pairs, dim: int) -> int | None:
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):  # without reading a tensor: torch.compile follows
        return min(set(_numbers(a, dim // 2)) & set(_numbers(b, dim // 2)), default=None)
    device = next(pairs.device for pairs in (a, b) if isinstance(pairs, Tensor))
    both = pair_mask(a, dim, device) & pair_mask(b, dim, device)
    return int(both.nonzero()[0, -1]) if both.any() else None


def _numbers(pairs: Pairs, count: int) -> Iterable[int]:
    if isinstance(pairs, slice):
        ends = [end for end in (pairs.start, pairs.stop) if end is not None]
        if all(isinstance(end, int) for end in ends):
            if any(not 0 <= end <= count for end in ends):
                raise IndexError(f"pairs must lie in 0 .. {count - 1}, got {pairs}")
            return range(count)[pairs]
    elif isinstance(pairs, range):
        return pairs
    else:
        numbers = pairs.reshape(-1).tolist() if isinstance(pairs, Tensor) else pairs
        if isinstance(numbers, Sequence) and all(type(n) is int for n in numbers):
            return numbers
    got = pairs if isinstance(pairs, slice) else getattr(pairs, "dtype", type(pairs).__name__)
    raise TypeError(f"pairs must be integers, a slice, a range or a bool mask tensor, got {got}")


def _mask_for(tables: Tables, pairs: Pairs, dim: int) -> Tensor:
    mask, table = pair_mask(pairs, dim, tables[0].device), tables[0]
    if mask.dim() == table.dim() == 2 and mask.shape[0] != table.shape[0]:
        raise ValueError(f"the mask is for {mask.shape[0]} adapters, but the tables hold {table.shape[0]}")
    return mask
