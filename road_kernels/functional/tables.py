"""Tables of coefficients from the parameters of an adapter."""

from types import ModuleType

import torch
from torch import Tensor

from ..backends.registry import choose, is_traced_as_formula
from ..distributed import dispatch as sharded
from ..ops import checks, formula, schemas
from ..ops.autograd import BelowAutograd, Tables, needs_formula
from ..python_fallback.tables import arithmetic_dtype


def road_tables(
    theta: Tensor, alpha: Tensor, *, variant: str = "road_1", group_size: int = 64
) -> tuple[Tensor, Tensor]:
    """(r1, r2), the coefficients that rotate and rotate_batched take: computed once for many calls.

    Args:
        theta, alpha: [P], or [A, P] for a bank of A adapters, packed as ``variant`` says (see road_apply).

    Returns:
        r1 = alpha cos(theta), r2 = alpha sin(theta), float32 (float64 if a parameter is); compact [..., D/2] for
        "road_1", [..., D] for "road_2" and "road_4". Differentiable.

    Raises:
        TypeError, ValueError: not floating tensors of one shape [P] or [A, P], or P does not fit group_size.
    """
    checks.check_packed(theta, alpha, variant, group_size)
    return tables_in(arithmetic_dtype(theta, alpha), theta, alpha, variant, group_size)


def tables_in(
    dtype: torch.dtype, theta: Tensor, alpha: Tensor, variant: str, group_size: int, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """road_tables of checked parameters, in float32 or float64."""
    if needs_formula():
        return formula.tables(theta, alpha, variant, group_size, dtype)
    if torch.compiler.is_compiling():
        traced = formula if is_traced_as_formula(backend, theta.device) else schemas
        return traced.tables(theta, alpha, variant, group_size, dtype)
    module: ModuleType | type[BelowAutograd]
    if sharded.is_sharded(theta, alpha):
        sharded.check(backend, theta=theta, alpha=alpha)
        module = BelowAutograd
    else:
        module = choose(backend, theta.device)
    if torch.is_grad_enabled() and (theta.requires_grad or alpha.requires_grad):
        return Tables.apply(theta, alpha, variant, group_size, dtype, module)
    return module.tables(theta, alpha, variant, group_size, dtype)
