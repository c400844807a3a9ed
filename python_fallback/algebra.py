"""Products, inverses and transposes of RoAd matrices, and parts of them: every one is again a pair of tables.

Tables (r1, r2) are of full width [..., D], or compact [..., D/2] where both rows of a pair share their coefficients.
"""

import torch
from torch import Tensor

from .tables import arithmetic_dtype, determinants, expand_tables, has_values, invert_tables, row_norms, swap_pairs

Tables = tuple[Tensor, Tensor]


def same_width(*pairs: Tables, dim: int, group_size: int) -> list[Tables]:
    """All of them compact if all are, of full width otherwise; float32 or wider."""
    dtype = arithmetic_dtype(*(t for pair in pairs for t in pair))
    wide = [(r1.to(dtype), r2.to(dtype)) for r1, r2 in pairs]
    if all(r1.shape[-1] != dim for r1, _ in wide):
        return wide
    return [expand_tables(r1, r2, dim, group_size) for r1, r2 in wide]


def compose_tables(first: Tables, then: Tables, dim: int, group_size: int) -> Tables:
    """R_then R_first: block by block, [[t1_i, -t2_i], [t2_j, t1_j]] times [[f1_i, -f2_i], [f2_j, f1_j]]."""
    (f1, f2), (t1, t2) = same_width(first, then, dim=dim, group_size=group_size)
    if f1.shape[-1] == dim:
        return t1 * f1 - t2 * swap_pairs(f2, group_size), t1 * f2 + t2 * swap_pairs(f1, group_size)
    return t1 * f1 - t2 * f2, t1 * f2 + t2 * f1


def transpose_tables(tables: Tables, dim: int, group_size: int) -> Tables:
    """R^T: the off-diagonal entries -r2_i and r2_j change places."""
    ((r1, r2),) = same_width(tables, dim=dim, group_size=group_size)
    return r1, -(swap_pairs(r2, group_size) if r2.shape[-1] == dim else r2)


def inverse_or_refuse(tables: Tables, dim: int, group_size: int, epsilon: float, who: str) -> Tables:
    """R^-1 in float64. ValueError for a block whose rows are parallel to within ``epsilon``."""
    r1, r2 = (t.double() for t in tables)
    compact = r1.shape[-1] != dim  # both rows of a pair are then of the same length, and never parallel
    det = r1 * r1 + r2 * r2 if compact else determinants(r1, r2, group_size)
    norms = det if compact else row_norms(r1, r2, group_size)
    if has_values(det) and not (regular := det.abs() > epsilon * norms).all():  # a NaN is refused too
        *adapter, i = regular.logical_not().nonzero()[0].tolist()
        value = det[(*adapter, i)].item()
        if compact:
            i += i // (group_size // 2) * (group_size // 2)
        of = f" of adapter {adapter[0]}" if adapter else ""
        raise ValueError(
            f"{who} cannot invert the block of features ({i}, {i + group_size // 2}){of}: its determinant is {value}"
        )
    return (r1 / det, -r2 / det) if compact else invert_tables(r1, r2, group_size)


def select_pairs(tables: Tables, mask: Tensor, dim: int, group_size: int) -> Tables:
    """R on the pairs where mask [..., D/2] is true, the identity on the others."""
    ((r1, r2),) = same_width(tables, dim=dim, group_size=group_size)
    if r1.shape[-1] == dim:
        mask, _ = expand_tables(mask, mask, dim, group_size)
    return torch.where(mask, r1, 1), torch.where(mask, r2, 0)


def road_4_parameters(tables: Tables, dim: int, group_size: int) -> Tables:
    """(theta, alpha) [..., 2D] whose road_4 tables are these: in both slots the angle and length of (r1, r2)."""
    r1, r2 = expand_tables(*same_width(tables, dim=dim, group_size=group_size)[0], dim, group_size)
    zero = (r1 == 0) & (r2 == 0)
    safe = torch.where(zero, 1, r1)  # both functions have no gradient at the origin
    theta, alpha = torch.atan2(r2, safe), torch.where(zero, 0, torch.hypot(safe, r2))

    def both_slots(t: Tensor) -> Tensor:
        groups = t.reshape(*t.shape[:-1], dim // group_size, 1, group_size)
        return groups.expand(*t.shape[:-1], dim // group_size, 2, group_size).reshape(*t.shape[:-1], 2 * dim)

    return both_slots(theta), both_slots(alpha)
