"""A served Llama on a GPU: a step is one CUDA graph that sees later adapters, and adapters launch nothing."""

import collections

import pytest
import torch

pytest.importorskip("transformers", reason="served models are transformers'")

from gpu_work import device_events

import road_kernels as rk
from benchmarks.baselines import models, serving
from benchmarks.harness import decoding

REQUESTS, PROMPT, NEW = 3, 9, 6


def served(dtype):
    model = models.converted(models.llama("tiny", "cuda"), dtype)
    batch = serving.Batch("cuda")
    return serving.served(model, models.Road.draw(model, REQUESTS), batch), batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_graph_serves_every_batch(kernels, dtype):
    with rk.use_backend(kernels):
        model, batch = served(dtype)
        tokens = torch.randint(256, (REQUESTS, PROMPT + NEW))
        graph = decoding.Static(model, REQUESTS, PROMPT + NEW, capture=True)
        bank = model.served.bank
        for change in (lambda: None, lambda: bank.evict("1"), lambda: bank.update("0", another(bank))):
            change()
            with batch.of(REQUESTS):
                eager = decoding.forced(decoding.Static(model, REQUESTS, PROMPT + NEW, capture=False), tokens, PROMPT)
                assert torch.equal(decoding.forced(graph, tokens, PROMPT), eager)


def another(bank) -> rk.Adapter:
    sizes = {name: width // 2 for name, width in bank.widths.items()}
    layers = {name: (torch.full((size,), 0.2), torch.full((size,), 0.9)) for name, size in sizes.items()}
    return rk.Adapter(layers, "road_1", bank.group_size)


def test_adapters_launch_nothing(kernels):
    """The kernels of a step with adapters are those of a step without, and no more than transformers' own."""
    with rk.use_backend(kernels):
        model, batch = served(torch.bfloat16)

        def launched(model, adapters: bool) -> collections.Counter:
            decoder, token = decoding.Eager(model), torch.zeros(REQUESTS, 1, dtype=torch.int64)
            with batch.of(REQUESTS, adapters), torch.no_grad():
                decoder.prefill(torch.zeros(REQUESTS, PROMPT, dtype=torch.int64))
                return collections.Counter(device_events(lambda: decoder.step(token)))

        with_adapters = launched(model, True)
        assert with_adapters == launched(model, False)
        assert with_adapters.total() < launched(models.llama("tiny", "cuda"), False).total()
