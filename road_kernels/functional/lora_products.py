"""The products of a batch with one LoRA per row, added to it."""

import contextlib

import torch
from torch import Tensor

from ..ops.autograd import is_transformed
from ..python_fallback.rotate import bank_index

_GATHERED = 1 << 28  # the most bytes of gathered factors at a time


def without_autocast(t: Tensor):
    """A context in which products are computed in the dtype of their factors."""
    device = t.device.type
    # meta has none, and torch.amp.is_autocast_available, which would say so, cannot be compiled by torch 2.11.
    if device == "meta" or not torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def add_products(z: Tensor, x: Tensor, a: Tensor, b: Tensor, ids: Tensor, scaling: float | Tensor) -> Tensor:
    """z[i] + s[k] (x[i] a[k]^T) b[k]^T with k = ids[i], written into z unless the program is transformed.

    z [..., D], x [..., in], a [L, r, in], b [L, D, r]; the shape of ids is a prefix of z.shape[:-1].
    """
    if z.numel() == 0 or a.shape[0] == 0 or a.shape[1] == 0:
        return z
    ids = ids.reshape(-1)
    rows, inputs = z.reshape(len(ids), -1, z.shape[-1]), x.reshape(len(ids), -1, x.shape[-1])
    scales = None if isinstance(scaling, Tensor) else scaling
    if is_transformed() or not z.is_cpu:
        added = _by_gathering(rows, inputs, a, b, ids, scaling, scales)
    else:
        added = _by_groups(rows, inputs, a, b, ids, scaling, scales)
    if added is rows and rows.data_ptr() == z.data_ptr():
        return z
    return added.view(z.shape)


def _by_groups(z, x, a, b, ids, scaling, scale):
    """The rows of one LoRA after those of another: each factor is read once. Reads ids, which a CPU has at hand."""
    for k in ids.unique().tolist():
        if k == -1:
            continue
        rows = (ids == k).nonzero()[:, 0]
        whole = len(rows) == len(ids)
        low = (x if whole else x.index_select(0, rows)).reshape(-1, x.shape[-1]) @ a[k].t()
        if scale is None:
            low = low * scaling[k].to(low.dtype)
        s = 1 if scale is None else scale
        if whole and z.is_contiguous():
            z.view(-1, z.shape[-1]).addmm_(low, b[k].t(), alpha=s)
        else:
            z.index_add_(0, rows, (low @ b[k].t()).view(len(rows), *z.shape[1:]), alpha=s)
    return z


def _by_gathering(z, x, a, b, ids, scaling, scale):
    """Factors of each row beside one another, then batched products: no value is read back from the device."""
    index, active = bank_index(ids, a.shape[0]).long(), (ids != -1)[:, None, None]
    step = max(1, _GATHERED // (a.element_size() * a.shape[1] * (a.shape[2] + b.shape[1])))
    parts = []
    for first in range(0, len(ids), step):
        some = slice(first, first + step)
        mine, on = index[some], active[some]
        # By indexing, whose gradient is summed in one order on a GPU too.
        low = torch.bmm(x[some], a[mine].transpose(1, 2))
        low = torch.where(on, low if scale is not None else low * scaling[mine].to(low.dtype)[:, None, None], 0)
        factors = torch.where(on, b[mine], 0).transpose(1, 2)  # 0 times a NaN would reach a row without LoRA
        s = 1 if scale is None else scale
        if is_transformed():
            parts.append(torch.baddbmm(z[some], low, factors, alpha=s))
        else:
            z[some].baddbmm_(low, factors, alpha=s)
    return torch.cat(parts) if parts else z
