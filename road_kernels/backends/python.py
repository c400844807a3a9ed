"""Plain PyTorch (ops/formula.py, ops/fused_formula.py): every device, every transform, no compiler."""

import sys

from ..ops import schemas
from ..ops.formula import merge, merge_, rotate, rotate_, rotate_backward, tables  # noqa: F401
from ..ops.fused_formula import (  # noqa: F401
    add_rms_norm_backward,
    rotate_add_rms_norm,
    rotate_add_rms_norm_,
    rotate_rope,
    rotate_rope_,
    rotate_silu_mul,
    rotate_silu_mul_backward,
)

DEVICES = None


def unavailable() -> str | None:
    return None


schemas.register_backend(sys.modules[__name__], "CompositeExplicitAutograd")
