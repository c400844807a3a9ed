"""Correct before fast: a provider's result against float64, row by row."""

import torch
from torch import Tensor


def row_error(got: Tensor, want: Tensor) -> float:
    """The largest of |got - want| / |want| in the 2-norm over the rows of the last dimension."""
    if not want.numel():
        return 0.0
    got, want = (t.detach().double().reshape(-1, t.shape[-1]) for t in (got, want))
    size = want.norm(dim=-1)
    # A row of zeros has no relative error: it is measured against the largest row.
    error = (got - want).norm(dim=-1) / torch.where(size == 0, size.max().clamp_min(1e-300), size)
    return float("inf") if error.isnan().any() else error.max().item()


def require_close(name: str, got: object, want: object, tolerance: float) -> float:
    """The error of tensors or tuples of them; ValueError, naming the provider, above the tolerance."""
    got, want = (t if isinstance(t, tuple) else (t,) for t in (got, want))
    if [tuple(g.shape) for g in got] != [tuple(w.shape) for w in want]:
        raise ValueError(f"{name}: shapes {[list(g.shape) for g in got]}, not {[list(w.shape) for w in want]}")
    error = max(row_error(g, w) for g, w in zip(got, want, strict=True))
    if not error <= tolerance:
        raise ValueError(f"{name}: a row is off by {error:.2e} (relative), allowed is {tolerance:.2e}")
    return float(f"{error:.3g}")


def rounding(dtype: torch.dtype, units: float = 1.0) -> float:
    """A tolerance: ``units`` of the dtype's eps. One rounding of random rows measures about a quarter of one."""
    return units * torch.finfo(dtype).eps
