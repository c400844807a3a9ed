"""The work of gpu_targets.py and gpu_tune.py as cases: forward, backward, mixed batches, decoding, a training step."""

from collections.abc import Callable
from functools import partial

import torch

import road_kernels as rk
from road_kernels import python_fallback
from road_kernels.backends import registry

from .baselines.formulas import eager_coefficients, eager_formula
from .harness.accuracy import rounding, rounding_of_sums
from .harness.backends import kernel_backends
from .harness.case import Case, Provider
from .harness.cold_inputs import Inputs

DTYPE = torch.bfloat16
SHAPES, SMALL_SHAPES = ((16384, 4096), (8192, 14336)), ((64, 256),)
REQUESTS, ADAPTERS, MOST_DECODE_ROWS = 64, 1000, 256
SINGLE, ONE, SPREAD, RANDOM = "single", "one adapter", "64 requests", f"{ADAPTERS} adapters at random"
PEFT = "PEFT's formula"


def tensors(rows: int, dim: int, adapters: int, device) -> Inputs:
    generator = torch.Generator(device).manual_seed(0)
    random = partial(torch.randn, generator=generator, device=device)
    x, gz = (random(rows, dim).to(DTYPE) for _ in range(2))
    # Rotated in place again and again: scales of 1 keep the values from growing.
    theta, alpha = 0.3 * random(adapters, dim // 2), torch.ones(adapters, dim // 2, device=device)
    sample = torch.linspace(0, rows - 1, min(rows, 64), device=device).long()
    return Inputs(x=x, gz=gz, theta=theta, alpha=alpha, sample=sample)


def expect_rotated(i: Inputs, group_size: int, ids_of: Callable[[Inputs], torch.Tensor] | None = None):
    tables = python_fallback.road_tables(i.theta.double(), i.alpha.double(), "road_1", group_size)
    ids = torch.zeros_like(i.sample) if ids_of is None else ids_of(i)[i.sample]
    return python_fallback.rotate_batched(i.x[i.sample].double(), *tables, ids, group_size)


def sampled(z, i: Inputs):
    return z[i.sample]


def expect_gradients(i: Inputs, group_size: int):
    x, gz, theta, alpha = (t.double() for t in (i.x, i.gz, i.theta[0], i.alpha[0]))
    tables = python_fallback.road_tables(theta, alpha, "road_1", group_size)
    gx, *grads = python_fallback.rotate_backward(gz, x, *tables, group_size)
    return gx[i.sample], *python_fallback.road_tables_backward(*grads, theta, alpha, "road_1", group_size)


def gradients_tolerance(rows: int) -> tuple[float, float, float]:
    """Of the gradients of x, theta and alpha."""
    return rounding(DTYPE), rounding_of_sums(rows), rounding_of_sums(rows)


def gradients_sampled(grads, i: Inputs):
    return grads[0][i.sample], *grads[1:]


def forward_case(rows, dim, group_size, device) -> Case:
    inputs = tensors(rows, dim, 1, device)
    expect = partial(expect_rotated, group_size=group_size)

    def run(i, backend):
        return rk.road_apply(i.x, i.theta[0], i.alpha[0], group_size=group_size, backend=backend)

    providers = [
        Provider(n, partial(run, backend=n), expect, rounding(DTYPE), view=sampled, ours=True)
        for n in kernel_backends(device)
    ]
    axes = {"work": f"forward, {rows} x {dim}, group_size {group_size}"}
    return Case(axes, inputs, providers, 2 * inputs.x.nbytes + 4 * dim)


def backward_case(rows, dim, group_size, device) -> Case:
    inputs = tensors(rows, dim, 1, device)
    expect = partial(expect_gradients, group_size=group_size)

    def run(i, backend):
        module = registry._loaded[backend][0]
        wanted = [True, True, True]
        return module.rotate_backward(i.gz, i.x, i.theta[0], i.alpha[0], None, "road_1", group_size, False, wanted)

    exact = {"expect": expect, "tolerance": gradients_tolerance(rows), "view": gradients_sampled}
    providers = [Provider(n, partial(run, backend=n), ours=True, **exact) for n in kernel_backends(device)]
    axes = {"work": f"backward, {rows} x {dim}, group_size {group_size}"}
    return Case(axes, inputs, providers, 3 * inputs.x.nbytes + 8 * dim)


def ids_for(kind: str, rows: int, device) -> torch.Tensor:
    """One id per row: all the same, an adapter per request in random order, or a random adapter per token."""
    generator = torch.Generator().manual_seed(1)
    if kind == ONE:
        return torch.zeros(rows, dtype=torch.int64, device=device)
    if kind == RANDOM:
        return torch.randint(0, ADAPTERS, (rows,), generator=generator).to(device)
    requests = min(REQUESTS, rows)
    order = torch.randperm(REQUESTS, generator=generator)[:requests]
    return order.repeat_interleave(rows // requests).to(device)


def batched_case(rows, dim, backend, tables: bool, device) -> Case:
    """With ready tables, as a server has them, or with theta and alpha, as a trainer has."""
    inputs = tensors(rows, dim, ADAPTERS, device)
    inputs.r1, inputs.r2 = rk.road_tables(inputs.theta, inputs.alpha)
    requests = min(REQUESTS, rows)
    inputs.ids = {kind: ids_for(kind, rows, device) for kind in (ONE, SPREAD, RANDOM)}
    per_request = {kind: inputs.ids[kind][:: rows // requests].contiguous() for kind in (ONE, SPREAD)}
    given = ("r1", "r2") if tables else ("theta", "alpha")
    single, batched = (rk.rotate, rk.rotate_batched) if tables else (rk.road_apply, rk.road_apply_batched)

    def run_single(i):
        return single(i.x, *(getattr(i, n)[0] for n in given), backend=backend)

    def run(i, kind):
        x, ids = i.x, i.ids[kind]
        if kind in per_request:
            x, ids = x.view(requests, rows // requests, dim), per_request[kind]
        return batched(x, *(getattr(i, n) for n in given), ids, backend=backend).view(rows, dim)

    def expect(i, kind):
        return expect_rotated(i, 64, lambda i: i.ids[kind])

    providers = [Provider(SINGLE, run_single, partial(expect, kind=ONE), rounding(DTYPE), view=sampled, ours=True)]
    providers += [
        Provider(kind, partial(run, kind=kind), partial(expect, kind=kind), rounding(DTYPE), view=sampled, ours=True)
        for kind in inputs.ids
    ]
    what = "tables" if tables else "theta and alpha"
    return Case({"work": f"batched forward, {rows} x {dim}, {what}"}, inputs, providers, 2 * inputs.x.nbytes, SINGLE)


def batched_backward_case(rows, dim, backend, device) -> Case:
    inputs = tensors(rows, dim, REQUESTS, device)
    requests = min(REQUESTS, rows)
    inputs.ids = ids_for(SPREAD, rows, device)[:: rows // requests].contiguous()
    module = registry._loaded[backend][0]
    wanted = [True, True, True]

    def run_single(i):
        return module.rotate_backward(i.gz, i.x, i.theta[0], i.alpha[0], None, "road_1", 64, False, wanted)

    def run(i):
        gz, x = (t.view(requests, rows // requests, dim) for t in (i.gz, i.x))
        gx, *grads = module.rotate_backward(gz, x, i.theta, i.alpha, i.ids, "road_1", 64, False, wanted)
        return gx.view(rows, dim), *grads

    def expect(i):
        x, gz, theta, alpha = (t.double() for t in (i.x, i.gz, i.theta, i.alpha))
        tables = python_fallback.road_tables(theta, alpha, "road_1", 64)
        ids = i.ids.repeat_interleave(rows // requests)
        gx, *grads = python_fallback.rotate_batched_backward(gz, x, *tables, ids, 64)
        return gx[i.sample], *python_fallback.road_tables_backward(*grads, theta, alpha, "road_1", 64)

    exact = {"tolerance": gradients_tolerance(rows), "view": gradients_sampled, "ours": True}
    providers = [
        Provider(SINGLE, run_single, partial(expect_gradients, group_size=64), **exact),
        Provider(SPREAD, run, expect, **exact),
    ]
    return Case({"work": f"batched backward, {rows} x {dim}"}, inputs, providers, 3 * inputs.x.nbytes, SINGLE)


def decode_case(rows, dim, device) -> Case:
    inputs = tensors(rows, dim, MOST_DECODE_ROWS, device)
    inputs.r1, inputs.r2 = rk.road_tables(inputs.theta, inputs.alpha)
    inputs.ids = torch.randperm(MOST_DECODE_ROWS, generator=torch.Generator().manual_seed(1))[:rows].to(device)

    def run(i, backend):
        return rk.rotate_batched(i.x, i.r1, i.r2, i.ids, inplace=True, backend=backend)

    def expect(i):
        return expect_rotated(i, 64, lambda i: i.ids)

    exact = {"expect": expect, "tolerance": rounding(DTYPE), "view": sampled, "output": "in place", "ours": True}
    providers = [Provider(n, partial(run, backend=n), **exact) for n in kernel_backends(device)]
    moved = 2 * inputs.x.nbytes + 4 * rows * dim
    return Case({"work": f"decode, {rows} x {dim}, each row its own adapter, in place"}, inputs, providers, moved)


def training_case(rows, dim, device) -> Case:
    inputs = tensors(rows, dim, 1, device)

    def leaves(i):
        return tuple(t.detach().requires_grad_() for t in (i.x, i.theta[0], i.alpha[0])), i.gz

    def ours(s, backend):
        return torch.autograd.grad(rk.road_apply(*s[0], backend=backend), *s)

    def peft(s):  # casts to the parameters' float32 and back
        x, theta, alpha = s[0]
        z = eager_formula(x.float(), *eager_coefficients(theta, alpha, "road_1", 64), 64).to(DTYPE)
        return torch.autograd.grad(z, *s)

    exact = {"expect": partial(expect_gradients, group_size=64), "view": gradients_sampled, "prepare": leaves}
    exact["tolerance"] = gradients_tolerance(rows)
    providers = [Provider(n, partial(ours, backend=n), ours=True, **exact) for n in kernel_backends(device)]
    providers.append(Provider(PEFT, peft, **exact))
    return Case({"work": f"forward and backward, {rows} x {dim}"}, inputs, providers, 5 * inputs.x.nbytes)
