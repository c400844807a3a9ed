"""Correct before fast: results are compared with float64 row by row."""

import torch
from torch import Tensor


def row_error(got: Tensor, want: Tensor) -> float:
    """The largest of |got - want| / |want| in the 2-norm over the rows of the last dimension."""
    if not want.numel():
        return 0.0
    got, want = (t.detach().double().reshape(-1, t.shape[-1]) for t in (got, want))
    size = want.norm(dim=-1)
    # A row of zeros has no relative error: it is taken relative to the largest row.
    error = (got - want).norm(dim=-1) / torch.where(size == 0, size.max().clamp_min(1e-300), size)
    return float("inf") if error.isnan().any() else error.max().item()


def require_close(name: str, got: object, want: object, tolerance: float | tuple[float, ...]) -> float:
    """The error of the tensor, or of the first of a tuple; above the tolerance, a ValueError that names the provider.

    A tuple has one tolerance per tensor.
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
    """A tolerance of ``units`` eps of the dtype. Rounding random rows once gives about a quarter of an eps."""
    return units * torch.finfo(dtype).eps


def rounding_of_sums(rows: int) -> float:
    """A tolerance for float32 sums over rows: random signs lose a factor of about the square root of their number."""
    return rounding(torch.float32, 4 * rows**0.5)
