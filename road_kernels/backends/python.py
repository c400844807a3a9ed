"""Plain PyTorch (ops/formula.py): every device, every transform, no compiler."""

import sys

from ..ops import schemas
from ..ops.formula import merge, merge_, rotate, rotate_, rotate_backward, tables  # noqa: F401

DEVICES = None


def unavailable() -> str | None:
    return None


schemas.register_backend(sys.modules[__name__], "CompositeExplicitAutograd")
