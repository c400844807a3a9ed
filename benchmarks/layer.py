"""Element-wise against BMM: one linear layer serving requests that each have an adapter, and what the adapters cost.

    python -m benchmarks.layer [--device cpu|cuda] [--quick | --gpu-check | --full] [--threads N] [--seconds S]

The metric is the overhead over the same layer without adapters (figure 4 of Liao & Monz, arXiv 2409.00119, at the level
of a layer). Every provider's time includes the layer's matrix product. What a server prepares once per batch (ids,
sorted requests, stacked weights) is ready before the call; ``baselines/layer_providers.py`` lists it.
"""

import math
from functools import partial

import torch

from .baselines.layer_providers import providers
from .harness.case import Case
from .harness.cold_inputs import Inputs
from .harness.record import PLAIN
from .harness.sweep import arguments, star, sweep

PHASES = {"decode": 1, "prefill": 512}  # tokens per request
MIXES = ("different", "uniform", "zipf", "same", "half")
GROUP_SIZE = 64


def grid(name: str, device: str) -> list[dict]:
    """A base point from which each axis is varied alone; requests vary for both decode and prefill."""
    gpu = device == "cuda"
    base = {"phase": "decode", "requests": 64 if gpu else 16, "rank": 8, "mix": "different", "resident": 256}
    base |= {"dim_in": 4096, "dim_out": 4096, "dtype": "bfloat16"} if gpu else {}
    base |= {} if gpu else {"dim_in": 2048, "dim_out": 2048, "dtype": "float32"}
    if name == "quick":
        small = base | {"requests": 4, "resident": 8, "dim_in": 256, "dim_out": 512}
        return [small | {"mix": mix} for mix in ("different", "half")] + [small | {"phase": "prefill"}]
    counts = {"full": [2**k for k in range(9)], "gpu-check": [1, 8, 64, 256], "default": [1, 4, 16, 64]}[name]
    ranks = {"full": (4, 8, 16, 32, 64), "gpu-check": (16, 64), "default": (4, 16, 64)}[name]
    resident = {"full": (1, 16, 64, 1024, 4096), "gpu-check": (1, 4096), "default": (1, 4096)}[name]
    # 512 tokens make the matrix product compute-bound: fewer points suffice.
    prefill = base | {"phase": "prefill", "requests": 16 if gpu else 2}
    fewer = {"full": counts, "gpu-check": [1, 8, 64], "default": [1, 2, 4]}[name]
    points = star(base, requests=counts) + star(prefill, requests=fewer)
    points += star(base, rank=ranks, mix=MIXES)[1:] + star(base | {"mix": "uniform"}, resident=resident)[1:]
    if name == "full":
        points += star(prefill, rank=ranks, mix=MIXES)[1:]
        for shape in ({"dim_out": 14336}, {"dim_in": 14336}):
            points += star(base | shape, requests=[1, 16, 64, 256])
            points.append(prefill | shape)
        points += star(base | {"dtype": "float16"}, requests=[1, 256])
    # torch.compile costs seconds of compilation per point.
    compiled = [base, prefill] + ([base | {"requests": r} for r in (1, 256)] if name == "full" else [])
    points = list({tuple(p.items()): p for p in points + compiled}.values())
    return [p | {"compiled": p in compiled} for p in points]


def draw(mix: str, requests: int, resident: int) -> list[int]:
    """The adapter of each request; -1 is none."""
    generator = torch.Generator().manual_seed(0)
    if mix in ("different", "half"):
        if requests > resident:
            raise ValueError(f"{requests} different adapters out of {resident}")
        ids = torch.randperm(resident, generator=generator)[:requests].tolist()
        return ids if mix == "different" else [a if r % 2 == 0 else -1 for r, a in enumerate(ids)]
    if mix == "uniform":
        return torch.randint(0, resident, (requests,), generator=generator).tolist()
    if mix == "zipf":  # the k-th most popular adapter is requested 1/k as often as the first
        popularity = 1 / torch.arange(1, resident + 1)
        return torch.multinomial(popularity, requests, replacement=True, generator=generator).tolist()
    if mix == "same":
        return [resident // 2] * requests
    raise ValueError(f"mix must be one of {MIXES}, got {mix!r}")


def build(phase, requests, rank, mix, resident, dim_in, dim_out, dtype, device, compiled=False, tokens=None) -> Case:
    tokens = tokens or PHASES[phase]
    axes = {"phase": phase, "requests": requests, "tokens": tokens, "rank": rank, "mix": mix, "resident": resident}
    axes |= {"dim_in": dim_in, "dim_out": dim_out, "dtype": dtype}
    names = draw(mix, requests, resident)
    inputs = make_inputs(names, tokens, rank, resident, dim_in, dim_out, getattr(torch, dtype), device)
    moved = inputs.x.nbytes + inputs.weight.nbytes + requests * tokens * dim_out * inputs.x.element_size()
    return Case(axes, inputs, providers(inputs, moved, GROUP_SIZE, compiled), moved, base=PLAIN)


def make_inputs(names, tokens, rank, resident, dim_in, dim_out, dtype, device) -> Inputs:
    """With the banks of all methods on the device: ``resident`` adapters each."""
    random = partial(torch.randn, generator=torch.Generator(device).manual_seed(0), device=device)
    theta = (0.3 * random(resident, dim_out // 2)).to(dtype)
    alpha = (1 + 0.1 * random(resident, dim_out // 2)).to(dtype)
    requests = len(names)
    return Inputs(
        x=random(requests, tokens, dim_in).to(dtype),
        weight=(random(dim_out, dim_in) / math.sqrt(dim_in)).to(dtype),
        theta=theta,
        alpha=alpha,
        lora_a=(random(resident, rank, dim_in) / math.sqrt(dim_in)).to(dtype),
        lora_b=random(resident, rank, dim_out).to(dtype),
        # The last row is for requests without an adapter: id -1.
        v=torch.cat((1 + 0.1 * random(resident, dim_out), torch.ones(1, dim_out, device=device))).to(dtype),
        ids=torch.tensor(names, device=device),
        names=names,
        # The results that are compared: the first request, the last and some between; likewise their tokens.
        some=torch.linspace(0, requests - 1, min(requests, 16), device=device).long(),
        times=torch.linspace(0, tokens - 1, min(tokens, 4), device=device).long(),
    )


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, argv, "python -m benchmarks.layer", gpu_check_seconds=75)
    sweep("layer", grid(options.grid, options.device), build, options)


if __name__ == "__main__":
    main()
