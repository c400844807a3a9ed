"""The op: rotate and scale pairs of features, with one adapter or with one adapter per row."""

import torch
from torch import Tensor

from .tables import arithmetic_dtype, expand_tables, quarter_turn, road_tables


def rotate(x: Tensor, r1: Tensor, r2: Tensor, group_size: int = 64) -> Tensor:
    """z = R x over the last dimension. x: [..., D]; r1, r2: [D] or compact [D/2], or broadcastable with x.

    Computed in float32 (float64 for float64 x) and rounded once; z has the dtype of x.
    """
    dtype = arithmetic_dtype(x)
    r1, r2 = expand_tables(r1.to(dtype), r2.to(dtype), x.shape[-1], group_size)
    h = x.to(dtype)
    # "+ 0.0" makes a product of -0 into +0, so that r1 = 1, r2 = 0 returns even h = -0 bit for bit.
    z = r1 * h - (r2 * quarter_turn(h, group_size) + 0.0)
    return z.to(x.dtype)


def rotate_batched(x: Tensor, r1: Tensor, r2: Tensor, adapter_ids: Tensor, group_size: int = 64) -> Tensor:
    """The same with row adapter_ids[...] of the banks r1, r2: [A, D] or [A, D/2]; -1 leaves a row as it is.

    The shape of adapter_ids is a prefix of x.shape[:-1]. Any other id outside 0..A-1 is an index error.
    Tables that are the identity, as those of an empty slot, leave their rows as they are, finite or not.
    """
    ids = adapter_ids.reshape(adapter_ids.shape + (1,) * (x.dim() - adapter_ids.dim()))
    r1, r2 = select_rows(r1, ids), select_rows(r2, ids)
    identity = ((r1 == 1) & (r2 == 0)).all(-1, keepdim=True) & ~x.isfinite().all(-1, keepdim=True)
    active = (ids != -1) & ~identity
    # The input of a pass-through row is zeroed, not only its result: inf * 0 must not reach the gradient of a table.
    z = rotate(torch.where(active, x, 0), r1, r2, group_size)
    return torch.where(active, z, x)


def select_rows(bank: Tensor, ids: Tensor, name: str = "adapter_ids") -> Tensor:
    """bank[ids] for ids [..., 1]: any row for -1, an index error for other ids outside the bank."""
    adapters = bank.shape[0]
    index = bank_index(ids, adapters)
    if adapters == 0:  # no adapter at all: one row of zeros serves the -1
        bank = bank.new_zeros(1, bank.shape[1])
    try:
        rows = bank.index_select(0, index.reshape(-1))
    except IndexError:  # a CPU's, whose text names no argument
        raise id_error(*first_outside(ids, index, bank), adapters, name) from None
    return rows.reshape(*ids.shape[:-1], bank.shape[1])


def bank_index(ids: Tensor, adapters: int) -> Tensor:
    """ids with 0 for -1, and with the first index behind the bank for every id outside of it.

    On a GPU index_select compares the lower 32 bits of an index with the size only: 2^32 would pass for 0.
    """
    outside = (ids < -1) | (ids >= adapters)
    return torch.where(ids == -1, 0, torch.where(outside, max(1, adapters), ids))


def first_outside(given: Tensor, index: Tensor, table: Tensor) -> tuple[int, int]:
    """The first of the given numbers whose index is behind the table, and its flat position."""
    position = int((index.reshape(-1) >= table.shape[0]).nonzero()[0])
    return int(given.reshape(-1)[position]), position


def id_error(id: int, position: int, adapters: int, name: str = "adapter_ids") -> IndexError:
    return IndexError(
        f"{name} holds {id} (flat position {position}), but must hold -1 (no adapter) or the index of one of the "
        f"bank's {adapters} adapters"
    )


def road_apply(x: Tensor, theta: Tensor, alpha: Tensor, variant: str = "road_1", group_size: int = 64) -> Tensor:
    """z = R(theta, alpha) x. x: [..., D]; theta, alpha: [P], see road_tables."""
    tables = road_tables(theta, alpha, variant, group_size, arithmetic_dtype(x))
    return rotate(x, *tables, group_size)


def road_apply_batched(
    x: Tensor, theta: Tensor, alpha: Tensor, adapter_ids: Tensor, variant: str = "road_1", group_size: int = 64
) -> Tensor:
    """The same with theta, alpha: [A, P] and one adapter per row, see rotate_batched."""
    tables = road_tables(theta, alpha, variant, group_size, arithmetic_dtype(x))
    return rotate_batched(x, *tables, adapter_ids, group_size)
