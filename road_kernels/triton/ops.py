"""The ops of road_kernels._ops on the Triton kernels: prepares launches, allocates, launches."""

import functools

import torch

from ..backends import python as plain
from . import rows as layout
from .backward import backward_kernel
from .launch import Launch
from .mix import mix_rows_kernel
from .plan import BACKWARD_REGISTERS, BACKWARD_WARPS, FORWARD_WARPS, REDUCE_PAIRS, REDUCE_SLICES, make_plan, mix_tile
from .reduce import reduce_kernel
from .rotate import rotate_kernel

_CACHE = 4096  # prepared launches kept of each kind: some kilobytes each


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
    """P_ALIGN, which the parameters of every adapter start at a multiple of: at most the pairs of a lane's 16 bytes.

    With more the compiler would deal them out to lanes in longer runs than the elements of a row, and take every row
    through shared memory to match the two. Without any it would load them one by one.
    """
    pairs = align // 2 if name == "words" else align
    return pairs if p_stride % pairs == 0 and q_stride % pairs == 0 else 1


def _row_count(shape) -> int:
    return torch.Size(shape[:-1]).numel()


def _contiguous(shape) -> layout.Rows:
    return layout.Rows(shape[-1], 0, 1)


@functools.lru_cache(_CACHE)
def _prepare_rotate(
    device, shape, x_strides, z_strides, dtype, aligned, adapters, p_width, p_stride, q_stride, ids, form, group_size,
    transposed, in_place,
):  # fmt: skip
    """The launch of rotate_kernel. device: its index; ids: how many, or None for one adapter."""
    rows, dim = _row_count(shape), shape[-1]
    x, z = layout.describe(shape, x_strides), layout.describe(shape, z_strides)
    name, align, split = _layout(dim, group_size, dtype, aligned, [x, z])
    plan = make_plan(rows, dim, dtype.itemsize, ids is not None, *_device(device, FORWARD_WARPS))
    p_align = _align_parameters(name, align, p_stride, q_stride)
    steps = p_stride // p_align, q_stride // p_align
    integers = (rows, plan.block_rows, adapters, rows // (ids or rows), *steps, *x, *z, int(not in_place))
    shared = layout.has_shared_coefficients(form, p_width, dim)
    constants = (
        dim, group_size, form, shared, ids is not None, transposed, name, align, p_align, split, plan.rows, plan.pairs,
    )  # fmt: skip
    grid = plan.column_blocks, plan.row_blocks, 1
    return Launch(rotate_kernel, grid, integers, constants, plan.num_warps, asserts=ids is not None)


def _launch_rotate(x, z, p, q, adapter_ids, form, group_size, transposed):
    """Checked arguments whose rows can be walked."""
    if x.numel() == 0:
        return
    batched = adapter_ids is not None
    _prepare_rotate(
        x.device.index, x.shape, x.stride(), z.stride(), x.dtype, (x.data_ptr() | z.data_ptr()) % 16 == 0,
        p.shape[0] if batched else 1, p.shape[-1], p.stride(0) if batched else 0, q.stride(0) if batched else 0,
        adapter_ids.numel() if batched else None, form, group_size, transposed, x is z,
    )(x, z, p, q, adapter_ids if batched else p)  # fmt: skip


class _on_device:
    """Makes the tensors' device the current one, which Triton launches on."""

    def __new__(cls, x):
        if x.is_cuda and x.device.index != torch.cuda.current_device():
            return torch.cuda.device(x.device)
        return super().__new__(cls)

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


def _arguments(x, p, q, adapter_ids, form, group_size):
    """(p, q, adapter_ids) as the kernels take them."""
    layout.check(x, p, q, adapter_ids, form, group_size)
    p = p if p.stride(-1) == 1 else p.contiguous()
    q = q if q.stride(-1) == 1 else q.contiguous()
    if adapter_ids is None:
        return p, q, None
    adapter_ids = adapter_ids.contiguous()
    if adapter_ids.is_cpu:  # interpreted; on a GPU the kernels assert, as reading the ids here would wait for them
        bad = ((adapter_ids < -1) | (adapter_ids >= p.shape[0])).flatten().nonzero()
        if len(bad):
            at = int(bad[0])
            raise IndexError(
                f"adapter_ids holds {adapter_ids.flatten()[at]} (flat position {at}), but must hold -1 (no adapter) or "
                f"the index of one of the bank's {p.shape[0]} adapters"
            )
    return p, q, adapter_ids


def _output(like):
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def rotate(x, p, q, adapter_ids, form, group_size):
    p, q, adapter_ids = _arguments(x, p, q, adapter_ids, form, group_size)
    z = _output(x)
    with _on_device(x):
        _launch_rotate(layout.walkable(x), z, p, q, adapter_ids, form, group_size, False)
    return z


def rotate_(x, p, q, adapter_ids, form, group_size, check_invertible):
    if plain.shares_memory(x, p) or plain.shares_memory(x, q):
        raise ValueError("x shares memory with its parameters, so it cannot be written in place: use inplace=False")
    if check_invertible:
        plain.refuse_singular(x, p, q, adapter_ids, form, group_size)
    p, q, adapter_ids = _arguments(x, p, q, adapter_ids, form, group_size)
    torch.autograd.graph.increment_version(x)
    with _on_device(x):
        if x.is_contiguous() or layout.describe(x.shape, x.stride()) is not None:
            _launch_rotate(x, x, p, q, adapter_ids, form, group_size, False)
        else:  # no kernel walks this layout: rotate a copy, write it back
            packed = x.contiguous()
            _launch_rotate(packed, packed, p, q, adapter_ids, form, group_size, False)
            x.copy_(packed)


@functools.lru_cache(_CACHE)
def _prepare_backward(
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
        plan = make_plan(rows, dim, dtype.itemsize, ids is not None, *_device(device, BACKWARD_WARPS))
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
    integers = rows, block_rows, rows_per_id, p_stride, q_stride
    constants = (
        dim, group_size, form, shared, ids is not None, from_output, *output_mask[1:], p_width, REDUCE_SLICES,
        REDUCE_PAIRS,
    )  # fmt: skip
    grid = adapters, -(-dim // 2 // REDUCE_PAIRS), 1
    reduce = Launch(reduce_kernel, grid, integers, constants, 4) if adapters else None
    return first, reduce, (row_blocks + adapters) * (1 if shared else 2) * dim


def rotate_backward(grad, saved, p, q, adapter_ids, form, group_size, from_output, output_mask):
    if grad.shape != saved.shape or grad.dtype != saved.dtype or grad.device != saved.device:
        raise ValueError(
            f"grad must match the saved tensor, {list(saved.shape)} {saved.dtype}, got {list(grad.shape)} {grad.dtype}"
        )
    p, q, adapter_ids = _arguments(saved, p, q, adapter_ids, form, group_size)
    need_gx, need_gp, need_gq = output_mask
    gx = _output(saved) if need_gx else None
    gp = _output(p) if need_gp else None
    gq = _output(q) if need_gq else None
    with _on_device(saved):
        grad = layout.walkable(grad)
        if need_gp or need_gq:
            _launch_backward(grad, layout.walkable(saved), p, q, adapter_ids, form, group_size, from_output, gx, gp, gq)
        elif need_gx:
            _launch_rotate(grad, gx, p, q, adapter_ids, form, group_size, True)
    return gx, gp, gq


def _launch_backward(gz, saved, p, q, adapter_ids, form, group_size, from_output, gx, gp, gq):
    batched = adapter_ids is not None
    target = gz if gx is None else gx
    first, reduce, size = _prepare_backward(
        gz.device.index, gz.shape, gz.stride(), saved.stride(), gz.dtype,
        (gz.data_ptr() | saved.data_ptr() | target.data_ptr()) % 16 == 0,
        p.shape[0] if batched else 1, p.shape[-1], p.stride(0) if batched else 0, q.stride(0) if batched else 0,
        adapter_ids.numel() if batched else None, form, group_size, from_output,
        (gx is not None, gp is not None, gq is not None),
    )  # fmt: skip
    if reduce is None and gx is None:
        return
    arithmetic = torch.float64 if gz.dtype == torch.float64 else torch.float32
    scratch = torch.empty(size, dtype=arithmetic, device=gz.device)
    ids = positions = starts = p  # unread
    if batched:  # torch's sort is stable and never waits for the device
        ids, positions = torch.sort(adapter_ids.flatten().long(), stable=True)
        starts = torch.searchsorted(ids, torch.arange(p.shape[0] + 1, device=ids.device))
    if first is not None:
        first(gz, saved, target, p, q, ids, positions, scratch)
    if reduce is not None:
        reduce(scratch, starts, p, q, p if gp is None else gp, q if gq is None else gq)


@functools.lru_cache(_CACHE)
def _prepare_mix_rows(device, shape, w_row, z_row, dtype, aligned, width, group_size):
    """The launch of mix_rows_kernel on w [D, N] whose rows are w_row apart. width: that of the tables."""
    dim, columns = shape
    _, _, lanes = _device(device, FORWARD_WARPS)
    per_vector = 16 // dtype.itemsize
    align = per_vector if aligned and not (columns % per_vector or w_row % per_vector or z_row % per_vector) else 1
    pairs, tile_columns = mix_tile(dim, columns, dtype.itemsize, lanes)
    integers = columns // align, w_row, z_row
    constants = dim, group_size, width != dim, align, pairs, tile_columns
    grid = -(-columns // tile_columns), -(-dim // 2 // pairs), 1
    return Launch(mix_rows_kernel, grid, integers, constants, 4)


def _launch_mix_rows(w, z, r1, r2, group_size):
    if w.numel() == 0:
        return
    with _on_device(w):
        _prepare_mix_rows(
            w.device.index, w.shape, w.stride(0), z.stride(0), w.dtype, (w.data_ptr() | z.data_ptr()) % 16 == 0,
            r1.shape[0], group_size,
        )(w, z, r1, r2)  # fmt: skip


def _has_adjacent_columns(w) -> bool:
    return w.stride(1) == 1 or w.shape[1] <= 1


def mix_rows(w, r1, r2, group_size):
    if w.dim() != 2:
        raise ValueError(f"w must be [D, N], got {list(w.shape)}")
    if plain.is_transposed(w):
        return rotate(w.t(), r1, r2, None, "table", group_size).t()
    r1, r2, _ = _arguments(w.t(), r1, r2, None, "table", group_size)
    z = _output(w)
    _launch_mix_rows(w if _has_adjacent_columns(w) else w.contiguous(), z, r1, r2, group_size)
    return z


def mix_rows_(w, r1, r2, group_size):
    if w.dim() != 2:
        raise ValueError(f"w must be [D, N], got {list(w.shape)}")
    if plain.is_transposed(w):
        rotate_(w.t(), r1, r2, None, "table", group_size, False)
        return
    if plain.shares_memory(w, r1) or plain.shares_memory(w, r2):
        raise ValueError("w shares memory with r1 or r2")
    r1, r2, _ = _arguments(w.t(), r1, r2, None, "table", group_size)
    torch.autograd.graph.increment_version(w)
    if _has_adjacent_columns(w):
        _launch_mix_rows(w, w, r1, r2, group_size)
    else:
        packed = w.contiguous()
        _launch_mix_rows(packed, packed, r1, r2, group_size)
        w.copy_(packed)
