"""python -m road_kernels: the usable backends, a mixed batch served and checked, and what it costs."""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import __version__, backend_info, python_fallback, road_merge, road_tables, rotate_batched

HEAD_DIM, GROUP_SIZE, LORA_RANK = 64, 64, 8


class RoadLinear(nn.Module):
    """A frozen linear layer with a bank of RoAd adapters; ``adapter_ids`` says which request uses which."""

    def __init__(self, in_features: int, out_features: int, adapters: int):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features).requires_grad_(False)
        # As after training: angles of some tenths of a radian, scales around 1.
        self.theta = 0.3 * torch.randn(adapters, out_features // 2)
        self.alpha = 1 + 0.1 * torch.randn(adapters, out_features // 2)
        self.tables = road_tables(self.theta, self.alpha, group_size=GROUP_SIZE)
        self.adapter_ids: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        if self.adapter_ids is None:
            return h
        return rotate_batched(h, *self.tables, self.adapter_ids, group_size=GROUP_SIZE, inplace=True)

    def merged(self, adapter: int) -> tuple[Tensor, Tensor | None]:
        return road_merge(
            self.linear.weight, self.linear.bias, self.theta[adapter], self.alpha[adapter], group_size=GROUP_SIZE
        )


class Block(nn.Module):
    """A usual transformer block: attention and a gated MLP, seven linear layers."""

    def __init__(self, width: int, hidden: int, adapters: int):
        super().__init__()
        self.qkv = nn.ModuleList(RoadLinear(width, width, adapters) for _ in range(3))
        self.out = RoadLinear(width, width, adapters)
        self.gate, self.up = (RoadLinear(width, hidden, adapters) for _ in range(2))
        self.down = RoadLinear(hidden, width, adapters)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (proj(F.rms_norm(x, x.shape[-1:])).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for proj in self.qkv)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))
        h = F.rms_norm(x, x.shape[-1:])
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def road_layers(model: nn.Module) -> list[RoadLinear]:
    return [m for m in model.modules() if isinstance(m, RoadLinear)]


def progress(what: str, step: int = 0) -> None:
    """One line on stderr, overwritten on a terminal, cleared by ``what`` = ""; in a log, the first step only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}: {step}" if what else "\r\033[K", end="", file=sys.stderr, flush=True)
    elif step == 1:
        print(f"{what} ...", file=sys.stderr, flush=True)


def show_backends() -> None:
    info = backend_info()
    print(f"road_kernels {__version__}, torch {info['torch']}, {torch.get_num_threads()} threads, {processor()}")
    for name, row in info["backends"].items():
        print(f"  {name:8}", f"usable on {row['devices']}" if row["usable"] else f"not usable: {row['reason']}")
    if info["build"]:
        without = info["build"].pop("without")
        print("  built with", ", ".join(f"{k} {v}" for k, v in info["build"].items() if v))
        if "OpenMP" in without:
            print("  built without OpenMP:", without["OpenMP"])


def processor(device: str = "cpu") -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.split(":")[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@torch.no_grad()
def check_mixed_batch(width: int, hidden: int, blocks: int, tokens: int, adapters: int) -> None:
    """One batch of requests, each with its own adapter or none, against each request alone on merged weights."""
    model = nn.Sequential(*(Block(width, hidden, adapters) for _ in range(blocks)))
    layers = road_layers(model)
    ids = torch.tensor([0, -1, *range(1, adapters), adapters // 2, -1])  # some repeat, two have none
    x = torch.randn(len(ids), tokens, width)
    count = sum(p.numel() for p in model.parameters())
    print(
        f"\nServing {len(ids)} requests of {tokens} tokens through {blocks} blocks, {len(layers)} linear layers, "
        f"{count / 1e6:.0f} M weights; adapters {ids.tolist()} (-1: none)"
    )
    for layer in layers:
        layer.adapter_ids = ids
    together = model(x)

    for layer in layers:
        layer.adapter_ids = None  # from here on plain linear layers
    original = [(layer.linear.weight.data, layer.linear.bias.data) for layer in layers]
    worst = 0.0
    for r, adapter in enumerate(ids.tolist()):
        progress("checking each request against its adapter merged into the weights", r + 1)
        for layer, (weight, bias) in zip(layers, original, strict=True):
            layer.linear.weight.data, layer.linear.bias.data = layer.merged(adapter) if adapter >= 0 else (weight, bias)
        alone = model(x[r : r + 1])[0]
        for layer, (weight, bias) in zip(layers, original, strict=True):
            layer.linear.weight.data, layer.linear.bias.data = weight, bias
        worst = max(worst, ((together[r] - alone).norm() / alone.norm()).item())
    progress("")
    # Their matrix products differ by float32 rounding, a few 1e-6 over the depth of the stack.
    if not worst < 2e-5:
        sys.exit(f"FAILED: a request differs from itself run alone by {worst:.1e} (relative)")
    print(f"every request equals itself run alone with its adapter merged: largest relative difference {worst:.1e}")


def best_device() -> str:
    """ "cuda" where kernels of this package serve the GPU here."""
    kernels = backend_info()["automatic"]["cuda"] != "python"
    return "cuda" if kernels and torch.cuda.is_available() else "cpu"


def microseconds(run: Callable[[], Tensor], device: str) -> float:
    """Of one call. On a GPU, whose calls return before they are done, of 20 in a row."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e6
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / 20 * 1e6


@torch.no_grad()
def time_per_layer(
    width: int, requests: int, tokens: int, adapters: int, seconds: float, device: str
) -> list[tuple[str, list[float]]]:
    """Microseconds of one linear layer with its adapters, for each way to serve them; in turn, round by round."""
    layer = RoadLinear(width, width, adapters)
    r1, r2 = layer.tables
    x = torch.randn(requests, tokens, width)
    ids = torch.randperm(adapters)[:requests]
    lora_a = torch.randn(adapters, width, LORA_RANK) / width**0.5
    lora_b = torch.randn(adapters, LORA_RANK, width)
    linear = layer.linear

    def lora_one_by_one():
        y = linear(x)
        for r, a in enumerate(ids.tolist()):
            y[r] += x[r] @ lora_a[a] @ lora_b[a]
        return y

    ways = {
        "no adapter": lambda: linear(x),
        "RoAd batched (this package)": lambda: rotate_batched(
            linear(x), r1, r2, ids, group_size=GROUP_SIZE, inplace=True
        ),
        "RoAd, eager PyTorch formula": lambda: python_fallback.rotate_batched(linear(x), r1, r2, ids, GROUP_SIZE),
        f"LoRA rank {LORA_RANK}, batched matmul": lambda: linear(x) + torch.bmm(torch.bmm(x, lora_a[ids]), lora_b[ids]),
        f"LoRA rank {LORA_RANK}, adapter by adapter": lora_one_by_one,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    rounds, end = -2, time.perf_counter() + seconds  # two rounds of warm-up
    while rounds < 3 or time.perf_counter() < end:
        rounds += 1
        progress(f"timing {requests} x {tokens} x {width}", rounds)
        for name, run in ways.items():
            us = microseconds(run, device)
            if rounds > 0:
                times[name].append(us)
    progress("")
    return list(times.items())


def show_times(title: str, rows: list[tuple[str, list[float]]]) -> None:
    base = statistics.median(rows[0][1])
    print(f"\n{title}, median of {len(rows[0][1])}\n  {'':34}{'us per layer':>14}{'over no adapter':>18}")
    for name, times in rows:
        us = statistics.median(times)
        print(f"  {name:34}{us:>14.0f}" + ("" if times is rows[0][1] else f"{100 * (us / base - 1):>+16.0f} %"))


def next_line() -> str:
    """What to type after this, in a checkout or where the package is installed."""
    root = Path(__file__).parents[1]
    if (root / "setup.py").exists():
        return f"pip install --no-build-isolation {root}    # into your environment, beside its torch"
    return 'python -c "import road_kernels; help(road_kernels.road_apply)"'


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m road_kernels", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small shapes, a few seconds")
    quick = parser.parse_args(argv).quick
    torch.manual_seed(0)
    show_backends()
    device = best_device()
    torch.set_default_device(device)
    try:
        demonstrate(device, quick)
    finally:
        torch.set_default_device(None)
    print(f"\nnext: {next_line()}")


def demonstrate(device: str, quick: bool) -> None:
    if quick:
        check_mixed_batch(width=256, hidden=704, blocks=2, tokens=8, adapters=4)
        shapes = [(256, 4, 1, 0.1)]
    else:
        check_mixed_batch(width=1024, hidden=2816, blocks=4, tokens=32, adapters=6)
        shapes = [(2048, 16, 1, 1.0), (2048, 16, 64, 3.0)]
    for width, requests, tokens, seconds in shapes:
        rows = time_per_layer(width, requests, tokens, 2 * requests, seconds, device)
        what = "decode" if tokens == 1 else "prefill"
        show_times(
            f"{what} on {processor(device)}: {requests} requests of {tokens} token{'s' * (tokens > 1)}, each its own "
            f"adapter, one {width} x {width} float32 layer",
            rows,
        )
