"""The compiled CPU kernels (csrc/cpu): AVX2 and AVX-512 chosen at run time, portable code elsewhere."""

from ..ops.extension import EXTENSION, REASON
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

DEVICES = ("cpu",)


def unavailable() -> str | None:
    return REASON


if EXTENSION is not None:
    rotate = EXTENSION.rotate
    rotate_ = EXTENSION.rotate_
    rotate_backward = EXTENSION.rotate_backward
