"""Table D.1 of the RoAd paper: memory and time of one training step of a Llama with adapters on all linear layers, on
one sequence.

    python -m benchmarks.training [--shape 7b|7b-8|small|tiny] [--dtypes float32,...] [--tokens N] ...

All adapters are PEFT's; RoAd both with PEFT's own code and on our kernels. Weights are random and frozen. Adapters are
in float32 (PEFT's default) and moved away from their initial values, at which some gradients are zero. A step is
forward, backward and AdamW. "no adapter" computes the gradient of the embeddings through the frozen model, which every
method pays for.

Before anything is timed, the loss and the gradient of every adapter parameter, in a model of two such layers, are
compared with the same model in float64 under PEFT's own code. Our largest error may be twice that of PEFT's own RoAd in
the same dtype.

Memory: ``saved_bytes`` is what autograd saves for the backward, counted by saved-tensor hooks, each storage once,
without weights and parameters. On a GPU ``peak_cuda_bytes`` is torch.cuda.max_memory_allocated in a step, as if this
provider were alone. On a CPU ``peak_rss_bytes`` is the growth of the process's resident memory in a step: VmHWM, which
ru_maxrss reports, reset before the step. It misses memory that the allocator kept from earlier steps: the bytes saved
for the backward are the more exact figure.
"""

import argparse
import contextlib
import functools
import io
import math
import warnings

import torch
from torch import Tensor, nn

from .baselines import models
from .baselines.training_methods import Method, methods
from .harness import model_runs
from .harness.accuracy import row_error
from .harness.failures import attempt
from .harness.memory import resident_growth, saved_bytes
from .harness.record import PLAIN
from .harness.timing import now
from .report.draw import show

# Seconds, rounds, and the longest step that is timed more than once: on one core of an EPYC a step of the small shape
# takes 1.7 s of processor time, with BOFT 17 s.
EFFORTS = {
    "quick": (0.0, (2, 2)),
    "default": (60.0, (3, 7), 5.0),
    "gpu-check": (0.0, (3, 3)),
    "full": (60.0, (7, 25)),
}
CHECKED_LAYERS, CHECKED_TOKENS = 2, 64


class Trained:
    """A method on a model that shares its weights with those of the other methods."""

    def __init__(self, method: Method, base: nn.Module, ids: Tensor, dtype: torch.dtype = torch.float32):
        self.method, self.ids, self.optimizer = method, ids, None
        model = models.shared_copy(base)
        if method.config is None:
            self.embeddings = model.get_input_embeddings()(ids).requires_grad_()
            self.inputs, self.parameters = {"inputs_embeds": self.embeddings}, {}
        else:
            from peft import get_peft_model

            with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # BOFT reports its compiler
                warnings.simplefilter("ignore")
                model = get_peft_model(model, method.config())
            self.inputs = {"input_ids": ids}
            self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
            self._move_from_the_start(dtype)
        self.model = model.train()

    def _move_from_the_start(self, dtype: torch.dtype) -> None:
        """Seeded: the same adapters in every dtype."""
        generator = torch.Generator().manual_seed(0)
        for p in self.parameters.values():
            by = 0.02 * torch.randn(p.shape, generator=generator)
            # The initial values are random for some methods; their rounded mean, 0 or 1, is exact in every dtype.
            start = p.data.float().mean().round()
            p.data = (start + by.to(p.device)).to(dtype)

    def loss(self) -> Tensor:
        return self.model(**self.inputs, labels=self.ids, use_cache=False).loss

    def step(self) -> None:
        if self.optimizer is None and self.parameters:
            self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=1e-4)
        self.loss().backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        else:
            self.embeddings.grad = None

    def results(self) -> tuple[Tensor, ...]:
        """The loss and the gradient of each parameter, each as one row."""
        loss = self.loss()
        wanted = list(self.parameters.values()) or [self.embeddings]
        return tuple(t.detach().reshape(1, -1) for t in (loss, *torch.autograd.grad(loss, wanted)))


# ---- checks


def errors_of(methods: list[Method], small: nn.Module, dtype: torch.dtype, ids: Tensor) -> dict[str, float]:
    """The error of each method that runs; ValueError if one of ours exceeds its limit."""
    working, exact, found = models.converted(small, dtype), models.converted(small, torch.float64), {}

    def error(m: Method) -> float:
        want = Trained(m, exact, ids, torch.float64).results()  # under PEFT's own code
        with m.use():
            got = Trained(m, working, ids).results()
        worst = max(row_error(g, w) for g, w in zip(got, want, strict=True))
        limit = 2 * found[m.like] if found.get(m.like) else math.inf
        if not worst <= limit:
            raise ValueError(f"{m.name}: loss or gradient is off by {worst:.2e} (relative), allowed is {limit:.2e}")
        return float(f"{worst:.3g}")

    for m in methods:
        found[m.name], _ = attempt(functools.partial(error, m), m.ours)
    return {name: value for name, value in found.items() if value is not None}


# ---- the benchmark


def _memory(trained: Trained, device: torch.device) -> dict:
    """Also warms up the timing: AdamW allocates its state in the first step."""
    trained.step()
    found = {"saved_bytes": saved_bytes(trained.model, trained.loss), "peak_cuda_bytes": None, "peak_rss_bytes": None}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        trained.step()
        return found | {"peak_cuda_bytes": torch.cuda.max_memory_allocated(device)}
    return found | {"peak_rss_bytes": resident_growth(trained.step)}


def measure(axes: dict, device: torch.device, effort: tuple, light: bool) -> list[dict]:
    """One row per method: checked, its memory measured, then timed in turn."""
    dtype = getattr(torch, axes["dtype"])
    torch.manual_seed(0)
    those = [m for m in methods() if not (light and m.heavy)]
    small = models.llama(axes["shape"], device, CHECKED_LAYERS)
    ids = torch.randint(small.config.vocab_size, (1, axes["tokens"])).to(device)
    errors = errors_of(those, small, dtype, ids[:, :CHECKED_TOKENS])
    del small
    base = models.converted(models.llama(axes["shape"], device), dtype)
    weights = sum(p.nbytes for p in base.parameters())

    ready, memory, notes = {}, {}, {}

    def prepare(m: Method):
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        with m.use():
            trained = Trained(m, base, ids)
            found = _memory(trained, device)
        if found["peak_cuda_bytes"] is not None:  # as if only the weights had been allocated before
            found["peak_cuda_bytes"] += weights - before
        return trained, found

    for m in those:
        made, notes[m.name] = attempt(functools.partial(prepare, m), m.ours)
        if made is not None:
            ready[m.name], memory[m.name] = made

    def sample(m: Method) -> dict:
        with m.use():
            start = now(device)
            ready[m.name].step()
            return {"step_ms": 1e3 * (now(device) - start)}

    samples = {m.name: functools.partial(sample, m) for m in those if m.name in ready}
    taken = model_runs.rounds(samples, *effort)
    rows = []
    for m in those:
        row = {**axes, "provider": m.name, "ours": m.ours, "trainable": None}
        if m.name in ready:
            row["trainable"] = sum(p.numel() for p in ready[m.name].parameters.values())
        samples_of = taken.get(m.name, [])
        row |= model_runs.spreads(samples_of, taken.get(PLAIN), {"over_base": "step_ms"}, ("step_ms",))
        row |= memory.get(m.name, dict.fromkeys(("saved_bytes", "peak_cuda_bytes", "peak_rss_bytes")))
        rows.append(row | {"samples": len(samples_of), "error": errors.get(m.name), "note": notes[m.name]})
    return rows


def parse(argv: list[str] | None) -> argparse.Namespace:
    def add(parser):
        parser.add_argument("--shape", choices=tuple(models.SHAPES))
        parser.add_argument("--dtypes", metavar="float32,bfloat16,...")
        parser.add_argument("--tokens", type=int, metavar="TOKENS")

    options = model_runs.arguments("Memory and time of a training step.", add, argv, "python -m benchmarks.training")
    gpu = options.device.startswith("cuda")
    options.shape = options.shape or {"quick": "tiny", "gpu-check": "7b-8"}.get(options.grid, "7b" if gpu else "small")
    options.dtypes = options.dtypes or ("bfloat16" if gpu else "float32")
    options.tokens = options.tokens or (32 if options.grid == "quick" else 512)
    return options


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    grid = [{"shape": options.shape, "dtype": d, "tokens": options.tokens} for d in options.dtypes.split(",")]
    device, light = torch.device(options.device), options.grid == "gpu-check"
    path = model_runs.run_cases(
        "training", grid, lambda axes: measure(axes, device, EFFORTS[options.grid], light), options
    )
    show("training", path)


if __name__ == "__main__":
    main()
