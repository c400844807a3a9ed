"""The Triton kernels (road_kernels/triton): where the extension has none for this GPU, or nobody built it.

Under TRITON_INTERPRET=1 they run in Triton's interpreter, on CPU tensors too: slow, for tests.
"""

import functools
import importlib.util
import os

import torch

from ..ops import formula, fused_formula

_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
DEVICES = ("cuda", "cpu") if _INTERPRETED else ("cuda",)


def unavailable() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'triton>=3.6'; PyTorch's CUDA builds bring it)"
    if not _INTERPRETED and torch.cuda.device_count() == 0:  # by NVML, as in cuda.py
        return "torch sees no CUDA device here"
    return None


def _is_batched(grad: torch.Tensor) -> bool:
    return torch._C._functorch.is_legacy_batchedtensor(grad) or torch._C._functorch.is_functorch_wrapped_tensor(grad)


@functools.cache
def _kernels():
    """At the first call: importing Triton takes longer than all of road_kernels."""
    from ..triton import ops

    return ops


@functools.cache
def _fused_kernels():
    from ..triton import fused_ops

    return fused_ops


def rotate(*args):
    return _kernels().rotate(*args)


def rotate_(*args):
    _kernels().rotate_(*args)


def rotate_backward(grad, *args):
    if _is_batched(grad):  # vmap over a backward, by torch.func or is_grads_batched=True: no data to point a kernel at
        return formula.rotate_backward(grad, *args)
    return _kernels().rotate_backward(grad, *args)


def merge(*args):
    return _kernels().merge(*args)


def merge_(*args):
    _kernels().merge_(*args)


def tables(*args):
    return _kernels().tables(*args)


def rotate_silu_mul(*args):
    return _fused_kernels().rotate_silu_mul(*args)


def rotate_silu_mul_backward(grad, *args):
    if _is_batched(grad):
        return fused_formula.rotate_silu_mul_backward(grad, *args)
    return _fused_kernels().rotate_silu_mul_backward(grad, *args)


def rotate_add_rms_norm(*args):
    return _fused_kernels().rotate_add_rms_norm(*args)


def rotate_add_rms_norm_(*args):
    _fused_kernels().rotate_add_rms_norm_(*args)


def add_rms_norm_backward(gy, gs, *args):
    module = fused_formula if _is_batched(gy) or _is_batched(gs) else _fused_kernels()
    return module.add_rms_norm_backward(gy, gs, *args)


def rotate_rope(qkv, *args):
    module = fused_formula if _is_batched(qkv) else _fused_kernels()  # a gradient, as in rotate_backward
    return module.rotate_rope(qkv, *args)


def rotate_rope_(*args):
    _fused_kernels().rotate_rope_(*args)
