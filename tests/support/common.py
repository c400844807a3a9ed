"""What the tests share: backends, inputs, and comparing with the oracle."""

import os

import numpy as np
import torch
from support import oracle

import road_kernels as rk

# Where every test makes its tensors; make gpu-check sets it to "cuda".
DEVICE = os.environ.get("ROAD_KERNELS_TEST_DEVICE", "cpu")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FORMS = ("road_1", "road_2", "road_4", "table", "table_half")


def usable_backends() -> list[str]:
    """Those that serve tensors on DEVICE."""
    rows = rk.backend_info()["backends"].items()
    return [name for name, row in rows if row["usable"] and (row["devices"] == "any" or DEVICE in row["devices"])]


def f64(t: torch.Tensor) -> np.ndarray:
    return t.detach().double().cpu().numpy()


def op_form(form: str) -> str:
    return "table" if form.startswith("table") else form


def param_width(form: str, dim: int) -> int:
    return {"road_1": dim // 2, "road_2": dim, "road_4": 2 * dim, "table": dim, "table_half": dim // 2}[form]


def make_params(form: str, adapters: int | None, dim: int, dtype=torch.float32, seed: int = 1):
    """Random angles with scales around 1, or random tables of well conditioned blocks. [A, P], or [P] without A."""
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
    """The public function for a form, with or without ids."""
    if op_form(form) == "table":
        return rk.rotate(x, p, q, **kw) if ids is None else rk.rotate_batched(x, p, q, ids, **kw)
    if ids is None:
        return rk.road_apply(x, p, q, variant=form, **kw)
    return rk.road_apply_batched(x, p, q, ids, variant=form, **kw)


def row_ids(x: torch.Tensor, ids: torch.Tensor | None) -> np.ndarray:
    """One id per row of x.reshape(-1, D)."""
    rows = int(np.prod(x.shape[:-1]))
    if ids is None:
        return np.zeros(rows, dtype=np.int64)
    extra = (1,) * (x.dim() - 1 - ids.dim())
    return ids.reshape(ids.shape + extra).expand(x.shape[:-1]).reshape(-1).cpu().numpy()


def expect_forward(x, p, q, form, group_size, ids=None) -> oracle.Result:
    bank = (f64(p), f64(q)) if ids is not None else (f64(p)[None], f64(q)[None])
    result = oracle.forward(f64(x).reshape(-1, x.shape[-1]), *bank, row_ids(x, ids), op_form(form), group_size)
    return oracle.Result(result.value.reshape(x.shape), result.magnitude.reshape(x.shape))


def expect_backward(gz, x, p, q, form, group_size, ids=None):
    bank = (f64(p), f64(q)) if ids is not None else (f64(p)[None], f64(q)[None])
    gx, gp, gq = oracle.backward(
        f64(gz).reshape(-1, x.shape[-1]),
        f64(x).reshape(-1, x.shape[-1]),
        *bank,
        row_ids(x, ids),
        op_form(form),
        group_size,
    )
    back = lambda r, like: oracle.Result(r.value.reshape(like.shape), r.magnitude.reshape(like.shape))  # noqa: E731
    return back(gx, x), back(gp, p), back(gq, q)


def assert_close(
    got: torch.Tensor, want: oracle.Result, arithmetic: torch.dtype, units: float = 4.0, lost: float = 0.0
):
    """|got - want| within half an ulp of got's dtype, plus `units` roundings of the arithmetic on the magnitude.

    `lost` adds a relative error that the input already had, such as that of a rounded output a backward starts from.
    """
    assert got.shape == want.value.shape
    value = f64(got)
    info = torch.finfo(got.dtype)
    # Just under one ulp's half, and never below half the smallest subnormal.
    store = 0.5 * info.eps * np.abs(want.value) * 1.001 + 0.5 * info.smallest_normal * info.eps
    work = (units * torch.finfo(arithmetic).eps + lost) * want.magnitude
    error = np.abs(value - want.value)
    worst = np.unravel_index(np.argmax(error - store - work), error.shape) if error.size else ()
    assert (error <= store + work).all(), (
        f"at {tuple(map(int, worst))}: got {value[worst]!r}, want {want.value[worst]!r}, "
        f"error {error[worst]:.3g} > {(store + work)[worst]:.3g}"
    )


def same(backend: str, got: torch.Tensor, want: torch.Tensor) -> bool:
    """Equal in every bit; plain PyTorch on a GPU adds up in an order that depends on the strides."""
    if backend == "python" and DEVICE != "cpu":
        return torch.allclose(got, want, rtol=1e-6, atol=1e-6)
    return torch.equal(got, want)


def arithmetic_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
