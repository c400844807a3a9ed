"""A trainer updates an adapter in a running server after every step, as reinforcement learning does.

    python examples/live_updates.py            # half a minute; --quick: a few steps
    pip install road_kernels                   # all that it needs

Two processes and gloo between them. The trainer teaches an adapter, over frozen weights, to prefer even tokens, and
sends its parameters, one flat tensor, after each optimizer step. The server generates for requests with that adapter,
with another one and with none, all in one batch, and takes the new values between two of its steps: one call of
``AdapterBank.update``, whose time is the pause. At the end the requests of the other adapter and of none must have
come out the same bit for bit in every round, and those of the trained one as its last parameters say.
"""

import argparse
import queue
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from tiny_decoder import VOCABULARY, Decoder
from torch import Tensor
from torch.nn.utils import parameters_to_vector

import road_kernels as rk
from road_kernels import Adapter, AdapterBank

GROUP_SIZE = 32
TRAINER, SERVER = 0, 1
NAMES = ("policy", "other", None, "policy", "other", None)  # of the requests of a round
PROMPT = 8


@dataclass
class Settings:
    width: int
    depth: int
    updates: int
    generated: int  # tokens of a request in a round
    rate: float = 0.05


def make_model(settings: Settings) -> tuple[Decoder, dict[str, int]]:
    """The frozen decoder, the same in both processes, and the widths of its adapted layers."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # two processes, and steps that are small
    model = Decoder(settings.width, settings.depth).requires_grad_(False)
    return model, {name: layer.out_features for name, layer in model.adapted_layers().items()}


def train(settings: Settings) -> None:
    model, widths = make_model(settings)
    layers = {
        name: tuple(torch.nn.Parameter(torch.full((width // 2,), start)) for start in (0.0, 1.0))
        for name, width in widths.items()
    }
    parameters = [parameter for pair in layers.values() for parameter in pair]
    optimizer = torch.optim.Adam(parameters, settings.rate)
    dist.broadcast_object_list([Adapter(layers, group_size=GROUP_SIZE)], src=TRAINER)

    def rotate(layer: str, h: Tensor) -> Tensor:
        return rk.road_apply(h, *layers[layer], group_size=GROUP_SIZE)

    rows, positions = torch.arange(4).repeat_interleave(16), torch.arange(16).repeat(4)
    for _ in range(settings.updates):
        cache = [block.clone() for block in model.make_cache(4)]  # one tensor a block: autograd writes into each
        logits = model(torch.randint(VOCABULARY, rows.shape), cache, rows, positions, rotate)
        loss = -logits.log_softmax(-1)[:, ::2].logsumexp(-1).mean()  # of the probability of any even token
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dist.send(parameters_to_vector(parameters).detach(), SERVER)


def unpack(vector: Tensor, widths: dict[str, int]) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> (theta, alpha), as slices of the vector."""
    sizes = [width // 2 for width in widths.values() for _ in ("theta", "alpha")]
    parts = iter(vector.split(sizes))
    return {name: (next(parts), next(parts)) for name in widths}


class Server:
    def __init__(self, settings: Settings):
        self.settings = settings
        self.model, self.widths = make_model(settings)
        self.bank = AdapterBank(self.widths, capacity=2, group_size=GROUP_SIZE)
        self.inbox: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        self.pauses: list[float] = []
        self.steps: list[float] = []
        generator = torch.Generator().manual_seed(1)
        self.prompts = torch.randint(VOCABULARY, (len(NAMES), PROMPT), generator=generator)
        self.last: Tensor | None = None

    def receive(self) -> None:
        """In a thread: the network is waited for here, and not between the steps."""
        for _ in range(self.settings.updates):
            vector = torch.empty(sum(self.widths.values()))
            dist.recv(vector, TRAINER)
            self.inbox.put(vector)

    def take_updates(self) -> None:
        """Between steps, on the thread that generates: no batch is running, so nothing has to be held."""
        while not self.inbox.empty():
            self.last = self.inbox.get()
            start = time.perf_counter()
            self.bank.update("policy", unpack(self.last, self.widths))
            self.pauses.append(time.perf_counter() - start)

    @torch.inference_mode()
    def generate(self) -> tuple[Tensor, Tensor]:
        """One round: tokens [requests, generated] and the logits of the last step, [requests, VOCABULARY]."""
        cache = self.model.make_cache(len(NAMES))
        tokens, output = self.prompts, []
        for n in range(self.settings.generated):
            self.take_updates()
            start = time.perf_counter()
            ids = self.bank.ids(NAMES).repeat_interleave(tokens.shape[1])
            rows = torch.arange(len(NAMES)).repeat_interleave(tokens.shape[1])
            begin = 0 if n == 0 else PROMPT + n - 1
            positions = torch.arange(begin, begin + tokens.shape[1]).repeat(len(NAMES))

            def rotate(layer: str, h: Tensor, ids: Tensor = ids) -> Tensor:
                return self.bank.rotate(layer, h, ids, inplace=True)

            logits = self.model(tokens.reshape(-1), cache, rows, positions, rotate)
            logits = logits.unflatten(0, tokens.shape)[:, -1]
            tokens = logits.argmax(-1, keepdim=True)
            output.append(tokens)
            self.steps.append(time.perf_counter() - start)
        return torch.cat(output, 1), logits

    def check(self, first: Tensor, last: Tensor, logits: Tensor) -> None:
        others = [row for row, name in enumerate(NAMES) if name != "policy"]
        if not torch.equal(first[others], last[others]):
            sys.exit("FAILED: an update of one adapter changed a request of another")
        layers = unpack(self.last, self.widths)
        sequence = torch.cat([self.prompts[0], last[0, :-1]])
        rows, positions = torch.zeros_like(sequence), torch.arange(len(sequence))

        def rotate(layer: str, h: Tensor) -> Tensor:
            return rk.road_apply(h, *layers[layer], group_size=GROUP_SIZE)

        with torch.no_grad():
            alone = self.model(sequence, self.model.make_cache(1), rows, positions, rotate)[-1]
        difference = ((logits[0] - alone).norm() / alone.norm()).item()
        # Other matrix products and tables instead of angles: float32 rounding.
        if not difference < 2e-5:
            sys.exit(f"FAILED: the adapter served differs from the one trained by {difference:.1e} (relative)")
        print("requests of the other adapter and of none are the same bit for bit, from the first round to the last")
        print(f"the policy served is the policy trained: relative difference {difference:.1e}")


def serve(settings: Settings) -> None:
    server = Server(settings)
    received: list[Adapter | None] = [None]
    dist.broadcast_object_list(received, src=TRAINER)
    server.bank.load("policy", received[0])
    other = {
        name: (0.3 * torch.randn(width // 2), 1 + 0.1 * torch.randn(width // 2))
        for name, width in server.widths.items()
    }
    server.bank.load("other", Adapter(other, group_size=GROUP_SIZE))
    first, _ = server.generate()
    receiver = threading.Thread(target=server.receive)
    receiver.start()
    while receiver.is_alive() or not server.inbox.empty():
        server.generate()
    receiver.join()
    last, logits = server.generate()

    def even(tokens: Tensor) -> str:
        policy = tokens[[row for row, name in enumerate(NAMES) if name == "policy"]]
        return f"{(policy % 2 == 0).float().mean().item():.0%}"

    milliseconds = [1e3 * pause for pause in server.pauses]
    print(f"{server.bank}")
    step = 1e3 * statistics.median(server.steps)
    print(f"{len(milliseconds)} updates between {len(server.steps)} steps of {step:.2f} ms")
    print(f"pause per update: {statistics.median(milliseconds):.2f} ms in the median, {max(milliseconds):.2f} at most")
    print(f"even tokens of the policy: {even(first)} before, {even(last)} after")
    server.check(first, last, logits)


def work(rank: int, folder: str, settings: Settings) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    (train if rank == TRAINER else serve)(settings)
    dist.barrier()
    dist.destroy_process_group()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer updates")
    quick = parser.parse_args(argv).quick
    settings = Settings(64, 2, 20, 8) if quick else Settings(128, 2, 100, 24)
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(work, (str(Path(folder)), settings), nprocs=2)


if __name__ == "__main__":
    main()
