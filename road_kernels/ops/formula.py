"""The ops in plain PyTorch: python_fallback behind their signatures.

The backend "python", and what autograd (second order), torch.func transforms and torch.compile use beside any backend:
ordinary autograd differentiates it to any order.
"""

import torch
from torch import Tensor

from ..python_fallback import (
    expand_tables,
    invert_tables,
    road_tables,
    road_tables_backward,
)
from ..python_fallback import rotate as _rotate
from ..python_fallback import rotate_backward as _rotate_backward
from ..python_fallback import rotate_batched as _rotate_batched
from ..python_fallback import rotate_batched_backward as _rotate_batched_backward
from ..python_fallback.tables import arithmetic_dtype, determinants, has_values, row_norms
from .aliasing import check_not_shared
from .checks import check_id_values, refuse_singular
from .schemas import is_transposed


def _tables(x: Tensor, p: Tensor, q: Tensor, form: str, group_size: int) -> tuple[Tensor, Tensor]:
    return (p, q) if form == "table" else road_tables(p, q, form, group_size, arithmetic_dtype(x))


def rotate(x, p, q, adapter_ids, form, group_size, overlap=False):
    if adapter_ids is not None:
        check_id_values(adapter_ids, p.shape[0])
    r1, r2 = _tables(x, p, q, form, group_size)
    z = _rotate(x, r1, r2, group_size) if adapter_ids is None else _rotate_batched(x, r1, r2, adapter_ids, group_size)
    return z.contiguous()


def rotate_(x, p, q, adapter_ids, form, group_size, check_invertible, overlap=False):
    check_not_shared(x, p, q)
    if check_invertible:
        check_invertible_blocks(x, p, q, adapter_ids, form, group_size)
    x.copy_(rotate(x, p, q, adapter_ids, form, group_size))


def rotate_backward(grad, saved, p, q, adapter_ids, form, group_size, from_output, output_mask):
    """Differentiable as well, which gives second-order gradients."""
    need_gx, need_gp, need_gq = output_mask
    if adapter_ids is not None and form != "table" and (need_gp or need_gq):
        # An adapter without a row may hold a NaN, and its gradient would be 0 * NaN = NaN instead of 0.
        used = adapter_ids.new_zeros(p.shape[0] + 1, dtype=torch.bool)
        used = used.index_fill(0, adapter_ids.flatten().long(), True)[:-1, None]  # -1 is the last, extra entry
        p, q = torch.where(used, p, 1), torch.where(used, q, 1)
    r1, r2 = _tables(grad, p, q, form, group_size)
    h = saved if need_gp or need_gq else None
    if h is not None and from_output and form != "road_1":
        h = _recover(saved, p, q, adapter_ids, form, group_size)
    if adapter_ids is None:
        gx, gp, gq = _rotate_backward(grad, h, r1, r2, group_size)
    else:
        gx, gp, gq = _rotate_batched_backward(grad, h, r1, r2, adapter_ids, group_size)
    if h is not None and form == "road_1" and from_output:  # no inverse needed: gtheta = cross, galpha = dot / alpha
        alpha = q.to(gp.dtype)
        gp, gq = gq, gp / torch.where(alpha == 0, 1, alpha)
    elif h is not None and form != "table":
        gp, gq = road_tables_backward(gp, gq, p, q, form, group_size)
    return (
        gx.contiguous() if need_gx else None,
        gp.to(p.dtype) if need_gp else None,
        gq.to(q.dtype) if need_gq else None,
    )


def tables(p, q, form, group_size, dtype):
    return road_tables(p, q, form, group_size, dtype)


def merge(w, r1, r2, group_size):
    z = _rotate(w.t(), r1, r2, group_size).t()
    return z.t().contiguous().t() if is_transposed(w) else z.contiguous()


def merge_(w, r1, r2, group_size):
    w.copy_(_rotate(w.t(), r1, r2, group_size).t())


def _recover(z, p, q, adapter_ids, form, group_size):
    """x = R^-1 z in the arithmetic dtype. The inverse in float64: squares of small scales underflow in float32."""
    r1, r2 = _tables(p.double(), p.double(), q.double(), form, group_size)
    inverse = invert_tables(*expand_tables(r1.double(), r2.double(), z.shape[-1], group_size), group_size)
    dtype = arithmetic_dtype(z)
    return rotate(z.to(dtype), *(t.to(dtype) for t in inverse), adapter_ids, "table", group_size)


def check_invertible_blocks(x, p, q, adapter_ids, form, group_size):
    """The check of csrc/cpu/singular.cpp. On a GPU a device-side assertion: reading the result would synchronise."""
    r1, r2 = _tables(p.double(), p.double(), q.double(), form, group_size)
    r1, r2 = expand_tables(r1, r2, x.shape[-1], group_size)
    det = determinants(r1, r2, group_size)
    singular = det.abs() <= torch.finfo(x.dtype).eps * row_norms(r1, r2, group_size)
    if adapter_ids is not None:
        used = torch.zeros(p.shape[0] + 1, dtype=torch.bool, device=p.device)
        # -1 is the last, extra entry. Assigning True by index would copy it to the device, and synchronise.
        used.index_fill_(0, adapter_ids.flatten().long(), True)
        singular = singular & used[:-1, None]
    if x.numel() == 0 or not has_values(singular):
        return
    if x.is_cuda:
        torch._assert_async(~singular.any(), "inplace=True recovers the input from the output, but a block is singular")
    elif singular.any():
        *adapter, i = singular.nonzero()[0].tolist()
        refuse_singular(adapter[0] if adapter else None, i, i + group_size // 2, det[(*adapter, i)].item())
