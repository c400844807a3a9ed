"""One adapter on bfloat16 rows, as cases of gpu_targets.py and gpu_tune.py: forward, backward, training, merging."""

from functools import partial

import torch

import road_kernels as rk
from road_kernels import python_fallback
from road_kernels.backends import registry

from .baselines.formulas import compile_afresh, eager_coefficients, eager_formula
from .harness.accuracy import rounding, rounding_of_sums
from .harness.backends import kernel_backends
from .harness.case import Case, Provider
from .harness.cold_inputs import Inputs

DTYPE = torch.bfloat16
TABLES, ANGLES = "tables", "theta and alpha"
PEFT, COMPILED = "PEFT's formula", "PEFT's formula under torch.compile"


def tensors(rows: int, dim: int, adapters: int, device, variant: str = "road_1") -> Inputs:
    generator = torch.Generator(device).manual_seed(0)
    random = partial(torch.randn, generator=generator, device=device)
    x, gz = (random(rows, dim).to(DTYPE) for _ in range(2))
    width = {"road_1": dim // 2, "road_2": dim, "road_4": 2 * dim}[variant]
    # Rotated in place again and again: road_1 with scales of 1 keeps the values from growing.
    theta, alpha = 0.3 * random(adapters, width), torch.ones(adapters, width, device=device)
    sample = torch.linspace(0, rows - 1, min(rows, 64), device=device).long()
    return Inputs(x=x, gz=gz, theta=theta, alpha=alpha, sample=sample)


def add_tables(inputs: Inputs, variant: str, group_size: int, dtype: torch.dtype = torch.float32) -> None:
    tables = rk.road_tables(inputs.theta, inputs.alpha, variant=variant, group_size=group_size)
    inputs.r1, inputs.r2 = (t.to(dtype) for t in tables)


def sampled(z, i: Inputs):
    return z[i.sample]


def expect_rotated(i: Inputs, variant: str, group_size: int):
    theta, alpha = i.theta[0].double(), i.alpha[0].double()
    return python_fallback.road_apply(i.x[i.sample].double(), theta, alpha, variant, group_size)


def forward_case(rows, dim, group_size, variant, source, device) -> Case:
    """From tables, as a server has them, or from theta and alpha, as a trainer has. The baseline is torch.compile of
    PEFT's formula on ready coefficients."""
    inputs = tensors(rows, dim, 1, device, variant)
    add_tables(inputs, variant, group_size)
    exact = {
        "expect": partial(expect_rotated, variant=variant, group_size=group_size),
        "tolerance": rounding(DTYPE),
        "view": sampled,
    }

    def run(i, backend):
        if source == TABLES:
            return rk.rotate(i.x, i.r1[0], i.r2[0], group_size=group_size, backend=backend)
        return rk.road_apply(i.x, i.theta[0], i.alpha[0], variant=variant, group_size=group_size, backend=backend)

    def coefficients(i):
        found = eager_coefficients(i.theta[0], i.alpha[0], variant, group_size)
        return i.x, *(t.to(DTYPE) for t in found)

    providers = [Provider(n, partial(run, backend=n), ours=True, **exact) for n in kernel_backends(device)]
    if source == TABLES and variant == "road_1":
        compiled = compile_afresh(partial(eager_formula, group_size=group_size))
        providers.append(Provider(COMPILED, lambda s: compiled(*s), prepare=coefficients, may_fail=True, **exact))
    axes = {"work": f"forward, {rows} x {dim}, group_size {group_size}, {variant}, {source}"}
    read = inputs.r1.nbytes if source == TABLES else inputs.theta.nbytes
    return Case(axes, inputs, providers, 2 * inputs.x.nbytes + 2 * read)


def expect_gradients(i: Inputs, variant: str, group_size: int):
    x, gz, theta, alpha = (t.double() for t in (i.x, i.gz, i.theta[0], i.alpha[0]))
    tables = python_fallback.road_tables(theta, alpha, variant, group_size)
    gx, *grads = python_fallback.rotate_backward(gz, x, *tables, group_size)
    return gx[i.sample], *python_fallback.road_tables_backward(*grads, theta, alpha, variant, group_size)


def gradients_tolerance(rows: int) -> tuple[float, float, float]:
    """Of the gradients of x, theta and alpha."""
    return rounding(DTYPE), rounding_of_sums(rows), rounding_of_sums(rows)


def gradients_sampled(grads, i: Inputs):
    return grads[0][i.sample], *grads[1:]


def backward_case(rows, dim, group_size, variant, parameters_only, device) -> Case:
    inputs = tensors(rows, dim, 1, device, variant)
    wanted = [not parameters_only, True, True]

    def expect(i):
        return expect_gradients(i, variant, group_size)[parameters_only:]

    def view(grads, i):
        return grads[1:] if parameters_only else gradients_sampled(grads, i)

    def run(i, backend):
        module = registry._loaded[backend][0]
        return module.rotate_backward(i.gz, i.x, i.theta[0], i.alpha[0], None, variant, group_size, False, wanted)

    exact = {"expect": expect, "tolerance": gradients_tolerance(rows)[parameters_only:], "view": view, "ours": True}
    providers = [Provider(n, partial(run, backend=n), **exact) for n in kernel_backends(device)]
    only = ", parameters only" if parameters_only else ""
    axes = {"work": f"backward, {rows} x {dim}, group_size {group_size}, {variant}{only}"}
    return Case(axes, inputs, providers, (3 - parameters_only) * inputs.x.nbytes + 4 * inputs.theta.nbytes)


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

    exact = {"expect": partial(expect_gradients, variant="road_1", group_size=64), "view": gradients_sampled}
    exact |= {"prepare": leaves, "tolerance": gradients_tolerance(rows)}
    providers = [Provider(n, partial(ours, backend=n), ours=True, **exact) for n in kernel_backends(device)]
    providers.append(Provider(PEFT, peft, **exact))
    return Case({"work": f"forward and backward, {rows} x {dim}"}, inputs, providers, 5 * inputs.x.nbytes)


def merge_case(dim, device) -> Case:
    """A square weight, its tables made in the call: the whole of road_merge."""
    inputs = tensors(dim, dim, 1, device)

    def run(i, backend):
        return rk.road_merge(i.x, None, i.theta[0], i.alpha[0], backend=backend)[0]

    def expect(i):
        tables = python_fallback.road_tables(i.theta[0].double(), i.alpha[0].double())
        return python_fallback.rotate(i.x.double().t(), *tables, 64).t()

    providers = [
        Provider(n, partial(run, backend=n), expect, rounding(DTYPE), ours=True) for n in kernel_backends(device)
    ]
    return Case({"work": f"merge, {dim} x {dim}"}, inputs, providers, 2 * inputs.x.nbytes)
