"""Rotating activations: by one adapter or by one per row, from angles or from ready tables.

The mathematics and the packing of the parameters: road_kernels.python_fallback.
"""

import torch
from torch import Tensor

from ..backends.registry import choose, is_traced_as_formula
from ..distributed import dispatch as sharded
from ..ops import aliasing, checks, formula, schemas
from ..ops.autograd import BelowAutograd, Rotate, needs_formula
from ..ops.extension import EXTENSION


def _elsewhere(*_):
    return NotImplemented


# A whole call in one step of C++, or NotImplemented: the call then goes by the checks and `_run` below.
_apply = EXTENSION.apply if EXTENSION else _elsewhere
_rotate = EXTENSION.rotate_tables if EXTENSION else _elsewhere
_is_dynamo_tracing = torch.compiler.is_dynamo_compiling  # is_compiling takes three times as long


def road_apply(
    x: Tensor,
    theta: Tensor,
    alpha: Tensor,
    *,
    variant: str = "road_1",
    group_size: int = 64,
    inplace: bool = False,
    backend: str | None = None,
) -> Tensor:
    """z = R(theta, alpha) x: rotates and scales pairs of the last dimension of x by one RoAd adapter.

    Args:
        x: [..., D], any leading shape and strides; float16, bfloat16, float32 or float64.
        theta: angles in radians, [P]; P = D/2 ("road_1"), D ("road_2") or 2D ("road_4"), packed as in PEFT.
        alpha: scales, the shape of theta. Both on x's device, each in any of the four dtypes.
        variant: "road_1", "road_2" or "road_4".
        group_size: g, even, divides D; feature k of every run of g features pairs with feature k + g/2.
        inplace: write z into x and return x. Training then saves nothing of x's size but the output, from which the
            input is recovered: the rounding of z reaches the gradients of theta and alpha, amplified by the condition
            of the 2x2 blocks. Several slices of one tensor need one call with their parameters concatenated, because
            autograd counts writes to the tensor as a whole.
        backend: "cuda", "cpu", "triton", "python"; None chooses the best for x's device.

    Returns:
        z with the shape and dtype of x, contiguous (x itself if ``inplace``). Arithmetic is float32 (float64 for
        float64 x), rounded once. theta = 0 and alpha = 1 return finite x bit for bit.

    Gradients reach x, theta and alpha, to second order; those of theta and alpha are summed in float32 or wider and
    returned in their dtype.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device or shape.
        RuntimeError: ``backend`` is not usable here, or ``inplace`` on a leaf that requires grad.
        ValueError: training with ``inplace`` and a zero alpha or determinant.

    All tensors of a call may be DTensors of one mesh. z and the gradients are then placed as docs/distributed.md says;
    RuntimeError for ``inplace`` where x would have to be redistributed.

    Source: Liao & Monz, "3-in-1: 2D Rotary Adaptation", arXiv 2409.00119, section 3.2.
    """
    if _is_dynamo_tracing():
        checks.check_traced(variant, True)
        return _traced(x, theta, alpha, None, variant, group_size, inplace, False, backend)
    if (z := _apply(x, theta, alpha, None, variant, group_size, inplace, False, backend)) is not NotImplemented:
        return z
    checks.check_angles(x, theta, alpha, variant, group_size)
    return _run(x, theta, alpha, None, variant, group_size, inplace, backend, False)


def road_apply_batched(
    x: Tensor,
    theta: Tensor,
    alpha: Tensor,
    adapter_ids: Tensor,
    *,
    variant: str = "road_1",
    group_size: int = 64,
    inplace: bool = False,
    backend: str | None = None,
) -> Tensor:
    """road_apply with one adapter per row, out of a bank: a batch in which every request has its own adapter.

    Args:
        theta, alpha: [A, P], one row per adapter.
        adapter_ids: int32 or int64 on x's device; its shape is a prefix of x.shape[:-1] ([B] for the requests of
            x [B, T, D], [B, T] per token). Any order, any repetition. -1: no adapter, the row passes bit for bit.
        The rest as in road_apply.

    Raises:
        IndexError: an id outside -1 .. A-1. Never a read outside the bank. On a GPU it is a device-side assertion, and
            where torch.compile has made the kernel, which it does without a compiled backend, a RuntimeError.
        The rest as in road_apply.
    """
    if _is_dynamo_tracing():
        checks.check_traced(variant, adapter_ids is not None)
        return _traced(x, theta, alpha, adapter_ids, variant, group_size, inplace, False, backend)
    if (z := _apply(x, theta, alpha, adapter_ids, variant, group_size, inplace, False, backend)) is not NotImplemented:
        return z
    checks.check_angles_batched(x, theta, alpha, adapter_ids, variant, group_size)
    return _run(x, theta, alpha, adapter_ids, variant, group_size, inplace, backend, False)


def rotate(
    x: Tensor,
    r1: Tensor,
    r2: Tensor,
    *,
    group_size: int = 64,
    inplace: bool = False,
    overlap: bool = False,
    backend: str | None = None,
) -> Tensor:
    """z_i = r1_i x_i - r2_i x_j, z_j = r1_j x_j + r2_j x_i: the op on ready coefficients, for serving.

    Args:
        r1, r2: [D], or compact [D/2] when both rows of a pair share them, packed [D/g, g/2]; see road_tables.
        overlap: the promise that r1 and r2 are not being written by work still in flight on the current stream when
            this call's kernel may start, which is while the kernel before it runs; several calls with overlap in
            direct succession may all start while the kernel before the first runs. It holds for tables that any kernel
            before that one has written; not if that one makes or updates them, or work on another stream. On GPUs of
            compute capability 9.0 and newer the tables are then read early, x never is. A broken promise gives wrong
            results and no error. Other devices and backends ignore it, and so does a call whose r1 or r2
            requires grad (an optimizer may be writing it).
        The rest, the result and the errors as in road_apply.
    """
    if _is_dynamo_tracing():
        return _traced(x, r1, r2, None, "table", group_size, inplace, overlap, backend)
    if (z := _rotate(x, r1, r2, None, "table", group_size, inplace, overlap, backend)) is not NotImplemented:
        return z
    checks.check_tables(x, r1, r2, group_size)
    return _run(x, r1, r2, None, "table", group_size, inplace, backend, overlap)


def rotate_batched(
    x: Tensor,
    r1: Tensor,
    r2: Tensor,
    adapter_ids: Tensor,
    *,
    group_size: int = 64,
    inplace: bool = False,
    overlap: bool = False,
    backend: str | None = None,
) -> Tensor:
    """rotate with one adapter per row. r1, r2: [A, D] or compact [A, D/2]; the rest as in road_apply_batched.

    overlap: as in rotate, and for adapter_ids too.
    """
    if _is_dynamo_tracing():
        checks.check_traced("", adapter_ids is not None)
        return _traced(x, r1, r2, adapter_ids, "table", group_size, inplace, overlap, backend)
    if (z := _rotate(x, r1, r2, adapter_ids, "table", group_size, inplace, overlap, backend)) is not NotImplemented:
        return z
    checks.check_tables_batched(x, r1, r2, adapter_ids, group_size)
    return _run(x, r1, r2, adapter_ids, "table", group_size, inplace, backend, overlap)


def _run(x, p, q, adapter_ids, form, group_size, inplace, backend, overlap):
    if torch.compiler.is_compiling():  # torch.export, whose tensors are fake
        return _traced(x, p, q, adapter_ids, form, group_size, inplace, overlap, backend)
    if inplace:
        aliasing.check_inplace(x)
    if sharded.is_sharded(x, p, q, adapter_ids):
        module = _by_the_ops(x, p, q, adapter_ids, form, backend)
    else:
        module = choose(backend, x.device)
    if needs_formula():
        return _by_formula(x, p, q, adapter_ids, form, group_size, inplace)
    if torch.is_grad_enabled() and (x.requires_grad or p.requires_grad or q.requires_grad):
        if inplace:
            aliasing.check_recorded_inplace(x)
        return Rotate.apply(x, p, q, adapter_ids, form, group_size, inplace, module)
    overlap = overlap and not (p.requires_grad or q.requires_grad)
    if inplace:
        module.rotate_(x, p, q, adapter_ids, form, group_size, False, overlap)
        return x
    return module.rotate(x, p, q, adapter_ids, form, group_size, overlap)


def _by_the_ops(x, p, q, adapter_ids, form, backend):
    """Of DTensors: the dispatcher finds the rule of the op, and the kernel for the shards."""
    names = "x", *(("r1", "r2") if form == "table" else ("theta", "alpha")), "adapter_ids"
    sharded.check(backend, **dict(zip(names, (x, p, q, adapter_ids), strict=True)))
    return BelowAutograd


def _by_formula(x, p, q, adapter_ids, form, group_size, inplace):
    if not inplace:
        return formula.rotate(x, p, q, adapter_ids, form, group_size)
    # Autograd saves the input of the formula: a copy, since x itself will be overwritten.
    return x.copy_(formula.rotate(x.clone(), p, q, adapter_ids, form, group_size))


def _traced(x, p, q, adapter_ids, form, group_size, inplace, overlap, backend):
    """What torch.compile and torch.export see: the op, or the formula where there is no kernel but Inductor's.

    The arguments are checked by the op's fake kernel, which is not traced, so that no rule becomes a guard; those of
    the formula in the trace.

    2048 x 4096 on a 2-core Xeon, op against formula: alone 8.5 and 40 ms, between two pointwise neighbours 30 and
    46 ms, forward and backward with SiLU 62 and 122 ms (float32), 18 and 84 ms (bfloat16).
    """
    by_formula = is_traced_as_formula(backend, x.device) and not sharded.is_sharded(x)  # DTensor has rules for the op
    if by_formula or needs_formula():
        checks.check_arguments(x, p, q, adapter_ids, form, group_size)  # no fake kernel does it
        return _by_formula(x, p, q, adapter_ids, form, group_size, inplace)
    # Functionalisation removes both copies.
    z = schemas.rotate(x.clone() if inplace else x, p, q, adapter_ids, form, group_size, overlap)
    return x.copy_(z) if inplace else z
