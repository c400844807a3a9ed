"""The trained adapters in one batch, each request with its own, and each request compared with itself alone."""

import statistics
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, RoadConfig
from safetensors.torch import load_file
from torch import Tensor, nn

import road_kernels as rk
from road_kernels.integrations import peft as road_peft

from .model import Texts, embed

BASE = "__base__"  # PEFT's name for a request without an adapter


@dataclass(frozen=True)
class Requests:
    texts: Texts
    names: list[str]  # whose adapter each request wants, or BASE
    weight: Tensor  # [B, 384], the head of each request
    bias: Tensor  # [B]

    def ratings(self, embedded: Tensor) -> Tensor:
        return (embedded * self.weight).sum(-1) + self.bias


def load_adapters(encoder: nn.Module, folders: dict[str, Path]) -> PeftModel:
    """One PEFT model with every adapter of ``folders`` (name: checkpoint) in it."""
    (first, folder), *rest = folders.items()
    model = PeftModel.from_pretrained(encoder, folder, adapter_name=first)
    for name, folder in rest:
        model.load_adapter(folder, adapter_name=name)
    return model.eval()


@contextmanager
def rotated(encoder: nn.Module, folders: dict[str, Path], names: list[str]):
    """The plain encoder with one rk.rotate_batched after every linear layer: all that a framework has to add.

    Reads the checkpoints that PEFT wrote, builds each layer's tables [A, D/2] once, and hands row b of the batch to
    the adapter names[b]; -1, no adapter, for BASE.
    """
    order = list(folders)
    ids = torch.tensor([-1 if name == BASE else order.index(name) for name in names])
    states = [load_file(folder / "adapter_model.safetensors") for folder in folders.values()]
    configs = [RoadConfig.from_pretrained(folder) for folder in folders.values()]
    variant, group_size = configs[0].variant, configs[0].group_size
    if any((c.variant, c.group_size) != (variant, group_size) for c in configs):
        raise ValueError("adapters of one bank must have one variant and one group_size")
    with ExitStack() as hooks:
        for key in states[0]:
            if not key.endswith(".road_theta"):
                continue
            stem = key.removesuffix(".road_theta")
            theta, alpha = (torch.stack([s[f"{stem}.road_{p}"] for s in states]) for p in ("theta", "alpha"))
            r1, r2 = rk.road_tables(theta, alpha, variant=variant, group_size=group_size)

            def rotate(module, inputs, output, r1=r1, r2=r2):
                return rk.rotate_batched(output, r1, r2, ids, group_size=group_size, inplace=True)

            layer = encoder.get_submodule(stem.removeprefix("base_model.model."))
            hooks.callback(layer.register_forward_hook(rotate).remove)
        yield encoder


@torch.no_grad()
def serve(load, folders: dict[str, Path], requests: Requests, rounds: int) -> dict:
    """Each way of serving: its ratings against the requests one by one, and its median milliseconds.

    Args:
        load: makes a fresh encoder. rounds: of timing, the ways interleaved.
    """
    everyone = list(range(len(requests.texts)))
    batch = requests.texts.batch(everyone)
    model, plain = load_adapters(load(), folders), load()

    def alone(row: int) -> Tensor:
        one = requests.texts.batch([row])  # no padding
        if requests.names[row] == BASE:
            with model.disable_adapter():
                return embed(model, one)
        model.set_adapter(requests.names[row])
        return embed(model, one)

    def one_by_one() -> Tensor:
        return torch.cat([alone(row) for row in everyone])

    def mixed() -> Tensor:
        return embed(model, batch, adapter_names=requests.names)

    def with_kernels(way):
        def run():
            with road_peft.enabled():
                return way()

        return run

    with rotated(plain, folders, requests.names):
        ways = {
            "one by one": with_kernels(one_by_one),
            "mixed batch, rk.rotate_batched": lambda: embed(plain, batch),
            "mixed batch, PEFT on our kernels": with_kernels(mixed),
            "mixed batch, PEFT's own code": mixed,
        }
        ratings = {name: requests.ratings(way()) for name, way in ways.items()}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                times[name].append(1e3 * (time.perf_counter() - start))
    expected = ratings["one by one"]
    swapped = requests.ratings(embed(plain, batch))  # without any adapter: what the comparison would catch
    return {
        "requests": {name: requests.names.count(name) for name in dict.fromkeys(requests.names)},
        "largest_rating": float(expected.abs().max()),
        "without_adapters": float((swapped - expected).abs().max()),
        "ways": {
            name: {
                "milliseconds": statistics.median(times[name]),
                "difference": float((ratings[name] - expected).abs().max()),
            }
            for name in ways
        },
    }
