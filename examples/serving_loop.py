"""A server with continuous batching: more adapters on disk than slots, admitted and evicted between the steps.

    python examples/serving_loop.py            # some seconds; --quick: fewer
    pip install road_kernels safetensors       # all that it needs

A small decoder with random weights generates greedily. Every step is one batch of single tokens, packed as the large
servers pack them: the whole prompts of the requests that just came in beside one token of each that is running, each
token with the slot of its own request's adapter. At the end every request is run again, alone, on weights into which
its adapter was merged, and has to come out the same.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_decoder import VOCABULARY, Decoder
from torch import Tensor

import road_kernels as rk
from road_kernels import Adapter, AdapterBank

GROUP_SIZE = 32


@dataclass(eq=False)
class Request:
    adapter: str | None
    prompt: list[int]
    wanted: int
    row: int = -1  # of the cache, while it runs
    output: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    error: str | None = None


class Server:
    def __init__(self, model: Decoder, bank: AdapterBank, store: Path, batch: int):
        self.model, self.bank, self.store = model, bank, store
        self.cache, self.free_rows = model.make_cache(batch), list(range(batch))
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.used: OrderedDict[str, None] = OrderedDict()  # the resident adapters, the longest unused one first
        self.hits = self.loads = self.evictions = self.tokens = self.steps = 0

    def admit(self) -> None:
        """Moves requests from the queue into the batch. Between steps, on one thread: no batch is in flight, so that
        loading and evicting need no ``bank.hold``. One whose adapter finds no slot waits, and others overtake it."""
        for request in list(self.waiting):
            if not self.free_rows:
                break
            try:
                if not self.make_resident(request.adapter):
                    continue
            except (ValueError, TypeError, OSError) as error:  # this adapter only: the bank is as it was
                request.error = str(error)
            self.waiting.remove(request)
            if request.error is None:
                request.row = self.free_rows.pop()
                self.running.append(request)

    def make_resident(self, adapter: str | None) -> bool:
        """Sees that an adapter has a slot: evicts the one that no running request uses and that was needed last."""
        if adapter is None:
            return True
        if adapter in self.bank:
            self.hits += 1
        else:
            busy = {request.adapter for request in self.running}
            victim = next((name for name in self.used if name not in busy), None) if self.bank.free == 0 else None
            if self.bank.free == 0 and victim is None:
                return False
            new = Adapter.from_peft(self.store / adapter)  # a damaged file evicts nobody
            if victim is not None:
                self.bank.evict(victim)
                del self.used[victim]
                self.evictions += 1
            self.bank.load(adapter, new)
            self.loads += 1
        self.used[adapter] = None
        self.used.move_to_end(adapter)
        return True

    def step(self) -> None:
        """One token for every running request, the first of them from its whole prompt."""
        tokens, rows, positions, names, last = [], [], [], [], []
        for request in self.running:
            new = request.output[-1:] or request.prompt
            end = len(request.prompt) + len(request.output)
            tokens += new
            rows += [request.row] * len(new)
            positions += range(end - len(new), end)
            names += [request.adapter] * len(new)
            last.append(len(tokens) - 1)
        ids = self.bank.ids(names)  # [N], one per token; -1 where a request has no adapter

        def rotate(layer: str, h: Tensor) -> Tensor:
            return self.bank.rotate(layer, h, ids, inplace=True)

        logits = self.model(torch.tensor(tokens), self.cache, torch.tensor(rows), torch.tensor(positions), rotate)
        for request, row in zip(self.running, logits[last], strict=True):
            request.logits.append(row)
            request.output.append(int(row.argmax()))
        self.steps += 1
        self.tokens += len(tokens)
        for request in [r for r in self.running if len(r.output) == r.wanted]:
            self.running.remove(request)
            self.free_rows.append(request.row)


def write_adapter(folder: Path, model: Decoder, generator: torch.Generator) -> None:
    """A checkpoint as PEFT writes it, as if trained: angles of some tenths of a radian, scales around 1."""
    folder.mkdir()
    config = {"peft_type": "ROAD", "variant": "road_1", "group_size": GROUP_SIZE}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = {}
    for name, layer in model.adapted_layers().items():
        noise = torch.randn(2, layer.out_features // 2, generator=generator)
        weights[f"base_model.model.{name}.road_theta"] = 0.3 * noise[0]
        weights[f"base_model.model.{name}.road_alpha"] = 1 + 0.1 * noise[1]
    save_file(weights, folder / "adapter_model.safetensors")


def make_requests(count: int, adapters: list[str], pick: random.Random) -> list[Request]:
    """A few adapters are asked for often, most seldom; one request in eight wants none."""
    popularity = [1 / (k + 1) for k in range(len(adapters))]
    return [
        Request(
            adapter=None if k % 8 == 7 else pick.choices(adapters, popularity)[0],
            prompt=[pick.randrange(VOCABULARY) for _ in range(pick.randint(4, 40))],
            wanted=pick.randint(8, 48),
        )
        for k in range(count)
    ]


def run_alone(model: Decoder, original: dict[str, Tensor], store: Path, request: Request) -> Tensor:
    """The logits of each token that the request generated: one pass, no bank, the adapter merged into the weights."""
    state = dict(original)
    if request.adapter is not None:
        for name, (theta, alpha) in Adapter.from_peft(store / request.adapter).layers.items():
            keys = f"{name}.weight", f"{name}.bias"
            state.update(
                zip(keys, rk.road_merge(*map(state.get, keys), theta, alpha, group_size=GROUP_SIZE), strict=True)
            )
    tokens = torch.tensor(request.prompt + request.output[:-1])
    arguments = tokens, model.make_cache(1), torch.zeros_like(tokens), torch.arange(len(tokens)), lambda layer, h: h
    return torch.func.functional_call(model, state, arguments)[len(request.prompt) - 1 :]


def progress(what: str, done: int, total: int) -> None:
    """One line that is written over on a terminal, and one at the end in a log."""
    if sys.stderr.isatty() or done == total:
        print(f"\r{what}: {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


@torch.inference_mode()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer requests")
    quick = parser.parse_args(argv).quick
    width, depth, adapters, slots, batch, count = (128, 2, 8, 3, 4, 16) if quick else (256, 4, 32, 8, 12, 96)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # such small steps: on a busy machine with two cores 0.1 s instead of 8
    model = Decoder(width, depth)
    widths = {name: layer.out_features for name, layer in model.adapted_layers().items()}
    bank = AdapterBank(widths, slots, group_size=GROUP_SIZE)
    names = [f"adapter-{k}" for k in range(adapters)]
    requests = make_requests(count, names, random.Random(0))
    broken = Request("damaged", [1, 2, 3], 8)
    requests.insert(3, broken)

    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        for k, name in enumerate([*names, "damaged"]):
            write_adapter(store / name, model, torch.Generator().manual_seed(k))
        with open(store / "damaged" / "adapter_model.safetensors", "r+b") as file:
            file.truncate(1000)

        server = Server(model, bank, store, batch)
        server.waiting.extend(requests)
        start = time.perf_counter()
        while server.waiting or server.running:
            server.admit()
            if server.running:
                server.step()
            progress("serving", sum(len(r.output) == r.wanted or r.error is not None for r in requests), len(requests))
        seconds = time.perf_counter() - start

        served = [r for r in requests if r.error is None]
        generated = sum(len(r.output) for r in served)
        print(f"{bank}; {adapters} adapters on disk")
        print(f"{len(served)} requests served in {server.steps} steps")
        print(f"1 refused: {broken.error.removeprefix(folder)}")
        print(f"adapters: {server.hits} hits, {server.loads} loads, {server.evictions} evictions")
        speed = f"{server.tokens / seconds:.0f} tokens/s, {generated / seconds:.0f}/s of them generated"
        print(f"{server.tokens} tokens in {seconds:.2f} s: {speed}")

        worst, original = 0.0, dict(model.state_dict())
        for k, request in enumerate(served):
            together, alone = torch.stack(request.logits), run_alone(model, original, store, request)
            worst = max(worst, ((together - alone).norm() / alone.norm()).item())
            progress("checking each request against itself run alone", k + 1, len(served))
    # Other matrix products, and an adapter merged into the weights: float32 rounding, a few 1e-6 over the depth.
    if not worst < 2e-5:
        sys.exit(f"FAILED: a request differs from itself run alone by {worst:.1e} (relative)")
    print(f"every request equals itself run alone with its adapter merged: largest relative difference {worst:.1e}")


if __name__ == "__main__":
    main()
