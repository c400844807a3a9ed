"""The fused ops on bfloat16 rows, as cases of gpu_targets.py: what the rotation adds to its neighbour."""

from functools import partial

import torch

import road_kernels as rk
from road_kernels import python_fallback

from .gpu_batched_cases import SPREAD, ids_for
from .gpu_cases import DTYPE
from .harness.accuracy import rounding
from .harness.case import Case, Provider
from .harness.cold_inputs import Inputs

ALONE, PAIR = "the neighbour alone", "rotation, then neighbour"
OPS = ("silu_mul", "add_rms_norm", "rope")
GROUP_SIZE, ADAPTERS, MAX_POSITION = 64, 64, 4096
# The layers of an 8B Llama: 2 I, D, and the heads of q, of k and v, and their width. And of a quick run.
FULL = {"silu_mul": (2 * 14336, ()), "add_rms_norm": (4096, ()), "rope": (6144, (32, 8, 128))}
SMALL = {"silu_mul": (1024, ()), "add_rms_norm": (256, ()), "rope": (1024, (4, 2, 128))}


def fused_case(op: str, rows: int, backend: str, device, small: bool = False) -> Case:
    """64 requests of an adapter each, against the same op without adapters, and against two ops one after the other."""
    dim, heads = (SMALL if small else FULL)[op]
    generator = torch.Generator(device).manual_seed(0)
    random = partial(torch.randn, generator=generator, device=device)
    r1, r2 = rk.road_tables(0.3 * random(ADAPTERS, dim // 2), torch.ones(ADAPTERS, dim // 2, device=device))
    inputs = Inputs(x=random(rows, dim).to(DTYPE), r1=r1, r2=r2)
    inputs.sample = torch.linspace(0, rows - 1, min(rows, 64), device=device).long()
    inputs.ids = {SPREAD: ids_for(SPREAD, rows, device), ALONE: torch.full((rows,), -1, device=device)}
    keywords = {"group_size": GROUP_SIZE}
    if op == "add_rms_norm":
        inputs.residual, inputs.weight = random(rows, dim).to(DTYPE), random(dim).to(DTYPE)
    if op == "rope":
        inputs.positions = torch.arange(rows, device=device) % MAX_POSITION
        inputs.cache = torch.rand(MAX_POSITION, heads[2], generator=generator, device=device).to(DTYPE)
        keywords |= dict(zip(("num_heads", "num_kv_heads", "head_dim"), heads, strict=True))

    def between(i: Inputs, part=slice(None)):
        """What stands between x and r1."""
        if op == "add_rms_norm":
            return i.residual[part], i.weight
        return (i.positions[part], i.cache) if op == "rope" else ()

    def run(i: Inputs, kind: str, fused: bool = True):
        x, ids, function = i.x, i.ids[kind], getattr(rk, f"rotate_{op}")
        if not fused:
            x, ids = rk.rotate_batched(x, i.r1, i.r2, ids, group_size=GROUP_SIZE, backend=backend), i.ids[ALONE]
        return function(x, *between(i), i.r1, i.r2, ids, **keywords, backend=backend)

    def expect(i: Inputs, kind: str):
        wide = (t.double() if t.is_floating_point() else t for t in (i.x[i.sample], *between(i, i.sample), i.r1, i.r2))
        return getattr(python_fallback, f"rotate_{op}")(*wide, i.ids[kind][i.sample], **keywords)

    def view(result, i: Inputs):
        return tuple(t[i.sample] for t in result) if isinstance(result, tuple) else result[i.sample]

    exact = {"view": view, "ours": True}
    providers = [
        Provider(ALONE, partial(run, kind=ALONE), partial(expect, kind=ALONE), rounding(DTYPE), **exact),
        Provider(SPREAD, partial(run, kind=SPREAD), partial(expect, kind=SPREAD), rounding(DTYPE), **exact),
        Provider(
            PAIR, partial(run, kind=SPREAD, fused=False), partial(expect, kind=SPREAD), rounding(DTYPE, 4), **exact
        ),
    ]
    moved = {"silu_mul": 1.5, "add_rms_norm": 4, "rope": 2}[op] * inputs.x.nbytes
    axes = {"work": f"rotate_{op}, {rows} x {dim}, {backend}"}
    return Case(axes, inputs, providers, int(moved), ALONE)
