"""The ops of ops/schemas.py on the Triton kernels: check, allocate, and launch what prepare.py has prepared."""

import torch

from ..ops import aliasing, checks, formula
from ..ops.schemas import is_transposed
from . import layout, plan, prepare
from .calls import arguments, is_current, keep_ready, on_device, output, ready, same


def _signature(x, p, q, ids, form, group_size, inplace):
    """(all that checks and preparation depend on, the addresses), or None for the signature of tensors that are not at
    multiples of 16 bytes. Device numbers, as equal ones are equal devices.
    """
    x_at, p_at, q_at = x.data_ptr(), p.data_ptr(), q.data_ptr()
    ids_at, of_ids = 0, None
    if ids is not None:
        ids_at, of_ids = ids.data_ptr(), (ids.shape, ids.stride(), ids.dtype, ids.get_device())
    signature = None
    if not (x_at | p_at | q_at | ids_at) & 15:
        signature = (
            x.shape, x.stride(), x.dtype, x.get_device(), p.shape, p.stride(), p.dtype, p.get_device(), q.shape,
            q.stride(), q.dtype, q.get_device(), of_ids, form, group_size, inplace,
        )  # fmt: skip
    return signature, (x_at, p_at, q_at, ids_at)


def _launch_rotate(x, z, p, q, adapter_ids, form, group_size, transposed):
    """Takes checked arguments whose rows can be walked. Returns what Launch returns, or None without elements."""
    if x.numel() == 0:
        return None
    batched = adapter_ids is not None
    return prepare.rotate(
        x.device.index, x.shape, x.stride(), z.stride(), x.dtype, (x.data_ptr() | z.data_ptr()) % 16 == 0,
        p.shape[0] if batched else 1, p.shape[-1], p.stride(0) if batched else 0, q.stride(0) if batched else 0,
        adapter_ids.numel() if batched else None, form, group_size, transposed, x is z,
    )(x, z, p, q, adapter_ids if batched else p)  # fmt: skip


def rotate(x, p, q, adapter_ids, form, group_size, overlap=False):
    signature, (x_at, p_at, q_at, ids_at) = _signature(x, p, q, adapter_ids, form, group_size, False)
    runner = ready.get(signature)
    if runner is not None and is_current(x):
        z = output(x)
        runner(x.get_device(), x_at, z.data_ptr(), p_at, q_at, ids_at or p_at)
        return z
    given = p, q, adapter_ids
    p, q, adapter_ids = arguments(x, p, q, adapter_ids, form, group_size)
    z = output(x)
    with on_device(x):
        walked = layout.walkable(x)
        runner = _launch_rotate(walked, z, p, q, adapter_ids, form, group_size, False)
    if walked is x and same(given, (p, q, adapter_ids)):
        keep_ready(signature, runner)
    return z


def rotate_(x, p, q, adapter_ids, form, group_size, check_invertible, overlap=False):
    aliasing.check_not_shared(x, p, q)
    if check_invertible:
        formula.check_invertible_blocks(x, p, q, adapter_ids, form, group_size)
    signature, (x_at, p_at, q_at, ids_at) = _signature(x, p, q, adapter_ids, form, group_size, True)
    runner = ready.get(signature)
    if runner is not None and is_current(x):
        torch.autograd.graph.increment_version(x)
        runner(x.get_device(), x_at, x_at, p_at, q_at, ids_at or p_at)
        return
    given = p, q, adapter_ids
    p, q, adapter_ids = arguments(x, p, q, adapter_ids, form, group_size)
    torch.autograd.graph.increment_version(x)
    with on_device(x):
        if x.is_contiguous() or layout.describe(x.shape, x.stride()) is not None:
            runner = _launch_rotate(x, x, p, q, adapter_ids, form, group_size, False)
            if same(given, (p, q, adapter_ids)):
                keep_ready(signature, runner)
        else:  # no kernel walks this layout: rotate a copy, write it back
            packed = x.contiguous()
            _launch_rotate(packed, packed, p, q, adapter_ids, form, group_size, False)
            x.copy_(packed)


def rotate_backward(grad, saved, p, q, adapter_ids, form, group_size, from_output, output_mask):
    checks.check_grad(grad, saved)
    p, q, adapter_ids = arguments(saved, p, q, adapter_ids, form, group_size)
    need_gx, need_gp, need_gq = output_mask
    gx = output(saved) if need_gx else None
    gp = output(p) if need_gp else None
    gq = output(q) if need_gq else None
    with on_device(saved):
        grad = layout.walkable(grad)
        if need_gp or need_gq:
            _launch_backward(grad, layout.walkable(saved), p, q, adapter_ids, form, group_size, from_output, gx, gp, gq)
        elif need_gx:
            _launch_rotate(grad, gx, p, q, adapter_ids, form, group_size, True)
    return gx, gp, gq


def sort_rows(ids, adapters: int):
    """(positions of the ids in the order of adapters, starts [A + 1]: how many are smaller than 0, 1, .. A), int64.

    Without synchronising, so that a CUDA graph can capture it. ids: contiguous.
    """
    count, made = ids.numel(), {"dtype": torch.int64, "device": ids.device}
    positions, starts = torch.empty(count, **made), torch.empty(adapters + 1, **made)
    if count <= plan.MOST_COMPARED:
        prepare.sort_few(count, adapters)(ids, positions, starts)
    else:
        count_ids, add, place, counters = prepare.sort_many(count, adapters)
        counts = torch.zeros(counters, **made)
        count_ids(ids, counts)
        add(counts, starts)
        place(ids, counts, starts, positions)
    return positions, starts


def _launch_backward(gz, saved, p, q, adapter_ids, form, group_size, from_output, gx, gp, gq):
    batched = adapter_ids is not None
    target = gz if gx is None else gx
    first, reduce, size = prepare.backward(
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
    positions = starts = p  # unread
    if batched:
        positions, starts = sort_rows(adapter_ids, p.shape[0])
    if first is not None:
        first(gz, saved, target, p, q, positions, starts, scratch)
    if reduce is not None:
        reduce(scratch, starts, p, q, p if gp is None else gp, q if gq is None else gq)


def _launch_merge(w, z, r1, r2, group_size):
    if w.numel() == 0:
        return
    with on_device(w):
        prepare.merge(
            w.device.index, w.shape, w.stride(0), z.stride(0), w.dtype, (w.data_ptr() | z.data_ptr()) % 16 == 0,
            r1.shape[0], group_size,
        )(w, z, r1, r2)  # fmt: skip


def _has_adjacent_columns(w) -> bool:
    return w.stride(1) == 1 or w.shape[1] <= 1


def merge(w, r1, r2, group_size):
    checks.check_matrix(w)
    if is_transposed(w):
        return rotate(w.t(), r1, r2, None, "table", group_size).t()
    r1, r2, _ = arguments(w.t(), r1, r2, None, "table", group_size)
    z = output(w)
    _launch_merge(w if _has_adjacent_columns(w) else w.contiguous(), z, r1, r2, group_size)
    return z


def merge_(w, r1, r2, group_size):
    checks.check_matrix(w)
    if is_transposed(w):
        rotate_(w.t(), r1, r2, None, "table", group_size, False)
        return
    aliasing.check_not_shared(w, r1, r2, name="w")
    r1, r2, _ = arguments(w.t(), r1, r2, None, "table", group_size)
    torch.autograd.graph.increment_version(w)
    if _has_adjacent_columns(w):
        _launch_merge(w, w, r1, r2, group_size)
    else:
        packed = w.contiguous()
        _launch_merge(packed, packed, r1, r2, group_size)
        w.copy_(packed)


def tables(p, q, form, group_size, dtype):
    checks.check_packed(p, q, form, group_size)
    if p.stride(-1) != 1 or q.stride(-1) != 1:
        p, q = p.contiguous(), q.contiguous()
    width = p.shape[-1] // 2 if form == "road_4" else p.shape[-1]
    r1, r2 = (torch.empty((*p.shape[:-1], width), dtype=dtype, device=p.device) for _ in range(2))
    adapters, *strides = (1, 0, 0) if p.dim() == 1 else (p.shape[0], p.stride(0), q.stride(0))
    if adapters:
        with on_device(p):
            prepare.tables(adapters, width, *strides, form, group_size)(p, q, r1, r2)
    return r1, r2
