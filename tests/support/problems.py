"""Inputs in every form and dtype, and the public function that takes them."""

import torch
from support.backends import DEVICE

import road_kernels as rk

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FORMS = ("road_1", "road_2", "road_4", "table", "table_half")


def op_form(form: str) -> str:
    """The name of the form in torch.ops.road_kernels."""
    return "table" if form.startswith("table") else form


def param_width(form: str, dim: int) -> int:
    return {"road_1": dim // 2, "road_2": dim, "road_4": 2 * dim, "table": dim, "table_half": dim // 2}[form]


def make_params(form: str, adapters: int | None, dim: int, dtype=torch.float32, seed: int = 1):
    """Random angles with scales around 1, or random tables with well conditioned blocks; [A, P], or [P] without A."""
    generator = torch.Generator().manual_seed(seed)
    shape = (adapters or 1, param_width(form, dim))
    p, q = (torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu") for _ in range(2))
    p, q = p * 1.2 - 0.6, q * 0.8 + 0.6
    if op_form(form) == "table":
        p, q = q, p  # r1 around 1, r2 small: far from singular
    p, q = p.to(dtype).to(DEVICE), q.to(dtype).to(DEVICE)
    return (p, q) if adapters else (p[0], q[0])


def make_x(*shape, dtype=torch.float32, seed: int = 0) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
    return x.to(dtype).to(DEVICE)


def apply(x, p, q, form, ids=None, **kw):
    """Calls the public function for the form, batched if there are ids."""
    if op_form(form) == "table":
        return rk.rotate(x, p, q, **kw) if ids is None else rk.rotate_batched(x, p, q, ids, **kw)
    if ids is None:
        return rk.road_apply(x, p, q, variant=form, **kw)
    return rk.road_apply_batched(x, p, q, ids, variant=form, **kw)
