"""The work that has a target on the CPU: our side, the baseline's, and the highest allowed ratio of their times."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import road_kernels as rk

from .baselines.enabled_peft import enabled_peft_layer
from .baselines.formulas import eager_coefficients, eager_formula
from .fused_cases import OPS, call, make_inputs
from .harness import timing

ROWS, DIM, DECODE_ROWS, ADAPTERS = 4096, 4096, 8, 1000


@dataclass
class Target:
    name: str
    ours: Callable[[], object]
    baseline: Callable[[], object]
    baseline_name: str
    limit: float  # the highest allowed ratio, ours / baseline
    rounds: int = 15


def time_target(target: Target) -> dict:
    """Median microseconds per call of both sides, interleaved; median, p20 and p80 of the ratio within a round."""
    # The results call the baseline "rival".
    sides = {"ours": timing.repeats(target.ours), "rival": timing.repeats(target.baseline)}
    samples = timing.interleave(sides, seconds=0, rounds=(target.rounds, target.rounds), sample_seconds=0.004)
    ratios = [a / b for a, b in zip(samples["ours"], samples["rival"], strict=True)]
    medians = {f"{side}_us": timing.spread(times, "us", 1e6)["us"] for side, times in samples.items()}
    return medians | timing.spread(ratios, "ratio")


def parameters(variant: str = "road_1", seed: int = 0, width: int = DIM) -> tuple[torch.Tensor, torch.Tensor]:
    n = {"road_1": width // 2, "road_2": width, "road_4": 2 * width}[variant]
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(n, generator=generator), 1 + 0.1 * torch.randn(n, generator=generator)


def prefill() -> Iterator[Target]:
    # Rotated in place again and again: scales of 1 keep the values from growing.
    theta, ones = parameters()[0], torch.ones(DIM // 2)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(ROWS, DIM).to(dtype)
        y = torch.empty_like(x)
        for g in (2, 64):
            first, second = (t.to(dtype) for t in eager_coefficients(theta, ones, "road_1", g))
            name = f"{ROWS} x {DIM} {str(dtype)[6:]}, group_size {g}"
            yield Target(
                f"{name}, in place",
                lambda x=x, g=g: rk.road_apply(x, theta, ones, group_size=g, inplace=True),
                lambda x=x, y=y: y.copy_(x),
                "y.copy_(x)",
                1.25,
            )
            yield Target(
                f"{name}, fresh output",
                lambda x=x, g=g: rk.road_apply(x, theta, ones, group_size=g),
                lambda x=x, g=g, a=first, b=second: eager_formula(x, a, b, g),
                "PEFT's formula",
                1 / 3,
                7,
            )


def decode() -> Iterator[Target]:
    theta, alpha = parameters()
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(DECODE_ROWS, DIM).to(dtype)
        for g in (2, 64):
            r1, r2 = rk.road_tables(theta, alpha, group_size=g)
            first, second = (t.to(dtype) for t in eager_coefficients(theta, alpha, "road_1", g))
            name = f"{DECODE_ROWS} x {DIM} {str(dtype)[6:]}, group_size {g}"
            yield Target(
                f"{name}, ready tables",
                lambda x=x, g=g, r1=r1, r2=r2: rk.rotate(x, r1, r2, group_size=g),
                lambda x=x, g=g, a=first, b=second: eager_formula(x, a, b, g),
                "PEFT's formula, ready coefficients",
                1 / 2.5,
            )
            yield Target(
                f"{name}, from theta and alpha",
                lambda x=x, g=g: rk.road_apply(x, theta, alpha, group_size=g),
                lambda x=x, g=g, d=dtype: eager_formula(
                    x, *(t.to(d) for t in eager_coefficients(theta, alpha, "road_1", g)), g
                ),
                "PEFT's formula and preparation",
                1 / 2.5,
            )


def mixed_batches() -> Iterator[Target]:
    ids = torch.randint(0, ADAPTERS, (ROWS,), generator=torch.Generator().manual_seed(0))
    none = torch.full((ROWS,), -1)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(ROWS, DIM).to(dtype)
        y = torch.empty_like(x)
        for width, kind in ((DIM, "full"), (DIM // 2, "compact")):
            r1, r2 = torch.ones(ADAPTERS, width), torch.zeros(ADAPTERS, width)
            yield Target(
                f"{ROWS} rows, {ADAPTERS} adapters at random, {str(dtype)[6:]}, {kind} float32 tables, in place",
                lambda x=x, r1=r1, r2=r2: rk.rotate_batched(x, r1, r2, ids, inplace=True),
                lambda x=x, r1=r1, r2=r2: rk.rotate(x, r1[0], r2[0], inplace=True),
                "one adapter",
                2.0,
            )
        yield Target(
            f"{ROWS} rows without an adapter, {str(dtype)[6:]}, in place",
            lambda x=x, r1=r1, r2=r2: rk.rotate_batched(x, r1, r2, none, inplace=True),
            lambda x=x, y=y: y.copy_(x),
            "y.copy_(x)",
            0.1,
        )


def training() -> Iterator[Target]:
    rows = ROWS // 2
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(rows, DIM).to(dtype).requires_grad_()
        gz = torch.randn(rows, DIM).to(dtype)
        for variant in ("road_1", "road_2", "road_4"):
            theta, alpha = (t.requires_grad_() for t in parameters(variant))
            leaves = (x, theta, alpha)

            def ours(leaves=leaves, gz=gz, variant=variant):
                return torch.autograd.grad(rk.road_apply(*leaves, variant=variant), leaves, gz)

            def baseline(leaves=leaves, gz=gz, variant=variant, dtype=dtype):
                x, theta, alpha = leaves
                z = eager_formula(x.float(), *eager_coefficients(theta, alpha, variant, 64), 64).to(dtype)
                return torch.autograd.grad(z, leaves, gz)

            name = f"{rows} x {DIM} {str(dtype)[6:]}, {variant}, forward and backward"
            yield Target(name, ours, baseline, "PEFT's formula, float32 parameters", 1 / 5, 7)


def merging() -> Iterator[Target]:
    theta, ones = parameters()[0], torch.ones(DIM // 2)
    dense = eager_formula(torch.eye(DIM), *eager_coefficients(theta, ones, "road_1", 64), 64).t().contiguous()
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.randn(DIM, DIM).to(dtype)
        name = f"{DIM} x {DIM} {str(dtype)[6:]}"
        for work, function in (("merge", rk.road_merge), ("unmerge", rk.road_unmerge)):
            yield Target(
                f"{work} {name}, new weight",
                lambda w=weight, f=function: f(w, None, theta, ones),
                lambda w=weight: w.clone(),
                "W.clone()",
                1.5,
            )
            yield Target(
                f"{work} {name}, in place",
                lambda w=weight, f=function: f(w, None, theta, ones, inplace=True),
                lambda w=weight: w.clone(),
                "W.clone()",
                1.5,
            )
    weight = torch.randn(DIM, DIM)
    yield Target(
        f"merge {DIM} x {DIM} float32, new weight",
        lambda: rk.road_merge(weight, None, theta, ones)[0],
        lambda: dense @ weight,
        "PEFT's dense product, its matrix ready",
        1 / 20,
        5,
    )


def fused() -> Iterator[Target]:
    for op in OPS:
        for rows in (ROWS // 2, DECODE_ROWS):
            for dtype in (torch.float32, torch.bfloat16):
                inputs = make_inputs(op, rows, DIM, dtype, 8, torch.device("cpu"))
                inplace = op != "silu_mul"
                yield Target(
                    f"rotate_{op}, {rows} x {DIM} {str(dtype)[6:]}, 8 adapters",
                    lambda i=inputs, op=op, inplace=inplace: call(op, i, i.ids, inplace),
                    lambda i=inputs, op=op, inplace=inplace: call(op, i, i.none, inplace),
                    "the same kernel without an adapter",
                    1.1,
                    31,
                )


def dispatch() -> Iterator[Target]:
    """What a call costs the host: rows of 64 features, whose work is nothing. The targets are of issues on speed."""
    x, (theta, alpha) = torch.randn(1, 64), parameters(width=64)
    leaves = [t.clone().requires_grad_() for t in (x, theta, alpha)]
    leaf, gz = leaves[0], torch.ones(1, 64)
    backward = torch.autograd.grad
    bank = rk.AdapterBank({f"layer {k}": 64 for k in range(100)}, 8)
    handle, ids = bank.layer("layer 7"), torch.zeros(1, dtype=torch.int64)

    def batched():
        return rk.rotate_batched(x, handle.r1, handle.r2, ids, group_size=64)

    once = "one call on 1 x 64"
    for name, ours, baseline, baseline_name, limit in (
        (once, lambda: rk.road_apply(x, theta, alpha), lambda: x + x, "x + x", 1.9),
        (f"{once} that records", lambda: rk.road_apply(*leaves), lambda: leaf + leaf, "x + x that records", 2.2),
        (
            f"{once}, forward and backward",
            lambda: backward(rk.road_apply(*leaves), leaves, gz),
            lambda: backward(leaf + leaf, (leaf,), gz),
            "x + x, forward and backward",
            1.6,
        ),
        ("AdapterBank.rotate of 1 x 64", lambda: bank.rotate("layer 7", x, ids), batched, "rotate_batched", 1.1),
        ("BankLayer.rotate of 1 x 64", lambda: handle.rotate(x, ids), batched, "rotate_batched", 1.1),
    ):
        yield Target(name, ours, baseline, baseline_name, limit, 41)
    yield from peft_dispatch()


def peft_dispatch() -> Iterator[Target]:
    """Only where PEFT is installed."""
    try:
        layer, parts = enabled_peft_layer()
    except ImportError:
        return
    x = torch.randn(1, 128, dtype=torch.bfloat16)
    name, parts_name = "PEFT layer, bfloat16 128 x 128, one row", "base layer and road_apply"
    yield Target(name, lambda: layer(x), lambda: parts(x), parts_name, 1.15, 41)


GROUPS = {
    "prefill": prefill,
    "decode": decode,
    "mixed batches": mixed_batches,
    "training": training,
    "merging": merging,
    "fused": fused,
    "dispatch": dispatch,
}
