"""What a call costs the host, whatever the kernel does: a tensor of 1 x 64, call after call.

    python -m benchmarks.dispatch [--device cpu|cuda] [--quick | --gpu-check | --full] [--threads N] [--seconds S]

On a GPU the calls are issued without synchronising; on a CPU the work itself, some nanoseconds, is included.
Modes: "no gradients"; "records": a forward that autograd records; "forward and backward"; "compiled": a function of
one such call under torch.compile(fullgraph=True), whose guards are part of the price.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

import road_kernels as rk
from road_kernels import python_fallback

from .baselines.formulas import eager_coefficients, eager_formula
from .harness import timing
from .harness.accuracy import require_close, rounding
from .harness.backends import usable_backends
from .harness.measure import EFFORTS, Effort
from .harness.sweep import Results, arguments, progress

WIDTH, GROUP_SIZE, ADAPTERS = 64, 64, 4
BASELINES = ("layer_norm", "x + x")
MODES = ("no gradients", "records", "forward and backward", "compiled")


@dataclass
class Entry:
    name: str
    call: Callable[..., Tensor]
    parameters: Callable[[Tensor, Tensor], tuple] = lambda theta, alpha: (theta, alpha)  # what follows x in the call
    ours: bool = False


def entries(device: torch.device) -> list[Entry]:
    """The baselines do the same work, but for x + x, the least that torch can do, and for layer_norm: three inputs and
    one node in C++, as rotate."""
    ids = torch.zeros(1, dtype=torch.int64, device=device)

    def formula(x, theta, alpha):
        return eager_formula(x, *eager_coefficients(theta, alpha, "road_1", GROUP_SIZE), GROUP_SIZE)

    def batched(x, theta, alpha, backend):
        return rk.road_apply_batched(x, theta, alpha, ids, backend=backend)

    def bank(theta, alpha):
        return theta.repeat(ADAPTERS, 1), alpha.repeat(ADAPTERS, 1)

    _, *adapter = drawn()
    slots = rk.AdapterBank({"layer": WIDTH}, ADAPTERS, group_size=GROUP_SIZE, device=device)
    slots.load("adapter", rk.Adapter({"layer": tuple(adapter)}, "road_1", GROUP_SIZE))
    layer = slots.layer("layer")

    found = []
    for name in usable_backends(device):
        found.append(Entry(f"road_apply, {name}", partial(rk.road_apply, backend=name), ours=True))
        found.append(Entry(f"road_apply_batched, {name}", partial(batched, backend=name), bank, ours=True))
        found.append(Entry(f"rotate, {name}", partial(rk.rotate, backend=name), rk.road_tables, ours=True))
    found.append(Entry("AdapterBank.rotate", lambda x: slots.rotate("layer", x, ids), nothing, ours=True))
    found.append(Entry("BankLayer.rotate", lambda x: layer.rotate(x, ids), nothing, ours=True))
    found.append(Entry("PEFT's formula", formula))
    found.append(Entry("layer_norm", lambda x, w, b: layer_norm(x, (WIDTH,), w, b), tables_of_width))
    found.append(Entry("x + x", lambda x: x + x, nothing))
    return found


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """x, theta and alpha, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    x, theta, alpha = (torch.randn(shape, generator=generator) for shape in ((1, WIDTH), WIDTH // 2, WIDTH // 2))
    return x, 0.3 * theta, 1 + 0.1 * alpha


def nothing(theta: Tensor, alpha: Tensor) -> tuple:
    return ()


def tables_of_width(theta: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat((alpha, alpha)), torch.cat((theta, theta))


def example(entry: Entry, device: torch.device, trained: bool = False) -> tuple[Tensor, ...]:
    """The arguments of an entry."""
    x, theta, alpha = drawn()
    tensors = x, *entry.parameters(theta, alpha)
    return tuple(t.to(device).requires_grad_(trained) for t in tensors)


def prepare(mode: str, entry: Entry, device: torch.device) -> Callable[[], object]:
    """The call that is timed, its arguments bound, which costs less than a tenth of a microsecond."""
    tensors = example(entry, device, trained=mode in ("records", "forward and backward"))
    if mode == "forward and backward":
        gz = torch.ones(1, WIDTH, device=device)
        return lambda: torch.autograd.grad(entry.call(*tensors), tensors, gz)
    if mode == "compiled":
        return partial(torch.compile(apart(entry.call), dynamic=False, fullgraph=True), *tensors)
    return partial(entry.call, *tensors)


def apart(call: Callable) -> Callable:
    """With a code object of its own. What is compiled for others of the same code, as of another backend, has its
    guards checked first in every call, and there may be eight at most.
    """

    def function(*tensors):
        return call(*tensors)

    function.__code__ = function.__code__.replace(co_name=f"{function.__name__}_of_{id(call)}")
    return function


def require_right(entry: Entry, mode: str, got: Tensor | tuple[Tensor, ...], device: torch.device) -> None:
    """Every entry but the baselines returns the rotation; its backward returns the gradient of x first."""
    if entry.name in BASELINES:
        return
    x, r1, r2 = (t.double() for t in example(Entry("", None, rk.road_tables), device))
    if mode == "forward and backward":
        got, want = got[0], python_fallback.rotate_backward(torch.ones_like(x), None, r1, r2, GROUP_SIZE)[0]
    else:
        want = python_fallback.rotate(x, r1, r2, GROUP_SIZE)
    require_close(f"{entry.name}, {mode}", got, want, rounding(torch.float32, 2))


def calls_at_once(mode: str, device: torch.device) -> int:
    """On a GPU no more than fit in the driver's queue: ten backwards of the formula, or fifty forwards."""
    if device.type != "cuda":
        return 2000
    return 10 if mode == "forward and backward" else 50


def measure_mode(mode: str, device: torch.device, effort: Effort, results: Results) -> list[dict]:
    """One row per entry. Compilation takes seconds: none starts after the time limit."""
    torch._dynamo.reset()
    calls, ours = {}, {}
    for entry in entries(device):
        if mode == "compiled" and calls and results.out_of_time():
            results.left_out.append(f"{mode}, {entry.name}: after the limit of {results.options.seconds:g} s")
            continue
        run = prepare(mode, entry, device)
        require_right(entry, mode, run(), device)
        calls[entry.name], ours[entry.name] = timing.repeats(run), entry.ours
    samples = timing.interleave(
        calls,
        seconds=effort.seconds,
        rounds=effort.rounds,
        sample_seconds=effort.sample_seconds,
        most_calls=calls_at_once(mode, device),
        sample=timing.issue_sample if device.type == "cuda" else timing.host_sample,
    )
    return [
        {"mode": mode, "provider": name, "ours": ours[name], **timing.spread(times, "us", 1e6)}
        for name, times in samples.items()
    ]


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, argv, "python -m benchmarks.dispatch", gpu_check_seconds=60)
    results = Results("dispatch", options)
    modes = MODES[:-1] if options.grid == "quick" else MODES  # compilation takes seconds
    for mode in progress(modes, f"dispatch ({options.grid}, {options.device})"):
        if results.out_of_time():
            results.left_out.append(f"{mode}: after the limit of {options.seconds:g} s")
        else:
            results.add(measure_mode(mode, torch.device(options.device), EFFORTS[options.grid], results))
    results.done()


if __name__ == "__main__":
    main()
