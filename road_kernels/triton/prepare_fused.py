"""prepare.py for the fused ops. tables: (adapters, width and strides of r1 and r2, number of ids or None)."""

import functools
import math
from typing import NamedTuple

import torch

from . import layout, plan, prepare
from .kernels.add_rms_norm import add_rms_norm_kernel
from .kernels.add_rms_norm_backward import add_rms_norm_backward_kernel
from .kernels.crossed_rope import crossed_rope_kernel
from .kernels.rope import rope_kernel
from .kernels.silu_mul import silu_mul_kernel
from .kernels.silu_mul_backward import silu_mul_backward_kernel
from .launch import Launch


class Tables(NamedTuple):
    """What launches depend on of r1, r2 and the ids."""

    adapters: int
    width: int
    r1_stride: int  # 0 for one adapter
    r2_stride: int
    ids: int | None  # how many, or None for one adapter

    @classmethod
    def of(cls, r1: torch.Tensor, r2: torch.Tensor, adapter_ids: torch.Tensor | None):
        if adapter_ids is None:
            return cls(1, r1.shape[-1], 0, 0, None)
        return cls(r1.shape[0], r1.shape[-1], r1.stride(0), r2.stride(0), adapter_ids.numel())

    @property
    def batched(self) -> bool:
        return self.ids is not None

    def are_shared(self, dim: int) -> bool:
        return layout.has_shared_coefficients("table", self.width, dim)

    def align(self, run: int) -> int:
        return prepare.parameter_alignment(run, self.r1_stride, self.r2_stride)

    def integers(self, rows: int, align: int) -> tuple[int, ...]:
        """(the divisor that gives the id of a row, from an adapter to the next in units of so many elements)."""
        return *layout.divisor(rows // (self.ids or rows)), self.r1_stride // align, self.r2_stride // align


def _are_split(described) -> bool:
    return any(r.inner_rows > 1 for r in described)


@functools.lru_cache(prepare.CACHE)
def silu_mul(device, shape, x_strides, gz_strides, dtype, aligned, tables, group_size, gradient):
    """The launch of silu_mul_kernel. shape: of x. gz_strides: unread without `gradient`."""
    rows, width, leading = prepare.row_count(shape), shape[-1] // 2, shape[:-1]
    device = prepare.device_of(device)
    x = layout.describe(shape, x_strides)
    gz = layout.describe((*leading, width), gz_strides) if gradient else x
    out = prepare.contiguous_rows(shape if gradient else (*leading, width))
    few = plan.is_few(rows, 2 * width, dtype.itemsize, "table", device)
    runs = plan.make_runs(
        width, group_size, dtype.itemsize, prepare.alignment_of(dtype, aligned, (x, gz, out)), 8 if few else 16
    )
    tile = plan.plan_forward(rows, width, dtype.itemsize, runs, 1, few, device)
    p_align = tables.align(runs.run)
    integers = (
        rows, tables.adapters, *tables.integers(rows, p_align), *x.integers(runs.align), *gz.integers(runs.align),
        out.outer // runs.align,
    )  # fmt: skip
    constants = (
        width, group_size, tables.are_shared(2 * width), tables.batched, gradient, runs.layout, runs.align, p_align,
        _are_split((x, gz)), tile.runs, runs.run,
    )  # fmt: skip
    return Launch(silu_mul_kernel, (tile.programs, 1, 1), integers, constants, tile.num_warps, tables.batched)


@functools.lru_cache(prepare.CACHE)
def silu_mul_backward(device, shape, gz_strides, x_strides, dtype, aligned, tables, group_size, output_mask):
    """(the launch of silu_mul_backward_kernel or None without rows, that of reduce_kernel or None, the size of the
    scratch).
    """
    rows, width, leading = prepare.row_count(shape), shape[-1] // 2, shape[:-1]
    device, shared = prepare.device_of(device), tables.are_shared(2 * width)
    first, cuts, cut_shift, slots = None, 0, 0, 0
    if rows:
        gz, x = layout.describe((*leading, width), gz_strides), layout.describe(shape, x_strides)
        described = gz, x, prepare.contiguous_rows(shape)
        alignment = prepare.alignment_of(dtype, aligned, described)
        # The bytes of a pair of which 16 are TWO_PAIRS_OF_A_LANE: of its word or, otherwise, of a feature.
        size = max(dtype.itemsize, 16 // plan.TWO_PAIRS_OF_A_LANE)
        runs = plan.make_runs(width, group_size, dtype.itemsize if group_size == 2 else size, alignment)
        tile = plan.plan_backward(rows, width, size, runs, False, device)
        cuts, cut_shift = tile.cuts, tile.cut_shift
        slots = tile.slots(tables.adapters if tables.batched else None)
        p_align = tables.align(runs.run)
        integers = (
            rows, tables.adapters, cut_shift, rows // (tables.ids or rows), *tables.integers(rows, p_align),
            *gz.integers(runs.align), *x.integers(runs.align), 2 * width // runs.align,
        )  # fmt: skip
        constants = (
            width, group_size, shared, tables.batched, output_mask[0], runs.layout, runs.align, p_align,
            _are_split(described), tile.rows, tile.runs, runs.run, plan.SEARCH,
        )  # fmt: skip
        grid = slots * tile.column_blocks, 1, 1
        registers = plan.BACKWARD_REGISTERS if dtype.itemsize < 8 else None
        first = Launch(silu_mul_backward_kernel, grid, integers, constants, tile.num_warps, registers=registers)
    reduce = prepare.reduction(
        rows, 2 * width, cuts, cut_shift, tables.adapters, tables.width, tables.r1_stride, tables.r2_stride, tables.ids,
        "table", group_size, False, output_mask,
    )  # fmt: skip
    return first, reduce, slots * (1 if shared else 2) * 2 * width


@functools.lru_cache(prepare.CACHE)
def add_rms_norm(device, shape, strides, dtype, aligned, tables, eps, group_size, in_place):
    """The launch of add_rms_norm_kernel. strides: of x, residual, y and s."""
    rows, dim = prepare.row_count(shape), shape[-1]
    described = [layout.describe(shape, s) for s in strides]
    runs = plan.make_runs(dim, group_size, dtype.itemsize, prepare.alignment_of(dtype, aligned, described))
    tile = plan.plan_norm(dim // 2, dtype.itemsize, runs, prepare.device_of(device))
    p_align = tables.align(runs.run)
    by_row = (n for rows in described for n in rows.integers(runs.align))
    integers = rows, tables.adapters, *tables.integers(rows, p_align), *by_row
    constants = (
        dim, group_size, eps, tables.are_shared(dim), tables.batched, in_place, runs.layout, runs.align, p_align,
        _are_split(described), tile.rows, tile.runs, runs.run,
    )  # fmt: skip
    return Launch(
        add_rms_norm_kernel, (-(-rows // tile.rows), 1, 1), integers, constants, tile.num_warps, tables.batched
    )


@functools.lru_cache(prepare.CACHE)
def add_rms_norm_backward(device, shape, strides, dtype, aligned, eps):
    """The launch of add_rms_norm_backward_kernel. strides: of gy, gs and s."""
    rows, dim = prepare.row_count(shape), shape[-1]
    described = [layout.describe(shape, s) for s in strides]
    align = prepare.alignment_of(dtype, aligned, [*described, prepare.contiguous_rows(shape)])
    runs = plan.Runs(False, align, align)
    tile = plan.plan_norm(dim, dtype.itemsize, runs, prepare.device_of(device))
    integers = rows, *(n for r in described for n in r.integers(align))
    constants = dim, eps, align, _are_split(described), tile.rows, tile.runs, runs.run
    grid = -(-rows // tile.rows), 1, 1
    return Launch(add_rms_norm_backward_kernel, grid, integers, constants, tile.num_warps)


@functools.lru_cache(prepare.CACHE)
def rope(
    device, shape, strides, position_strides, cache_shape, cache_stride, dtype, aligned, cache_aligned, tables, heads,
    head_dim, is_neox, group_size, in_place,
):  # fmt: skip
    """The launch of rope_kernel, or of crossed_rope_kernel. strides: of x and z; position_strides: for shape[:-1].

    cache_aligned: whether two elements of it are a word. heads: (all, those that are turned).
    """
    rows, dim, device = prepare.row_count(shape), shape[-1], prepare.device_of(device)
    max_position, rotary_dim = cache_shape
    x, z = described = [layout.describe(shape, s) for s in strides]
    positions = layout.describe((*shape[:-1], 1), (*position_strides, 1))
    same_pairs = rotary_dim == group_size if is_neox else group_size == 2
    two_pairs = not same_pairs and is_neox and rotary_dim == head_dim and head_dim // 2 % group_size == 0
    split = _are_split((x, z, positions))
    of_rope = *heads, head_dim, rotary_dim
    if not same_pairs and not two_pairs:
        tile = plan.plan_crossed_rope(head_dim, device)
        integers = (
            rows, tables.adapters, max_position, *tables.integers(rows, 1), cache_stride, *x.integers(1),
            *z.integers(1), *positions.integers(1),
        )  # fmt: skip
        constants = (
            *of_rope, is_neox, group_size, tables.are_shared(dim), tables.batched, in_place, split, tile.heads,
            tile.places,
        )  # fmt: skip
        grid = -(-rows * heads[0] // tile.heads), 1, 1
        return Launch(crossed_rope_kernel, grid, integers, constants, tile.num_warps, asserts=True)
    few = plan.is_few(rows, dim, dtype.itemsize, "table", device)
    # Runs end where turned features do.
    part = head_dim // 2 if two_pairs else math.gcd(head_dim, rotary_dim)
    alignment = prepare.alignment_of(dtype, aligned, described)
    runs = plan.make_runs(part, group_size, dtype.itemsize, alignment, 8 if few else 16)
    tile = plan.plan_forward(rows, dim // 2 if two_pairs else dim, dtype.itemsize, runs, 1, few, device)
    p_align, cache_align = tables.align(runs.run), math.gcd(2 * runs.run, cache_stride)
    cache_layout = runs.layout if cache_aligned and cache_align % 2 == 0 else "halves"
    integers = (
        rows, tables.adapters, max_position, *tables.integers(rows, p_align), cache_stride // cache_align,
        *x.integers(runs.align), *z.integers(runs.align), *positions.integers(1),
    )  # fmt: skip
    constants = (
        *of_rope, group_size, tables.are_shared(dim), tables.batched, two_pairs, runs.layout, runs.align, p_align,
        cache_layout, cache_align, split, tile.runs, runs.run,
    )  # fmt: skip
    return Launch(rope_kernel, (tile.programs, 1, 1), integers, constants, tile.num_warps, asserts=True)
