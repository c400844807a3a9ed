"""The oracle's answer for tensors, and how far a result may be from it."""

import numpy as np
import torch
from support import oracle
from support.backends import DEVICE
from support.problems import op_form


def f64(t: torch.Tensor) -> np.ndarray:
    return t.detach().double().cpu().numpy()


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
    """Results for x, p and q, where gz is the gradient of z."""
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


def arithmetic_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype that kernels compute in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def assert_close(
    got: torch.Tensor, want: oracle.Result, arithmetic: torch.dtype, units: float = 4.0, lost: float = 0.0
):
    """|got - want| within half an ulp of got's dtype, plus `units` roundings of the arithmetic on the magnitude.

    `lost` adds a relative error already in the input, for example when backward starts from a rounded output.
    """
    assert got.shape == want.value.shape
    value = f64(got)
    info = torch.finfo(got.dtype)
    # Just over half an ulp, and never below half the smallest subnormal.
    store = 0.5 * info.eps * np.abs(want.value) * 1.001 + 0.5 * info.smallest_normal * info.eps
    work = (units * torch.finfo(arithmetic).eps + lost) * want.magnitude
    error = np.abs(value - want.value)
    worst = np.unravel_index(np.argmax(error - store - work), error.shape) if error.size else ()
    assert (error <= store + work).all(), (
        f"at {tuple(map(int, worst))}: got {value[worst]!r}, want {want.value[worst]!r}, "
        f"error {error[worst]:.3g} > {(store + work)[worst]:.3g}"
    )


def same(backend: str, got: torch.Tensor, want: torch.Tensor) -> bool:
    """Bitwise equal; in plain PyTorch on a GPU the order of a sum depends on the strides."""
    if backend == "python" and DEVICE != "cpu":
        return torch.allclose(got, want, rtol=1e-6, atol=1e-6)
    return torch.equal(got, want)
