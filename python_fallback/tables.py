"""From the parameters theta and alpha to the coefficients r1 and r2 of the 2x2 blocks."""

import math

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake


def arithmetic_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is, else float32: the least precise arithmetic."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def split_last(t: Tensor, *sizes: int) -> Tensor:
    """[..., n] -> [..., n / prod(sizes), *sizes]. By reshape: unflatten has no batching rule for batched gradients."""
    return t.reshape(*t.shape[:-1], t.shape[-1] // math.prod(sizes), *sizes)


def join_last(t: Tensor, count: int) -> Tensor:
    """[..., a, b, c] -> [..., abc], the last ``count`` dimensions into one."""
    return t.reshape(*t.shape[:-count], math.prod(t.shape[-count:]))


def road_tables(
    theta: Tensor, alpha: Tensor, variant: str = "road_1", group_size: int = 64, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """r1 = alpha cos(theta) and r2 = alpha sin(theta), in ``dtype``: by default float32, float64 if a parameter is.

    theta, alpha: [..., P]. road_1: P = D/2, packed [D/g, g/2], and the tables stay [..., D/2] (both rows of a pair
    share them). road_2: P = D. road_4: P = 2D, packed [D/g, 2, g]: slot 0 makes r1, slot 1 makes r2, each [..., D].
    """
    dtype = dtype or arithmetic_dtype(theta, alpha)
    theta, alpha = theta.to(dtype), alpha.to(dtype)
    if variant != "road_4":
        return alpha * theta.cos(), alpha * theta.sin()
    theta0, theta1 = split_last(theta, 2, group_size).unbind(-2)
    alpha0, alpha1 = split_last(alpha, 2, group_size).unbind(-2)
    return join_last(alpha0 * theta0.cos(), 2), join_last(alpha1 * theta1.sin(), 2)


def expand_tables(r1: Tensor, r2: Tensor, dim: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Tables of width ``dim``: an entry of a compact [..., dim/2] table serves both rows of its pair."""

    def expand(r: Tensor) -> Tensor:
        if r.shape[-1] == dim:
            return r
        halves = split_last(r, group_size // 2)
        return join_last(torch.stack((halves, halves), dim=-2), 3)

    return expand(r1), expand(r2)


def swap_pairs(x: Tensor, group_size: int) -> Tensor:
    """(x_i, x_j) -> (x_j, x_i) for every pair of the last dimension."""
    i, j = split_last(x, 2, group_size // 2).unbind(-2)
    return join_last(torch.stack((j, i), dim=-2), 3)


def quarter_turn(x: Tensor, group_size: int) -> Tensor:
    """(x_i, x_j) -> (x_j, -x_i) for every pair of the last dimension."""
    i, j = split_last(x, 2, group_size // 2).unbind(-2)
    return join_last(torch.stack((j, -i), dim=-2), 3)


def determinants(r1: Tensor, r2: Tensor, group_size: int) -> Tensor:
    """The determinant of each 2x2 block, at both features of the pair. Tables of full width."""
    return r1 * swap_pairs(r1, group_size) + r2 * swap_pairs(r2, group_size)


def row_norms(r1: Tensor, r2: Tensor, group_size: int) -> Tensor:
    """The product of the norms of each block's rows: a determinant far below it means that they are parallel."""
    norm = torch.hypot(r1, r2)
    return norm * swap_pairs(norm, group_size)


def invert_tables(r1: Tensor, r2: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """The tables of R^-1, of full width. Singular blocks are not divided: check determinants first."""
    det = determinants(r1, r2, group_size)
    det = torch.where(det == 0, 1, det)
    return swap_pairs(r1, group_size) / det, -r2 / det


def has_values(t: Tensor) -> bool:
    """Not of tensors that stand for others, while a program is traced: nothing can be refused then."""
    return not (t.is_meta or is_fake(t) or torch.compiler.is_compiling())
