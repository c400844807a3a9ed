"""The compiled CUDA kernels (csrc/cuda)."""

import torch

from .._extension import EXTENSION, REASON
from .._ops import mix_rows, mix_rows_  # noqa: F401  the dispatcher finds the kernel of the device

DEVICES = ("cuda",)


def unavailable() -> str | None:
    if EXTENSION is None:
        return REASON
    if EXTENSION.build_info()["cuda"] is None:
        return "not built: the extension has no CUDA kernels (they need nvcc and a CUDA build of torch)"
    # Counts by NVML. is_available would start the CUDA runtime, which no process survives that forks afterwards.
    if torch.cuda.device_count() == 0:
        return "built, but torch sees no CUDA device here"
    return None


if EXTENSION is not None:
    rotate = EXTENSION.rotate
    rotate_ = EXTENSION.rotate_
    rotate_backward = EXTENSION.rotate_backward
