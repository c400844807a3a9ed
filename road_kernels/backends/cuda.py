"""The compiled CUDA kernels (csrc/cuda)."""

import torch

from ..ops.extension import EXTENSION, REASON, WITHOUT
from ..ops.schemas import (  # noqa: F401  the dispatcher finds the kernel of the device
    add_rms_norm_backward,
    merge,
    merge_,
    rotate_add_rms_norm,
    rotate_add_rms_norm_,
    rotate_rope,
    rotate_rope_,
    rotate_silu_mul,
    rotate_silu_mul_backward,
    tables,
)
from .capability import why_unserved

DEVICES = ("cuda",)


def unavailable() -> str | None:
    if EXTENSION is None:
        return REASON
    build = EXTENSION.build_info()
    if build["cuda"] is None:
        why = WITHOUT.get("CUDA", "they need nvcc and a CUDA build of torch")
        return f"not built: the extension has no CUDA kernels ({why})"
    # This asks NVML. is_available would initialise CUDA, and a process that forks afterwards could not use it.
    if torch.cuda.device_count() == 0:
        return "built, but torch sees no CUDA device here"
    return why_unserved(build["cuda_architectures"])


if EXTENSION is not None:
    rotate = EXTENSION.rotate
    rotate_ = EXTENSION.rotate_
    rotate_backward = EXTENSION.rotate_backward
