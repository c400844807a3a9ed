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


def require_close(name: str, got: object, want: object, tolerance: float | tuple[float, ...]) -> float:
    """The error of the first of a tuple of tensors, or of one; ValueError, naming the provider, above the tolerance.

    A tuple of tolerances is one for each tensor.
    """
    got, want = (t if isinstance(t, tuple) else (t,) for t in (got, want))
    if [tuple(g.shape) for g in got] != [tuple(w.shape) for w in want]:
        raise ValueError(f"{name}: shapes {[list(g.shape) for g in got]}, not {[list(w.shape) for w in want]}")
    errors = [row_error(g, w) for g, w in zip(got, want, strict=True)]
    allowed = tolerance if isinstance(tolerance, tuple) else (tolerance,) * len(errors)
    for k, (error, limit) in enumerate(zip(errors, allowed, strict=True)):
        if not error <= limit:
            which = f" of result {k}" if len(errors) > 1 else ""
            raise ValueError(f"{name}: a row{which} is off by {error:.2e} (relative), allowed is {limit:.2e}")
    return float(f"{errors[0]:.3g}")


def rounding(dtype: torch.dtype, units: float = 1.0) -> float:
    """A tolerance: ``units`` of the dtype's eps. One rounding of random rows measures about a quarter of one."""
    return units * torch.finfo(dtype).eps
