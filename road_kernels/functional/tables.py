"""Tables of coefficients from the parameters of an adapter."""

from torch import Tensor

from .. import python_fallback
from ..ops import checks


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
    checks.check_variant(variant)
    checks.check_packed(theta, alpha, variant, group_size)
    return python_fallback.road_tables(theta, alpha, variant, group_size)
