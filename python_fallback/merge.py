"""Folding an adapter into the linear layer whose output it rotates: W' = R W, b' = R b, and back."""

import torch
from torch import Tensor

from .rotate import rotate
from .tables import determinants, expand_tables, invert_tables, road_tables, row_norms


def road_merge(
    weight: Tensor, bias: Tensor | None, theta: Tensor, alpha: Tensor, variant: str = "road_1", group_size: int = 64
) -> tuple[Tensor, Tensor | None]:
    """(R W, R b) for weight [out, in] and bias [out] or None: rows are mixed in pairs, no D x D matrix is made."""
    tables = road_tables(theta, alpha, variant, group_size, dtype=torch.float64)
    return _mix_rows(weight, bias, *tables, group_size)


def road_unmerge(
    weight: Tensor, bias: Tensor | None, theta: Tensor, alpha: Tensor, variant: str = "road_1", group_size: int = 64
) -> tuple[Tensor, Tensor | None]:
    """(R^-1 W, R^-1 b). A block that float32 cannot invert is a ValueError naming the pair and its determinant."""
    r1, r2 = road_tables(theta, alpha, variant, group_size, dtype=torch.float64)
    r1, r2 = expand_tables(r1, r2, weight.shape[0], group_size)
    det = determinants(r1, r2, group_size)
    noise = torch.finfo(torch.float32).eps * row_norms(r1, r2, group_size)
    if (singular := det.abs() <= noise).any():
        i = int(singular.nonzero()[0])
        pair = (i, i + group_size // 2)
        raise ValueError(f"road_unmerge cannot invert the block of features {pair}: its determinant is {det[i].item()}")
    return _mix_rows(weight, bias, *invert_tables(r1, r2, group_size), group_size)


def _mix_rows(weight, bias, r1, r2, group_size):
    mixed = rotate(weight.t(), r1, r2, group_size).t().contiguous()
    return mixed, None if bias is None else rotate(bias, r1, r2, group_size)
