"""The fused ops of ops/schemas.py on the Triton kernels, as ops.py has the others."""

import torch

from ..ops import fused_checks
from . import layout, prepare_fused
from .calls import arguments, is_current, keep_ready, on_device, output, ready, same
from .ops import sort_rows
from .prepare_fused import Tables


def _signature(op: str, tensors, options: tuple):
    """(all that checks and preparation depend on, the addresses), or None for the signature of tensors that are not at
    multiples of 16 bytes.
    """
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    if any(address % 16 for address in addresses):
        return None, addresses
    kinds = [None if t is None else (t.shape, t.stride(), t.dtype, t.get_device()) for t in tensors]
    return (op, *options, *kinds), addresses


def _at_16_bytes(*tensors) -> bool:
    return all(t.data_ptr() % 16 == 0 for t in tensors)


def _is_walkable(t) -> bool:
    return t.is_contiguous() or layout.describe(t.shape, t.stride()) is not None


def _no_ids(r1, adapter_ids):
    """What kernels without ids, which they do not read, are given for them."""
    return r1 if adapter_ids is None else adapter_ids


def rotate_silu_mul(x, r1, r2, adapter_ids, group_size):
    signature, addresses = _signature("silu_mul", (x, r1, r2, adapter_ids), (group_size,))
    runner = ready.get(signature)
    if runner is None or not is_current(x):
        fused_checks.check_silu_mul(x, r1, r2, adapter_ids, group_size)
        return _rotate_silu_mul(signature, x, r1, r2, adapter_ids, group_size)
    z = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    x_at, r1_at, r2_at, ids_at = addresses
    runner(x.get_device(), x_at, r1_at, r2_at, ids_at or r1_at, x_at, z.data_ptr())
    return z


def _rotate_silu_mul(signature, x, *given_and_group):
    *given, group_size = given_and_group
    r1, r2, adapter_ids = used = arguments(x, *given, "table", group_size)
    z = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    with on_device(x):
        walked = layout.walkable(x)
        runner = _launch_silu_mul(walked, None, z, r1, r2, adapter_ids, group_size)
    if walked is x and same(given, used):
        keep_ready(signature, runner)
    return z


def _launch_silu_mul(x, gz, out, r1, r2, adapter_ids, group_size):
    """Writes z, or from gz the gradient of x. Returns what Launch returns, or None without elements."""
    if x.numel() == 0:
        return None
    given_gz = x if gz is None else gz
    return prepare_fused.silu_mul(
        x.device.index, x.shape, x.stride(), given_gz.stride(), x.dtype, _at_16_bytes(x, given_gz, out),
        Tables.of(r1, r2, adapter_ids), group_size, gz is not None,
    )(x, r1, r2, _no_ids(r1, adapter_ids), given_gz, out)  # fmt: skip


def rotate_silu_mul_backward(grad, x, r1, r2, adapter_ids, group_size, output_mask):
    fused_checks.check_silu_mul(x, r1, r2, adapter_ids, group_size)
    fused_checks.check_silu_mul_grad(grad, x)
    r1, r2, adapter_ids = arguments(x, r1, r2, adapter_ids, "table", group_size)
    gx, gr1, gr2 = (output(t) if wanted else None for t, wanted in zip((x, r1, r2), output_mask, strict=True))
    with on_device(x):
        grad, x = layout.walkable(grad), layout.walkable(x)
        if output_mask[1] or output_mask[2]:
            _launch_silu_mul_backward(grad, x, r1, r2, adapter_ids, group_size, gx, gr1, gr2)
        elif output_mask[0]:
            _launch_silu_mul(x, grad, gx, r1, r2, adapter_ids, group_size)
    return gx, gr1, gr2


def _launch_silu_mul_backward(gz, x, r1, r2, adapter_ids, group_size, gx, gr1, gr2):
    target = x if gx is None else gx
    first, reduce, size = prepare_fused.silu_mul_backward(
        x.device.index, x.shape, gz.stride(), x.stride(), x.dtype, _at_16_bytes(gz, x, target),
        Tables.of(r1, r2, adapter_ids), group_size, (gx is not None, gr1 is not None, gr2 is not None),
    )  # fmt: skip
    scratch = torch.empty(size, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=x.device)
    positions = starts = r1  # unread
    if adapter_ids is not None:
        positions, starts = sort_rows(adapter_ids, r1.shape[0])
    if first is not None:
        first(gz, x, target, r1, r2, positions, starts, scratch)
    if reduce is not None:
        reduce(scratch, starts, r1, r2, r1 if gr1 is None else gr1, r2 if gr2 is None else gr2)


def rotate_add_rms_norm(x, residual, weight, r1, r2, adapter_ids, eps, group_size):
    tensors = x, residual, weight, r1, r2, adapter_ids
    signature, addresses = _signature("add_rms_norm", tensors, (eps, group_size))
    runner = ready.get(signature)
    if runner is not None and is_current(x):
        y, s = output(x), output(x)
        ids_at = addresses[-1] or addresses[3]
        runner(x.get_device(), *addresses[:-1], ids_at, y.data_ptr(), s.data_ptr())
        return y, s
    fused_checks.check_add_rms_norm(*tensors, eps, group_size)
    y, s = output(x), output(x)
    walked = layout.walkable(x), layout.walkable(residual)
    runner = _launch_add_rms_norm(*walked, y, s, tensors, eps, group_size)
    if same((x, residual), walked):
        keep_ready(signature, runner)
    return y, s


def rotate_add_rms_norm_(x, residual, weight, r1, r2, adapter_ids, eps, group_size):
    fused_checks.check_written_apart(x, residual, weight, r1, r2)
    tensors = x, residual, weight, r1, r2, adapter_ids
    signature, addresses = _signature("add_rms_norm_", tensors, (eps, group_size))
    runner = ready.get(signature)
    if runner is not None and is_current(x):
        torch.autograd.graph.increment_version((x, residual))
        runner(x.get_device(), *addresses[:-1], addresses[-1] or addresses[3], *addresses[:2])
        return
    fused_checks.check_add_rms_norm(*tensors, eps, group_size)
    if _is_walkable(x) and _is_walkable(residual):
        keep_ready(signature, _launch_add_rms_norm(x, residual, x, residual, tensors, eps, group_size))
    else:  # no kernel walks this layout: work on copies, write them back
        packed = [t.clone(memory_format=torch.contiguous_format) for t in (x, residual)]
        _launch_add_rms_norm(*packed, *packed, tensors, eps, group_size)
        x.copy_(packed[0])
        residual.copy_(packed[1])


def _launch_add_rms_norm(x, residual, y, s, given, eps, group_size):
    """given: the arguments of the call. Returns what Launch returns, or None if an equal call may need a copy again."""
    _, _, weight, *tables = given
    r1, r2, adapter_ids = arguments(x, *tables, "table", group_size)
    used = weight.contiguous(), r1, r2, adapter_ids
    in_place = y is x
    if in_place:
        torch.autograd.graph.increment_version((x, residual))
    if x.numel() == 0:
        return None
    with on_device(x):
        runner = prepare_fused.add_rms_norm(
            x.device.index, x.shape, tuple(t.stride() for t in (x, residual, y, s)), x.dtype,
            _at_16_bytes(x, residual, y, s), Tables.of(r1, r2, adapter_ids), float(eps), group_size, in_place,
        )(x, residual, used[0], r1, r2, _no_ids(r1, adapter_ids), y, s)  # fmt: skip
    return runner if same((weight, *tables), used) else None


def add_rms_norm_backward(gy, gs, s, weight, eps):
    tensors = gy, gs, s, weight
    signature, addresses = _signature("add_rms_norm_backward", tensors, (eps,))
    runner = ready.get(signature)
    if runner is not None and is_current(s):
        out = output(s)
        runner(s.get_device(), *addresses, out.data_ptr())
        return out
    fused_checks.check_add_rms_norm_grads(*tensors, eps)
    out = output(s)
    if s.numel() == 0:
        return out
    with on_device(s):
        *walked, _ = used = *map(layout.walkable, (gy, gs, s)), weight.contiguous()
        runner = prepare_fused.add_rms_norm_backward(
            s.device.index, s.shape, tuple(t.stride() for t in walked), s.dtype, _at_16_bytes(*walked, out), float(eps)
        )(*used, out)
    if same(tensors, used):
        keep_ready(signature, runner)
    return out


def rotate_rope(qkv, positions, cos_sin_cache, r1, r2, adapter_ids, *options):
    """options: num_heads, num_kv_heads, head_dim, is_neox, group_size."""
    tensors = qkv, positions, cos_sin_cache, r1, r2, adapter_ids
    signature, addresses = _signature("rope", tensors, options)
    runner = ready.get(signature)
    if runner is not None and is_current(qkv):
        z = output(qkv)
        runner(qkv.get_device(), *addresses[:-1], addresses[-1] or addresses[3], z.data_ptr())
        return z
    fused_checks.check_rope(*tensors, *options)
    z = output(qkv)
    walked = layout.walkable(qkv)
    runner = _launch_rope(walked, z, tensors, options)
    if walked is qkv:
        keep_ready(signature, runner)
    return z


def rotate_rope_(qkv, positions, cos_sin_cache, r1, r2, adapter_ids, *options):
    fused_checks.check_apart(qkv, cos_sin_cache, r1, r2)
    tensors = qkv, positions, cos_sin_cache, r1, r2, adapter_ids
    signature, addresses = _signature("rope_", tensors, options)
    runner = ready.get(signature)
    if runner is not None and is_current(qkv):
        torch.autograd.graph.increment_version(qkv)
        runner(qkv.get_device(), *addresses[:-1], addresses[-1] or addresses[3], addresses[0])
        return
    fused_checks.check_rope(*tensors, *options)
    if _is_walkable(qkv):
        keep_ready(signature, _launch_rope(qkv, qkv, tensors, options))
    else:  # no kernel walks this layout: work on a copy, write it back
        packed = qkv.contiguous()
        _launch_rope(packed, packed, tensors, options)
        qkv.copy_(packed)


def _launch_rope(x, z, given, options):
    """As _launch_add_rms_norm."""
    _, positions, cache, *tables = given
    num_heads, num_kv_heads, head_dim, is_neox, group_size = options
    r1, r2, adapter_ids = arguments(x, *tables, "table", group_size)
    if positions.is_cpu:  # interpreted; on a GPU the kernels assert
        bad = ((positions < 0) | (positions >= cache.shape[0])).flatten().nonzero()
        if len(bad):
            fused_checks.refuse_position(int(positions.flatten()[bad[0, 0]]), int(bad[0, 0]), cache.shape[0])
    spread = positions.expand(x.shape[:-1])
    if layout.describe((*spread.shape, 1), (*spread.stride(), 1)) is None:
        spread = spread.contiguous()
    used = cache if cache.stride(-1) == 1 else cache.contiguous(), r1, r2, adapter_ids
    if z is x:
        torch.autograd.graph.increment_version(x)
    if x.numel() == 0:
        return None
    heads = num_heads + 2 * num_kv_heads, num_heads + num_kv_heads
    with on_device(x):
        runner = prepare_fused.rope(
            x.device.index, x.shape, (x.stride(), z.stride()), spread.stride(), used[0].shape, used[0].stride(0),
            x.dtype, _at_16_bytes(x, z), _at_16_bytes(used[0]) and used[0].dtype != torch.float64,
            Tables.of(r1, r2, adapter_ids), heads, head_dim, is_neox, group_size, z is x,
        )(x, spread, used[0], r1, r2, _no_ids(r1, adapter_ids), z)  # fmt: skip
    is_ready = spread.data_ptr() == positions.data_ptr() and same((cache, *tables), used)
    return runner if is_ready else None
