"""How an adapter changes a representation: the two measures of the pilot study behind RoAd.

Source: Liao & Monz, "3-in-1: 2D Rotary Adaptation", arXiv 2409.00119, section 3.1: finetuning changes the direction of
representations more than their length.
"""

import torch
from torch import Tensor

from ..ops import checks
from ..python_fallback.tables import arithmetic_dtype


def magnitude_change(x: Tensor, x0: Tensor) -> Tensor:
    """(|x| - |x0|) / |x0| of every token: 0 is no change, 0.1 a tenth longer, -1 gone.

    Args:
        x, x0: [..., D], after and before (adapted and base), one shape.

    Returns:
        [...], float32 (float64 for float64); inf where x0 alone is zero, NaN where both are.
    """
    x, x0, dtype = _in_float64(x, x0)
    before = torch.linalg.vector_norm(x0, dim=-1)
    return ((torch.linalg.vector_norm(x, dim=-1) - before) / before).to(dtype)


def cosine_similarity(x: Tensor, x0: Tensor) -> Tensor:
    """cos(x, x0) of every token, which is the paper's angular displacement: 1 is the same direction, 0 a right angle.

    Arguments as in magnitude_change. Returns [...], float32 (float64 for float64), in [-1, 1]; NaN where one is zero.
    """
    x, x0, dtype = _in_float64(x, x0)
    unit, unit0 = (t / torch.linalg.vector_norm(t, dim=-1, keepdim=True) for t in (x, x0))
    return (unit * unit0).sum(-1).clamp(-1, 1).to(dtype)


angular_displacement = cosine_similarity  # the paper's name: a cosine, in spite of it


def _in_float64(x: Tensor, x0: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
    """In float32 squares overflow beyond 1e19, and 1 - cos of a small angle is lost in rounding."""
    for name, t in (("x", x), ("x0", x0)):
        checks.check_float_tensor(name, t)
    if x.device != x0.device:
        raise ValueError(f"x0 must be on the device of x ({x.device}), got {x0.device}")
    if x.shape != x0.shape or x.dim() == 0:
        raise ValueError(f"x and x0 must have one shape [..., D], got {list(x.shape)} and {list(x0.shape)}")
    return x.double(), x0.double(), arithmetic_dtype(x, x0)
