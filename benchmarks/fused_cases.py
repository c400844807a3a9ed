"""The inputs of the fused ops, and the ways to do their work: fused, as a pair, without an adapter."""

from functools import partial

import torch
from torch.nn.functional import silu

import road_kernels as rk
from road_kernels import python_fallback

from .baselines.formulas import compile_afresh
from .harness.accuracy import rounding
from .harness.backends import usable_backends
from .harness.case import Case, Provider
from .harness.cold_inputs import Inputs

OPS = ("silu_mul", "add_rms_norm", "rope")
HEAD_DIM, MAX_POSITION, EPS = 128, 4096, 1e-6
ALONE = "no adapter (every id -1)"


def make_inputs(op: str, rows: int, dim: int, dtype: torch.dtype, adapters: int, device) -> Inputs:
    """``dim`` is the width of what is rotated: half of it gate and half up; heads of q, k and v in the ratio 2 1 1."""
    generator = torch.Generator(device).manual_seed(0)
    random = partial(torch.randn, generator=generator, device=device)
    angle = torch.arange(MAX_POSITION, device=device)[:, None] * 10000.0 ** -torch.linspace(
        0, 1, HEAD_DIM // 2, device=device
    )
    theta = 0.3 * random(adapters, dim // 2)
    # Scales of 1, and added and normalised again and again in place: the values stay as they are.
    return Inputs(
        x=random(rows, dim).to(dtype),
        residual=random(rows, dim).to(dtype),
        weight=torch.ones(dim, dtype=dtype, device=device),
        positions=torch.arange(rows, device=device) % MAX_POSITION,
        cache=torch.cat((angle.cos(), angle.sin()), dim=-1).to(dtype),
        r1=theta.cos(),
        r2=theta.sin(),
        ids=torch.arange(rows, device=device) % adapters,
        none=torch.full((rows,), -1, device=device),
    )


def heads(dim: int) -> dict:
    quarter = dim // HEAD_DIM // 4
    return {"num_heads": 2 * quarter, "num_kv_heads": quarter, "head_dim": HEAD_DIM}


def call(op: str, i: Inputs, ids, inplace: bool = False, backend: str | None = None):
    if op == "silu_mul":
        return rk.rotate_silu_mul(i.x, i.r1, i.r2, ids, backend=backend)
    if op == "add_rms_norm":
        return rk.rotate_add_rms_norm(
            i.x, i.residual, i.weight, i.r1, i.r2, ids, eps=EPS, inplace=inplace, backend=backend
        )
    tables = i.r1, i.r2, ids
    return rk.rotate_rope(i.x, i.positions, i.cache, *tables, **heads(i.x.shape[-1]), inplace=inplace, backend=backend)


def formula(op: str, i: Inputs, ids):
    if op == "silu_mul":
        return python_fallback.rotate_silu_mul(i.x, i.r1, i.r2, ids)
    if op == "add_rms_norm":
        return python_fallback.rotate_add_rms_norm(i.x, i.residual, i.weight, i.r1, i.r2, ids, EPS)
    return python_fallback.rotate_rope(i.x, i.positions, i.cache, i.r1, i.r2, ids, *heads(i.x.shape[-1]).values())


def neighbour(op: str, i: Inputs, h):
    """What follows a rotation, in PyTorch."""
    if op == "silu_mul":
        gate, up = h.chunk(2, dim=-1)
        return silu(gate) * up
    if op == "add_rms_norm":
        s = h + i.residual
        return torch.nn.functional.rms_norm(s, i.weight.shape, i.weight, EPS), s
    cos, sin = i.cache.index_select(0, i.positions).unsqueeze(-2).chunk(2, dim=-1)
    by_head = h.view(*h.shape[:-1], -1, HEAD_DIM)
    counts = heads(h.shape[-1])
    qk, v = by_head.split((counts["num_heads"] + counts["num_kv_heads"], counts["num_kv_heads"]), dim=-2)
    first, second = qk.chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((turned, v), dim=-2).flatten(-2)


def build(op, rows, dim, dtype, adapters, device, compiled=False) -> Case:
    axes = {"op": op, "rows": rows, "dim": dim, "dtype": dtype, "adapters": adapters}
    inputs = make_inputs(op, rows, dim, getattr(torch, dtype), adapters, device)
    outputs = {"silu_mul": 1.5, "add_rms_norm": 4, "rope": 2}[op]  # times the bytes of x that are read and written
    used = min(rows, adapters)
    moved = int(outputs * inputs.x.nbytes) + 2 * used * inputs.r1[0].nbytes
    return Case(axes, inputs, providers(op, inputs, compiled), moved, base=ALONE)


def providers(op: str, inputs: Inputs, compiled: bool) -> list[Provider]:
    def expect(i, ids):
        wide = Inputs(**{k: t.double() if t.is_floating_point() else t for k, t in vars(i).items()})
        return formula(op, wide, ids)

    exact = {"expect": lambda i: expect(i, i.ids), "tolerance": 2 * rounding(inputs.x.dtype)}
    best = usable_backends(inputs.x.device)[0]
    found = [
        Provider(f"road_kernels, {name}", lambda i, name=name: call(op, i, i.ids, backend=name), ours=True, **exact)
        for name in usable_backends(inputs.x.device)
    ]
    found.append(
        Provider(
            ALONE,
            lambda i: call(op, i, i.none, backend=best),
            lambda i: expect(i, i.none),
            2 * rounding(inputs.x.dtype),
            ours=True,
        )
    )

    def rotated(i):
        return rk.rotate_batched(i.x, i.r1, i.r2, i.ids, backend=best)

    def pair(i):  # two kernels, both ours
        return call(op, Inputs(**vars(i) | {"x": rotated(i)}), i.none, backend=best)

    found.append(Provider("rotate_batched, then the neighbour's kernel", pair, **exact))
    pytorch = {"expect": exact["expect"], "tolerance": 4 * rounding(inputs.x.dtype)}
    found.append(Provider("rotate_batched, then PyTorch", lambda i: neighbour(op, i, rotated(i)), **pytorch))
    if compiled:
        run = compile_afresh(lambda i: formula(op, i, i.ids))
        found.append(Provider("the pair's formula, torch.compile", run, may_fail=True, **exact))
    return found
