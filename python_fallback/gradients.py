"""The gradients in closed form. Ordinary autograd gives the same; these save nothing of the size of x but x."""

import torch
from torch import Tensor

from .rotate import select_rows
from .tables import arithmetic_dtype, expand_tables, join_last, quarter_turn, split_last


def rotate_backward(
    grad: Tensor, x: Tensor | None, r1: Tensor, r2: Tensor, group_size: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(gx, gr1, gr2) of z = R x, each of the width of r1 and r2. x may be None if only gx is wanted.

    gx = R^T grad has the dtype of grad; gr1 and gr2 are summed over all rows in float32 or wider.
    """
    dtype = arithmetic_dtype(grad)
    full1, full2 = expand_tables(r1.to(dtype), r2.to(dtype), grad.shape[-1], group_size)
    gz = grad.to(dtype)
    gx = (full1 * gz + quarter_turn(full2 * gz, group_size)).to(grad.dtype)
    if x is None:
        return gx, None, None
    per_row1, per_row2 = table_gradients(gz, x.to(dtype), group_size)
    compact = r1.shape[-1] != grad.shape[-1]
    gr1, gr2 = (fold(g.reshape(-1, g.shape[-1]).sum(0), group_size, compact) for g in (per_row1, per_row2))
    return gx, gr1, gr2


def rotate_batched_backward(
    grad: Tensor, x: Tensor | None, r1: Tensor, r2: Tensor, adapter_ids: Tensor, group_size: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The same for rotate_batched; gr1 and gr2 are [A, ...], zero for adapters that no row uses."""
    dtype = arithmetic_dtype(grad)
    dim = grad.shape[-1]
    ids = adapter_ids.reshape(adapter_ids.shape + (1,) * (grad.dim() - adapter_ids.dim()))
    active = ids != -1
    full1, full2 = expand_tables(select_rows(r1, ids).to(dtype), select_rows(r2, ids).to(dtype), dim, group_size)
    gz = torch.where(active, grad, 0).to(dtype)  # masked before any product: 0 * NaN would reach adapter 0
    gx = torch.where(active, (full1 * gz + quarter_turn(full2 * gz, group_size)).to(grad.dtype), grad)
    if x is None:
        return gx, None, None
    rows = torch.where(active, ids, 0).expand(*grad.shape[:-1], 1).reshape(-1)
    compact = r1.shape[-1] != dim
    sums = []
    for g in table_gradients(gz, torch.where(active, x, 0).to(dtype), group_size):
        g = fold(g, group_size, compact).reshape(-1, r1.shape[-1])
        total = g.new_zeros(max(1, r1.shape[0]), r1.shape[-1])
        # Whichever of the two is deterministic on this device.
        total = total.index_add(0, rows, g) if g.is_cpu else total.index_put((rows,), g, accumulate=True)
        sums.append(total[: r1.shape[0]])
    return gx, sums[0], sums[1]


def table_gradients(gz: Tensor, h: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """gr1 and gr2 of each row, before any sum: gr1_i = gz_i h_i, gr2_i = -gz_i h_j, gr2_j = gz_j h_i."""
    return gz * h, -gz * quarter_turn(h, group_size)


def fold(g: Tensor, group_size: int, compact: bool) -> Tensor:
    """Adds the two rows of each pair where they share one coefficient."""
    return join_last(split_last(g, 2, group_size // 2).sum(-2), 2) if compact else g


def road_tables_backward(
    gr1: Tensor, gr2: Tensor, theta: Tensor, alpha: Tensor, variant: str = "road_1", group_size: int = 64
) -> tuple[Tensor, Tensor]:
    """(gtheta, galpha) from the gradients of the tables that road_tables makes of them."""
    t, a = theta.to(gr1.dtype), alpha.to(gr1.dtype)
    if variant == "road_4":  # slot 0 made r1, slot 1 made r2
        t0, t1 = split_last(t, 2, group_size).unbind(-2)
        a0, a1 = split_last(a, 2, group_size).unbind(-2)
        g0, g1 = split_last(gr1, group_size), split_last(gr2, group_size)
        gtheta = join_last(torch.stack((-g0 * a0 * t0.sin(), g1 * a1 * t1.cos()), dim=-2), 3)
        galpha = join_last(torch.stack((g0 * t0.cos(), g1 * t1.sin()), dim=-2), 3)
    else:
        gtheta = a * (gr2 * t.cos() - gr1 * t.sin())
        galpha = gr1 * t.cos() + gr2 * t.sin()
    return gtheta.to(theta.dtype), galpha.to(alpha.dtype)
