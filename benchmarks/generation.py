"""Figure 4 of the RoAd paper: tokens per second of a Llama that serves a batch of requests, each with an adapter of its
own on all linear layers.

    python -m benchmarks.generation [--shape 7b|7b-8|small|tiny] [--requests 1,8] [--prompt N] [--new-tokens N] ...
    python -m benchmarks.generation --served [...]    only served models, in half a minute

Weights and adapters are random: speed does not depend on them. Before anything is timed, the logits of every provider,
after the prompt and after three more tokens, are compared with float64, each request alone with its adapter merged into
the weights. The error may be four times that of the base model in the same dtype, whose own limit is 16 eps.

Generation is greedy: a plain loop over transformers' forward, the same for every provider ("eager"); on a GPU also with
a static cache and one CUDA graph per token ("graph"). One sample is the whole generation: prompt and new tokens. PEFT's
hooks for ``adapter_names`` are set once, before the sample, as in PEFT's own generate.

"served" models have packed projections, which are faster without adapters too: "RoAd, served" is compared with "no
adapter, served" (the columns of_base_served), the same model and kernels with ids of -1.
"""

import argparse
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from .baselines import models, serving
from .harness import model_runs
from .harness.accuracy import require_close, rounding
from .harness.decoding import Eager, Static, forced, generate
from .harness.failures import attempt
from .harness.record import PLAIN, PLAIN_SERVED
from .report.draw import show

RANK = 8
FORCED = 3  # tokens after the prompt whose logits are compared too
PER_REQUEST = "lists of Python indices are copied to the device in every layer"
EFFORTS = {"quick": (0.0, (2, 2)), "default": (20.0, (3, 7)), "gpu-check": (0.0, (3, 3)), "full": (60.0, (5, 15))}


@dataclass
class Provider:
    name: str
    model: nn.Module  # transformers' model
    use: Callable[[int], AbstractContextManager]  # sets up a batch of that many requests
    family: str  # "base", "RoAd" or "LoRA": its reference
    adapter_dtype: str | None = None
    adapter_bytes: int = 0  # of one adapter as stored
    ours: bool = False
    eager_only: str | None = None  # why it cannot be captured in a CUDA graph


class Served:
    """A model in every dtype asked for, with its adapters, prompts and reference."""

    def __init__(self, shape: str, device: str, requests: int, prompt: int, served_only: bool = False):
        self.device, self.prompt, self.served_only = device, prompt, served_only
        torch.manual_seed(0)
        self.model = models.llama(shape, device)
        self.road = models.Road.draw(self.model, requests)
        self.lora = None if served_only else models.Lora.draw(self.model, requests, RANK)
        size = (requests, prompt + FORCED)
        self.tokens = torch.randint(self.model.config.vocab_size, size).to(device)
        adapters = {"base": None, "RoAd": self.road} | ({} if served_only else {"LoRA": self.lora})
        self.reference = {
            family: models.reference_logits(self.model, those, self.tokens, 1 + FORCED)
            for family, those in adapters.items()
        }

    @functools.lru_cache(maxsize=1)  # noqa: B019  one dtype at a time; lives as long as the program
    def providers(self, dtype: torch.dtype) -> list[Provider]:
        base = self.model if dtype == torch.bfloat16 else models.converted(self.model, dtype)
        batch = serving.Batch(self.device)

        def road(name, model, use, adapter_dtype, **more):
            pairs = sum(t.shape[1] for t in self.road.theta.values())
            about = {"adapter_dtype": _name(adapter_dtype), "adapter_bytes": 2 * pairs * adapter_dtype.itemsize}
            return Provider(name, model, use, "RoAd", **about, **more)

        def lora(name, model, use, **more):
            size = sum(t[0].numel() for stacks in (self.lora.a, self.lora.b) for t in stacks.values())
            about = {"adapter_dtype": _name(dtype), "adapter_bytes": size * dtype.itemsize}
            return Provider(name, model, use, "LoRA", **about, **more)

        packed = serving.served(base, self.road, batch)
        made = [
            Provider(PLAIN, base, nullcontext, "base"),
            Provider(PLAIN_SERVED, packed, functools.partial(batch.of, adapters=False), "base"),
            road("RoAd, served", packed, batch.of, torch.float32, ours=True),
        ]
        if self.served_only:
            return made
        dtypes = (torch.float32,) if dtype == torch.float32 else (torch.float32, dtype)
        peft_road = {d: serving.peft_road(base, self.road, d) for d in dtypes}
        peft_lora = serving.peft_lora(base, self.lora, dtype)
        bank = serving.banked(base, self.road, batch)
        made.append(road("RoAd, AdapterBank", bank, batch.of, torch.float32, ours=True))
        for d, model in peft_road.items():
            if d == torch.float32:  # PEFT's default, whatever the model's dtype
                use = functools.partial(_mixed, model, True)
                made.append(road("RoAd, PEFT on road_kernels", model.get_base_model(), use, d, ours=True))
            use = functools.partial(_mixed, model, False)
            name = f"RoAd, PEFT, {_name(d)} adapters" if len(dtypes) > 1 else "RoAd, PEFT"
            made.append(road(name, model.get_base_model(), use, d, eager_only=PER_REQUEST))
        use = functools.partial(_mixed, peft_lora, False)
        made.append(lora(f"LoRA rank {RANK}, bmm", serving.bmm_lora(base, self.lora, batch), batch.of))
        made.append(lora(f"LoRA rank {RANK}, PEFT", peft_lora.get_base_model(), use, eager_only=PER_REQUEST))
        return made


@contextmanager
def _mixed(model: nn.Module, kernels: bool, requests: int):
    """What PEFT's generate(adapter_names=...) does around transformers', on our kernels or with PEFT's own code."""
    from road_kernels.integrations import peft as road_peft

    names = [str(r) for r in range(requests)]
    with road_peft.enabled() if kernels else nullcontext(), model._enable_peft_forward_hooks(adapter_names=names):
        yield


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measure(served: Served, axes: dict, effort: tuple[float, tuple[int, int]]) -> list[dict]:
    """One row per provider: checked, then timed in turn."""
    new_tokens, requests, captured = axes["new_tokens"], axes["requests"], axes["mode"] == "graph"
    dtype = getattr(torch, axes["dtype"])
    providers = served.providers(dtype)
    tokens = served.tokens[:requests]
    length = served.prompt + max(new_tokens, FORCED)
    decoders, errors, notes = {}, {}, {}

    def check(p: Provider):
        decoder = Static(p.model, requests, length, capture=True) if captured else Eager(p.model)
        with p.use(requests):
            got = forced(decoder, tokens, served.prompt)
        tolerance = 4 * errors.get(PLAIN, 4 * rounding(dtype))
        want = served.reference[p.family][:requests]
        errors[p.name] = require_close(f"{p.name} in {axes}", got, want, tolerance)
        return decoder

    for p in providers:
        if captured and p.eager_only:
            notes[p.name] = p.eager_only
            continue
        decoder, notes[p.name] = attempt(lambda p=p: check(p), p.ours)
        if decoder is not None:
            decoders[p.name] = decoder

    def sample(p: Provider) -> dict:
        with p.use(requests):
            _, first, others = generate(decoders[p.name], tokens[:, : served.prompt], new_tokens)
        return {
            "tokens_per_s": requests * new_tokens / (first + others),
            "prefill_ms": 1e3 * first,
            "decode_ms": 1e3 * others / max(1, new_tokens - 1),
        }

    samples = {p.name: functools.partial(sample, p) for p in providers if p.name in decoders}
    taken = model_runs.rounds(samples, *effort)
    base = taken.get(PLAIN)
    rows = []
    for p in providers:
        row = {**axes, "provider": p.name, "ours": p.ours, "adapter_dtype": p.adapter_dtype}
        columns = {"of_base": "tokens_per_s"}, ("tokens_per_s", "prefill_ms", "decode_ms")
        row |= model_runs.spreads(taken.get(p.name, []), base, *columns)
        row |= model_runs.spreads(
            taken.get(p.name, []), taken.get(PLAIN_SERVED), {"of_base_served": "tokens_per_s"}, ()
        )
        row |= {"samples": len(taken.get(p.name, [])), "adapter_bytes": p.adapter_bytes}
        rows.append(row | {"error": errors.get(p.name), "note": notes[p.name]})
    return rows


def grid(options: argparse.Namespace) -> list[dict]:
    modes = ("eager", "graph") if options.device.startswith("cuda") else ("eager",)
    points = [(d, r) for d in options.dtypes for r in options.requests]
    if options.all_dtypes is None:  # one point of the second dtype is enough
        points = [(d, r) for d, r in points if d == options.dtypes[0] or r == min(8, max(options.requests))]
    common = {"shape": options.shape, "prompt": options.prompt, "new_tokens": options.new_tokens}
    return [{**common, "dtype": d, "mode": mode, "requests": r} for d, r in points for mode in modes]


def parse(argv: list[str] | None) -> argparse.Namespace:
    def add(parser):
        parser.add_argument("--shape", choices=tuple(models.SHAPES))
        parser.add_argument("--dtypes", dest="all_dtypes", metavar="float32,bfloat16,...")
        parser.add_argument("--requests", metavar="1,2,4,...")
        parser.add_argument("--prompt", type=int, metavar="TOKENS")
        parser.add_argument("--new-tokens", type=int, metavar="TOKENS")
        parser.add_argument("--served", action="store_true", help="no models but the plain one and served ones")

    options = model_runs.arguments("Tokens/s of a mixed batch.", add, argv, "python -m benchmarks.generation")
    gpu = options.device.startswith("cuda")
    options.shape = options.shape or {"quick": "tiny", "gpu-check": "7b-8"}.get(options.grid, "7b" if gpu else "small")
    given = options.all_dtypes or ("bfloat16" if gpu else "float32,bfloat16")
    options.dtypes = given.split(",")
    requests = {"quick": "1,3", "gpu-check": "8"}.get(options.grid, "1,2,4,8,16")
    options.requests = [int(r) for r in (options.requests or requests).split(",")]
    default = {"quick": (8, 4), "default": (128, 64) if gpu else (32, 32), "gpu-check": (64, 8), "full": (128, 128)}
    options.prompt = options.prompt or default[options.grid][0]
    options.new_tokens = options.new_tokens or default[options.grid][1]
    return options


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    served = Served(options.shape, options.device, max(options.requests), options.prompt, options.served)
    path = model_runs.run_cases(
        "generation",
        grid(options),
        lambda axes: measure(served, axes, EFFORTS[options.grid]),
        options,
    )
    show("generation", path)


if __name__ == "__main__":
    main()
