"""The launch of each kernel, prepared once for all calls of the same shapes, strides and options."""

import functools

import torch

from . import layout
from .kernels.backward import backward_kernel
from .kernels.merge import merge_kernel
from .kernels.reduce import reduce_kernel
from .kernels.rotate import rotate_kernel
from .kernels.sort_rows import MOST_IDS, PLACES, TILE, sort_rows_kernel
from .kernels.tables import tables_kernel
from .launch import Launch
from .plan import (
    BACKWARD_LANE_ROWS,
    BACKWARD_REGISTERS,
    BACKWARD_WARPS,
    FORWARD_WARPS,
    forward_warps,
    make_plan,
    merge_tile,
    power_of_two,
    reduce_tile,
)

_CACHE = 4096  # launches kept of each kind: some kilobytes each


@functools.cache
def _device(index: int | None, warps: int) -> tuple[int, int, int]:
    """(warps wanted on each multiprocessor, multiprocessors, lanes of a warp)."""
    if index is None:  # interpreted: few programs, but more than one
        return 4, 1, 32
    properties = torch.cuda.get_device_properties(index)
    return warps, properties.multi_processor_count, getattr(properties, "warp_size", 32)


def _layout(dim: int, group_size: int, dtype: torch.dtype, aligned: bool, rows: list[layout.Rows]):
    """(LAYOUT, ALIGN, SPLIT) for tensors of one dtype whose first rows are 16-byte aligned or not."""
    per_vector = 16 // dtype.itemsize
    strides = [s for r in rows for s in (r.outer, r.inner)]
    wide = aligned and not any(s % per_vector for s in strides)
    # A word of two float64 would have 128 bits.
    adjacent = group_size == 2 and wide and dtype != torch.float64
    return "words" if adjacent else "halves", per_vector if wide else 1, any(r.inner_rows > 1 for r in rows)


def _align_parameters(name: str, align: int, p_stride: int, q_stride: int) -> int:
    """P_ALIGN: the alignment in elements of every adapter's parameters that the compiler is told, at most the pairs in
    a lane's 16 bytes.

    With a larger one the compiler would give a lane longer runs of parameters than of a row's elements, and convert
    every row through shared memory. Without one it would load the parameters one at a time.
    """
    pairs = align // 2 if name == "words" else align
    return pairs if p_stride % pairs == 0 and q_stride % pairs == 0 else 1


def _row_count(shape) -> int:
    return torch.Size(shape[:-1]).numel()


def _contiguous(shape) -> layout.Rows:
    return layout.Rows(shape[-1], 0, 1)


@functools.lru_cache(_CACHE)
def rotate(
    device, shape, x_strides, z_strides, dtype, aligned, adapters, p_width, p_stride, q_stride, ids, form, group_size,
    transposed, in_place,
):  # fmt: skip
    """The launch of rotate_kernel. device: its index; ids: how many, or None for one adapter."""
    rows, dim = _row_count(shape), shape[-1]
    x, z = layout.describe(shape, x_strides), layout.describe(shape, z_strides)
    name, align, split = _layout(dim, group_size, dtype, aligned, [x, z])
    warps, lane_rows = forward_warps(form, ids is not None)
    plan = make_plan(rows, dim, dtype.itemsize, ids is not None, *_device(device, warps), lane_rows if align > 1 else 1)
    p_align = _align_parameters(name, align, p_stride, q_stride)
    steps = p_stride // p_align, q_stride // p_align
    integers = (rows, plan.block_rows, adapters, rows // (ids or rows), *steps, *x, *z, int(not in_place))
    shared = layout.has_shared_coefficients(form, p_width, dim)
    constants = (
        dim, group_size, form, shared, ids is not None, transposed, name, align, p_align, split, plan.rows, plan.pairs,
    )  # fmt: skip
    grid = plan.column_blocks, plan.row_blocks, 1
    return Launch(rotate_kernel, grid, integers, constants, plan.num_warps, asserts=ids is not None)


@functools.lru_cache(_CACHE)
def sort_rows(device, ids, adapters):
    """The launch of sort_rows_kernel for so many ids, at most MOST_IDS."""
    id_programs = -(-ids // PLACES)
    grid = id_programs + -(-(adapters + 1) // PLACES), 1, 1
    return Launch(sort_rows_kernel, grid, (ids, adapters, id_programs), (MOST_IDS, PLACES, TILE), 4)


@functools.lru_cache(_CACHE)
def backward(
    device, shape, gz_strides, saved_strides, dtype, aligned, adapters, p_width, p_stride, q_stride, ids, form,
    group_size, from_output, output_mask,
):  # fmt: skip
    """(the launch of backward_kernel or None without rows, that of reduce_kernel or None, the size of the scratch)."""
    rows, dim = _row_count(shape), shape[-1]
    shared = layout.has_shared_coefficients(form, p_width, dim)
    first, row_blocks, block_rows, rows_per_id = None, 0, 1, 0
    if rows:
        gz, saved = layout.describe(shape, gz_strides), layout.describe(shape, saved_strides)
        gx = _contiguous(shape)
        name, align, split = _layout(dim, group_size, dtype, aligned, [gz, saved, gx])
        lane_rows = BACKWARD_LANE_ROWS if align > 1 else 1
        plan = make_plan(rows, dim, dtype.itemsize, ids is not None, *_device(device, BACKWARD_WARPS), lane_rows)
        row_blocks, block_rows, rows_per_id = plan.row_blocks, plan.block_rows, rows // (ids or rows)
        p_align = _align_parameters(name, align, p_stride, q_stride)
        steps = p_stride // p_align, q_stride // p_align
        integers = (rows, block_rows, adapters, rows_per_id, *steps, *gz, *saved, gx.outer)
        constants = (
            dim, group_size, form, shared, ids is not None, output_mask[0], name, align, p_align, split, plan.rows,
            plan.pairs,
        )  # fmt: skip
        grid = plan.column_blocks, row_blocks, 1
        first = Launch(
            backward_kernel, grid, integers, constants, plan.num_warps, ids is not None, BACKWARD_REGISTERS
        )  # fmt: skip
    if not adapters:
        return first, None, row_blocks * (1 if shared else 2) * dim
    slices, pairs, warps = reduce_tile(row_blocks, adapters)
    integers = rows, block_rows, rows_per_id, p_stride, q_stride
    constants = (
        dim, group_size, form, shared, ids is not None, from_output, *output_mask[1:], p_width, slices, pairs,
    )  # fmt: skip
    grid = adapters, -(-dim // 2 // pairs), 1
    reduce = Launch(reduce_kernel, grid, integers, constants, warps)
    return first, reduce, (row_blocks + adapters) * (1 if shared else 2) * dim


@functools.lru_cache(_CACHE)
def merge(device, shape, w_row, z_row, dtype, aligned, width, group_size):
    """The launch of merge_kernel on w [D, N] whose rows are w_row apart. width: that of the tables."""
    dim, columns = shape
    _, _, lanes = _device(device, FORWARD_WARPS)
    per_vector = 16 // dtype.itemsize
    align = per_vector if aligned and not (columns % per_vector or w_row % per_vector or z_row % per_vector) else 1
    pairs, tile_columns = merge_tile(dim, columns, dtype.itemsize, lanes)
    integers = columns // align, w_row, z_row
    constants = dim, group_size, width != dim, align, pairs, tile_columns
    grid = -(-columns // tile_columns), -(-dim // 2 // pairs), 1
    return Launch(merge_kernel, grid, integers, constants, 4)


@functools.lru_cache(_CACHE)
def tables(adapters, width, p_stride, q_stride, form, group_size):
    """The launch of tables_kernel for tables of ``width``."""
    entries = min(1024, max(128, power_of_two(width)))
    grid = adapters, -(-width // entries), 1
    return Launch(tables_kernel, grid, (p_stride, q_stride), (width, group_size, form, entries), 4)
