"""The launch of each kernel, prepared once for all calls of the same shapes, strides and options."""

import functools
import math

import torch

from . import layout, plan
from .kernels.backward import backward_kernel
from .kernels.merge import merge_kernel
from .kernels.reduce import reduce_kernel
from .kernels.rotate import rotate_kernel
from .kernels.sort_rows import add_counts_kernel, count_kernel, place_kernel, sort_few_kernel
from .kernels.tables import tables_kernel
from .launch import Launch

CACHE = 4096  # launches kept of each kind: some kilobytes each


@functools.cache
def device_of(index: int | None) -> plan.Device:
    if index is None:  # interpreted, on small tensors
        return plan.Device(1, 32, few=2.0**-13)
    properties = torch.cuda.get_device_properties(index)
    return plan.Device(properties.multi_processor_count, getattr(properties, "warp_size", 32))


def alignment_of(dtype: torch.dtype, aligned: bool, rows: list[layout.Rows]) -> int:
    """Elements that every row's start is a multiple of, up to 16 bytes. aligned: the first rows are, to 16 bytes."""
    return math.gcd(16 // dtype.itemsize, *(s for r in rows for s in (r.outer, r.inner))) if aligned else 1


def parameter_alignment(run: int, p_stride: int, q_stride: int) -> int:
    """P_ALIGN: elements that every adapter's parameters begin at a multiple of, up to a run of pairs."""
    return math.gcd(run, p_stride, q_stride)


def row_count(shape) -> int:
    return torch.Size(shape[:-1]).numel()


def contiguous_rows(shape) -> layout.Rows:
    return layout.Rows(shape[-1], 0, 1)


@functools.lru_cache(CACHE)
def rotate(
    device, shape, x_strides, z_strides, dtype, aligned, adapters, p_width, p_stride, q_stride, ids, form, group_size,
    transposed, in_place,
):  # fmt: skip
    """The launch of rotate_kernel. device: its index; ids: how many, or None for one adapter."""
    rows, dim, batched = row_count(shape), shape[-1], ids is not None
    described = x, z = layout.describe(shape, x_strides), layout.describe(shape, z_strides)
    device, shared = device_of(device), layout.has_shared_coefficients(form, p_width, dim)
    few = plan.is_few(rows, dim, dtype.itemsize, form, device)
    alignment = alignment_of(dtype, aligned, described)
    runs = plan.make_runs(dim, group_size, dtype.itemsize, alignment, 8 if few else 16)
    lane_rows = plan.forward_rows(form, shared, batched)
    tile = plan.plan_forward(rows, dim, dtype.itemsize, runs, lane_rows, few, device)
    p_align = parameter_alignment(runs.run, p_stride, q_stride)
    steps = p_stride // p_align, q_stride // p_align
    by_id = layout.divisor(rows // (ids or rows))
    integers = rows, adapters, *by_id, *steps, *x.integers(runs.align), *z.integers(runs.align), -1 if in_place else 0
    split = any(r.inner_rows > 1 for r in described)
    constants = (
        dim, group_size, form, shared, batched, transposed, runs.layout, runs.align, p_align, split, tile.rows,
        tile.runs, runs.run,
    )  # fmt: skip
    registers = plan.OWN_ANGLES_REGISTERS if form in ("road_2", "road_4") else None
    return Launch(rotate_kernel, (tile.programs, 1, 1), integers, constants, tile.num_warps, batched, registers)


@functools.lru_cache(CACHE)
def sort_few(ids, adapters):
    """The launch of sort_few_kernel for so many ids, at most plan.MOST_COMPARED."""
    id_programs = -(-ids // plan.PLACES)
    grid = id_programs + -(-(adapters + 1) // plan.PLACES), 1, 1
    constants = plan.MOST_COMPARED, plan.PLACES, plan.COMPARED
    return Launch(sort_few_kernel, grid, (ids, adapters, id_programs), constants, 4, asserts=True)


@functools.lru_cache(CACHE)
def sort_many(ids, adapters):
    """(the launches of count_kernel, add_counts_kernel and place_kernel, the counters for them, set to zero)."""
    chunk, chunks = plan.plan_chunks(ids, adapters)
    tile = min(chunk, plan.COMPARED)
    count = Launch(count_kernel, (-(-ids // tile), 1, 1), (ids, adapters, chunk // tile), (tile,), 4, asserts=True)
    add = Launch(
        add_counts_kernel, (1, 1, 1), (adapters, chunks), (plan.COUNTERS, plan.AT_ONCE), max(1, plan.COUNTERS // 32)
    )
    place = Launch(place_kernel, (chunks, 1, 1), (ids, adapters, chunk), (plan.STEP, plan.AT_ONCE), 1)
    return count, add, place, chunks * (adapters + 1)


@functools.lru_cache(CACHE)
def backward(
    device, shape, gz_strides, saved_strides, dtype, aligned, adapters, p_width, p_stride, q_stride, ids, form,
    group_size, from_output, output_mask,
):  # fmt: skip
    """(the launch of backward_kernel or None without rows, that of reduce_kernel or None, the size of the scratch)."""
    rows, dim, batched = row_count(shape), shape[-1], ids is not None
    shared = layout.has_shared_coefficients(form, p_width, dim)
    device, rows_per_id = device_of(device), rows // (ids or rows or 1)
    first, cuts, cut_shift, slots = None, 0, 0, 0
    if rows:
        described = layout.describe(shape, gz_strides), layout.describe(shape, saved_strides), contiguous_rows(shape)
        alignment = alignment_of(dtype, aligned, described)
        runs = plan.make_runs(dim, group_size, dtype.itemsize, alignment)
        tile = plan.plan_backward(rows, dim, dtype.itemsize, runs, shared, device)
        cuts, cut_shift = tile.cuts, tile.cut_shift
        slots = tile.slots(adapters if batched else None)
        p_align = parameter_alignment(runs.run, p_stride, q_stride)
        steps = p_stride // p_align, q_stride // p_align
        gz, saved, gx = described
        integers = (
            rows, adapters, cut_shift, rows_per_id, *layout.divisor(rows_per_id), *steps,
            *gz.integers(runs.align), *saved.integers(runs.align), gx.outer // runs.align,
        )  # fmt: skip
        constants = (
            dim, group_size, form, shared, batched, output_mask[0], runs.layout, runs.align, p_align,
            any(r.inner_rows > 1 for r in described), tile.rows, tile.at_once, tile.runs, runs.run, plan.SEARCH,
        )  # fmt: skip
        grid = slots * tile.column_blocks, 1, 1
        first = Launch(backward_kernel, grid, integers, constants, tile.num_warps, registers=plan.BACKWARD_REGISTERS)
    reduce = reduction(
        rows, dim, cuts, cut_shift, adapters, p_width, p_stride, q_stride, ids, form, group_size, from_output,
        output_mask,
    )  # fmt: skip
    return first, reduce, slots * (1 if shared else 2) * dim


def reduction(
    rows, dim, cuts, cut_shift, adapters, p_width, p_stride, q_stride, ids, form, group_size, from_output, output_mask
):
    """The launch of reduce_kernel for the sums of a backward, or None without adapters."""
    if not adapters:
        return None
    tile = plan.plan_reduce(cuts, adapters, dim)
    integers = rows, cut_shift, rows // (ids or rows or 1), p_stride, q_stride
    constants = (
        dim, group_size, form, layout.has_shared_coefficients(form, p_width, dim), ids is not None, from_output,
        *output_mask[1:], p_width, tile.slices, tile.pairs,
    )  # fmt: skip
    grid = adapters * -(-dim // 2 // tile.pairs), 1, 1
    return Launch(reduce_kernel, grid, integers, constants, tile.num_warps)


@functools.lru_cache(CACHE)
def merge(device, shape, w_row, z_row, dtype, aligned, width, group_size):
    """The launch of merge_kernel on w [D, N] whose rows are w_row apart. width: that of the tables."""
    dim, columns = shape
    per_vector = 16 // dtype.itemsize
    align = per_vector if aligned and not (columns % per_vector or w_row % per_vector or z_row % per_vector) else 1
    pairs, tile_columns = plan.merge_tile(dim, columns, dtype.itemsize, device_of(device).lanes)
    integers = columns // align, w_row, z_row, -(-columns // tile_columns)
    constants = dim, group_size, width != dim, align, pairs, tile_columns
    grid = -(-columns // tile_columns) * -(-dim // 2 // pairs), 1, 1
    return Launch(merge_kernel, grid, integers, constants, 4)


@functools.lru_cache(CACHE)
def tables(adapters, width, p_stride, q_stride, form, group_size):
    """The launch of tables_kernel for tables of ``width``."""
    entries = min(1024, max(128, plan.power_of_two(width)))
    grid = -(-adapters * width // entries), 1, 1
    return Launch(tables_kernel, grid, (adapters, p_stride, q_stride), (width, group_size, form, entries), 4)
