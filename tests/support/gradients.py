"""Runs a backward pass and compares its gradients with the expected ones."""

import torch
from support.expected import arithmetic_of, assert_close
from support.problems import apply, make_params, make_x


def run(x, p, q, form, gz, ids=None, wanted=(True, True, True), **kw):
    """Gradients of x, p and q; None where not wanted."""
    leaves = [t.clone().requires_grad_(w) for t, w in zip((x, p, q), wanted, strict=True)]
    apply(*leaves, form, ids, **kw).backward(gz)
    return [t.grad for t in leaves]


def check(grads, want, dtype):
    for got, expected in zip(grads, want, strict=True):
        assert_close(got, expected, arithmetic_of(dtype), units=4)


def everything(backend, form, dtype=torch.float32, rows=1500, dim=64):
    x = make_x(rows, dim, dtype=dtype).requires_grad_()
    p, q = (t.requires_grad_() for t in make_params(form, 7, dim))
    ids = torch.randint(-1, 7, (rows,), generator=torch.Generator().manual_seed(3), device="cpu").to(x.device)
    z = apply(x, p, q, form, ids, group_size=16, backend=backend)
    z.backward(make_x(rows, dim, dtype=dtype, seed=4))
    return z.detach(), x.grad, p.grad, q.grad
