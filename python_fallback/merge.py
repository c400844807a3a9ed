"""Merging an adapter into the linear layer whose output it rotates: W' = R W, b' = R b; and unmerging it."""

import torch
from torch import Tensor

from .algebra import inverse_or_refuse
from .rotate import rotate
from .tables import road_tables


def road_merge(
    weight: Tensor, bias: Tensor | None, theta: Tensor, alpha: Tensor, variant: str = "road_1", group_size: int = 64
) -> tuple[Tensor, Tensor | None]:
    """(R W, R b) for weight [out, in] and bias [out] or None: rows are mixed in pairs, no D x D matrix is built."""
    tables = road_tables(theta, alpha, variant, group_size, dtype=torch.float64)
    return mix_layer(weight, bias, *tables, group_size)


def road_unmerge(
    weight: Tensor, bias: Tensor | None, theta: Tensor, alpha: Tensor, variant: str = "road_1", group_size: int = 64
) -> tuple[Tensor, Tensor | None]:
    """(R^-1 W, R^-1 b). A block that float32 cannot invert is a ValueError naming the pair and its determinant."""
    return mix_layer(weight, bias, *unmerge_tables(weight.shape[0], theta, alpha, variant, group_size), group_size)


def unmerge_tables(dim: int, theta: Tensor, alpha: Tensor, variant: str, group_size: int) -> tuple[Tensor, Tensor]:
    """The tables of R^-1, in float64."""
    tables = road_tables(theta, alpha, variant, group_size, dtype=torch.float64)
    return inverse_or_refuse(tables, dim, group_size, torch.finfo(torch.float32).eps, "road_unmerge")


def mix_layer(weight, bias, r1, r2, group_size):
    mixed = rotate(weight.t(), r1, r2, group_size).t().contiguous()
    return mixed, None if bias is None else rotate(bias, r1, r2, group_size)
