"""The slices of a linear layer's output, such as q, k and v of a packed projection, and what of each this rank has."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from vllm.model_executor.layers.linear import ColumnParallelLinear, MergedColumnParallelLinear, QKVParallelLinear


class Slice(NamedTuple):
    full: int  # features in the whole layer
    width: int  # of them on this rank
    shard: int  # which run of ``width`` features of the full ones


def slices_of(layer) -> tuple[Slice, ...]:
    """The slices of one of vLLM's linear layers, side by side on this rank in this order."""
    rank, ranks = layer.tp_rank, layer.tp_size
    if isinstance(layer, QKVParallelLinear):
        v_head_size = getattr(layer, "v_head_size", layer.head_size)
        heads = (layer.total_num_heads, layer.total_num_kv_heads, layer.total_num_kv_heads)
        full = [n * size for n, size in zip(heads, (layer.head_size, layer.head_size, v_head_size), strict=True)]
        # A head of k and v that several ranks share is on each of them.
        kv_rank = rank // layer.num_kv_head_replicas
        shards = (rank, kv_rank, kv_rank)
        widths = [n // ranks for n in layer.output_sizes]  # which count a shared head once a rank
        return tuple(map(Slice, full, widths, shards))
    if isinstance(layer, ColumnParallelLinear) and not (layer.gather_output and ranks > 1):
        merged = isinstance(layer, MergedColumnParallelLinear)
        full = layer.output_sizes if merged else [layer.output_size]
        return tuple(Slice(n, n // ranks, rank) for n in full)
    # Row-parallel after its all-reduce (a partial sum without one is rotated as well: R is linear), replicated, and
    # column-parallel after its all-gather: the whole width on every rank.
    return (Slice(layer.output_size, layer.output_size, 0),)


def width_of(slices: Sequence[Slice]) -> int:
    """Features on this rank."""
    return sum(s.width for s in slices)


def rotated_ranges(slices: Sequence[Slice], group_size: int) -> tuple[tuple[int, int], ...]:
    """The columns that adapters of this group size may rotate, as few ranges as there are.

    All of them if every slice is whole groups on this rank; a slice that is not has no adapter of that group size,
    which ``cut`` has refused.
    """
    ranges: list[tuple[int, int]] = []
    start = 0
    for s in slices:
        stop = start + s.width
        if s.width % group_size == 0:
            begin = ranges.pop()[0] if ranges and ranges[-1][1] == start else start
            ranges.append((begin, stop))
        start = stop
    return tuple(ranges)


def cut(row: Tensor, slices: Sequence[Slice]) -> Tensor:
    """What this rank has of a table [.., full widths of the slices side by side]."""
    parts = row.split([s.full for s in slices], -1)
    return torch.cat([p.narrow(-1, s.shard * s.width, s.width) for p, s in zip(parts, slices, strict=True)], -1)


def check_cut(name: str, slices: Sequence[Slice], group_size: int) -> None:
    """Raises ValueError if what this rank has of a slice is not whole groups."""
    for s in slices:
        if s.width % group_size:
            part = f" of its {s.full}" if s.width < s.full else ""
            raise ValueError(
                f"layer {name!r} has {s.width} features{part} on a rank, which must be whole groups of "
                f"group_size {group_size}"
            )
