"""One adapter on one tensor: forward, backward, both; how much of the memory bandwidth each provider reaches.

python -m benchmarks.single_op [--device cpu|cuda] [--quick | --gpu-check | --full] [--threads N] [--seconds S]
"""

from functools import partial

import torch

import road_kernels as rk
from road_kernels import python_fallback

from .baselines.formulas import compile_afresh, eager_coefficients, eager_formula
from .harness.accuracy import rounding, rounding_of_sums
from .harness.backends import usable_backends
from .harness.case import Case, Provider
from .harness.cold_inputs import Inputs
from .harness.sweep import arguments, star, sweep

PEFT, COMPILED = "PEFT's formula", "PEFT's formula, torch.compile"
BOTH = "forward and backward"
BASE = {"op": "forward", "rows": 4096, "dim": 4096, "dtype": "bfloat16", "variant": "road_1", "group_size": 64}


def grid(name: str, device: str) -> list[dict]:
    """Points with ``compiled`` also time torch.compile, which costs seconds of compilation each."""
    if name == "quick":
        base = BASE | {"rows": 64, "dim": 256}
        return [base, base | {"op": "backward"}, base | {"op": BOTH}]
    if name == "full":
        rows, dims = (1, 8, 64, 512, 2048, 8192, 32768), (2048, 4096, 5120, 8192, 14336)
        points = [BASE | {"rows": r, "dim": d} for d in dims for r in rows]
        for op in ("backward", BOTH):
            points += star(BASE | {"op": op}, rows=rows, dim=dims)
    elif name == "gpu-check":
        points = star(BASE, rows=(1, 64, 1024, 32768), dim=(2048, 14336))
        points += star(BASE | {"op": BOTH}, rows=(64, 512, 32768))
        points += [BASE | {"op": "backward"}]
    else:
        rows = (1, 16, 256, 4096)
        points = star(BASE | {"rows": 1024}, rows=rows, dim=(2048, 14336))
        points += star(BASE | {"rows": 1024, "op": BOTH}, rows=(16, 256, 4096))
        points += [BASE | {"rows": 1024, "op": "backward"}]
    middle = BASE if device == "cuda" else BASE | {"rows": 1024}
    for op in ("forward", BOTH):
        points += star(
            middle | {"op": op},
            dtype=("float16", "float32"),
            variant=("road_2", "road_4"),
            group_size=(2, middle["dim"]) if op == "forward" else (),
        )
    points = list({tuple(p.items()): p for p in points}.values())
    compiled = {"full": (1, 64, 512, 4096, 32768), "gpu-check": (4096,), "default": (1, 1024)}[name]
    plain = {k: v for k, v in BASE.items() if k not in ("op", "rows")}
    return [
        p | {"compiled": p["rows"] in compiled and p["op"] != "backward" and p.items() >= plain.items()} for p in points
    ]


def build(op, rows, dim, dtype, variant, group_size, device, compiled=False) -> Case:
    axes = {"op": op, "rows": rows, "dim": dim, "dtype": dtype, "variant": variant, "group_size": group_size}
    inputs = make_inputs(rows, dim, getattr(torch, dtype), variant, device)
    work = forward_providers if op == "forward" else training_providers
    tensors = {"forward": 2, "backward": 3, BOTH: 5}[op]
    parameters = inputs.theta.nbytes + inputs.alpha.nbytes
    moved = tensors * inputs.x.nbytes + {"forward": 1, "backward": 2, BOTH: 3}[op] * parameters
    return Case(axes, inputs, work(inputs, op, variant, group_size, compiled), moved)


def make_inputs(rows, dim, dtype, variant, device) -> Inputs:
    width = {"road_1": dim // 2, "road_2": dim, "road_4": 2 * dim}[variant]
    generator = torch.Generator(device).manual_seed(0)
    random = partial(torch.randn, generator=generator, device=device)
    x, gz = (random(rows, dim).to(dtype) for _ in range(2))
    # Rotated in place again and again: road_1 with scales of 1 keeps the values from growing.
    alpha = torch.ones(width, device=device) if variant == "road_1" else 1 + 0.1 * random(width)
    # Rows that are compared: the first, the last and some between.
    sample = torch.linspace(0, rows - 1, min(rows, 64), device=device).long()
    return Inputs(x=x, gz=gz, theta=0.3 * random(width), alpha=alpha, v=1 + 0.1 * random(dim).to(dtype), sample=sample)


def forward_providers(inputs: Inputs, op: str, variant: str, group_size: int, compiled: bool) -> list[Provider]:
    dtype, ours = inputs.x.dtype, usable_backends(inputs.x.device)
    some = lambda z, i: z[i.sample]  # noqa: E731

    def expect(i):
        x, theta, alpha = (t.double() for t in (i.x[i.sample], i.theta, i.alpha))
        return python_fallback.road_apply(x, theta, alpha, variant, group_size)

    def tables(i):
        return i.x, *rk.road_tables(i.theta, i.alpha, variant=variant, group_size=group_size)

    def coefficients(i):
        return i.x, *(t.to(dtype) for t in eager_coefficients(i.theta, i.alpha, variant, group_size))

    def rotate(s, backend, inplace=False):
        return rk.rotate(*s, group_size=group_size, inplace=inplace, backend=backend)

    def apply(i):
        return rk.road_apply(i.x, i.theta, i.alpha, variant=variant, group_size=group_size)

    def formula(s):
        return eager_formula(*s, group_size)

    exact = {"expect": expect, "view": some, "tolerance": rounding(dtype)}
    providers = [
        Provider(f"road_kernels, {name}", partial(rotate, backend=name), prepare=tables, ours=True, **exact)
        for name in ours
    ]
    providers.append(Provider("road_kernels, from theta and alpha", apply, ours=True, **exact))
    if variant == "road_1":
        run = partial(rotate, backend=ours[0], inplace=True)
        providers.append(Provider("road_kernels, in place", run, prepare=tables, ours=True, output="in place", **exact))
    # The baseline's best case: coefficients ready, in the dtype of x.
    providers.append(Provider(PEFT, formula, prepare=coefficients, **exact))
    if compiled:
        run = compile_afresh(partial(eager_formula, group_size=group_size))
        providers.append(Provider(COMPILED, lambda s: run(*s), prepare=coefficients, **exact))
    expect_ia3 = lambda i: i.x[i.sample].double() * i.v.double()  # noqa: E731
    providers.append(Provider("IA3's multiply", lambda i: i.x * i.v, expect_ia3, rounding(dtype), view=some))
    return providers


def training_providers(inputs: Inputs, op: str, variant: str, group_size: int, compiled: bool) -> list[Provider]:
    """Gradients of x, theta and alpha. With op "backward" the forward is done before the call; BOTH times it too."""
    dtype = inputs.x.dtype

    def expect(i):
        x, theta, alpha, gz = (t.detach().double() for t in (i.x, i.theta, i.alpha, i.gz))
        tables = python_fallback.road_tables(theta, alpha, variant, group_size)
        gx, *grads = python_fallback.rotate_backward(gz, x, *tables, group_size)
        return gx, *python_fallback.road_tables_backward(*grads, theta, alpha, variant, group_size)

    def peft(x, theta, alpha):  # PEFT casts to the parameters' float32 and back
        return eager_formula(x.float(), *eager_coefficients(theta, alpha, variant, group_size), group_size).to(dtype)

    def provider(name, forward, **more):
        def leaves(i):
            return tuple(t.detach().requires_grad_() for t in (i.x, i.theta, i.alpha)), i.gz

        def both(s):
            return torch.autograd.grad(forward(*s[0]), s[0], s[1])

        def recorded(i):
            s = leaves(i)
            return forward(*s[0]), *s

        def backward(s):
            return torch.autograd.grad(*s, retain_graph=True)

        run, prepare = (both, leaves) if op == BOTH else (backward, recorded)
        sums = rounding_of_sums(inputs.x.shape[0])
        return Provider(name, run, expect, (rounding(dtype), sums, sums), prepare=prepare, **more)

    def ours(backend):
        return partial(rk.road_apply, variant=variant, group_size=group_size, backend=backend)

    providers = [provider(f"road_kernels, {name}", ours(name), ours=True) for name in usable_backends(inputs.x.device)]
    providers.append(provider(PEFT, peft))
    if compiled:
        providers.append(provider(COMPILED, compile_afresh(peft)))
    return providers


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, argv, "python -m benchmarks.single_op", gpu_check_seconds=75)
    sweep("single_op", grid(options.grid, options.device), build, options)


if __name__ == "__main__":
    main()
