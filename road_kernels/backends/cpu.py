"""The compiled CPU kernels (csrc/cpu): AVX2 and AVX-512 chosen at run time, portable code elsewhere."""

from ..ops.extension import EXTENSION, REASON
from ..ops.schemas import merge, merge_, tables  # noqa: F401  the dispatcher finds the kernel of the device

DEVICES = ("cpu",)


def unavailable() -> str | None:
    return REASON


if EXTENSION is not None:
    rotate = EXTENSION.rotate
    rotate_ = EXTENSION.rotate_
    rotate_backward = EXTENSION.rotate_backward
