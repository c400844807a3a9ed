"""A transformers Llama that serves ten adapters: every request of a batch with its own, at the model's own speed.

    python examples/served_llama.py                     # some seconds; --quick: fewer
    pip install road_kernels transformers safetensors   # all that it needs

The Llama is small and has random weights; nothing is downloaded. Ten adapters of the three variants are written as PEFT
checkpoints, served from one AdapterBank inside the kernels of RMSNorm, RoPE and SiLU, and asked for in one batch of
prompts of different lengths. Then one of them is evicted and another one takes its place, and one is rewritten as a
trainer would. At the end every request is generated again, alone, by the model with its adapter merged into its
weights, and has to come out the same.
"""

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import road_kernels as rk
from road_kernels.integrations.transformers import serve

GROUP_SIZE, VOCABULARY, ADAPTERS = 32, 512, 10


def make_model(width: int, depth: int) -> nn.Module:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
        max_position_embeddings=256,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def make_adapter(model: nn.Module, variant: str, generator: torch.Generator) -> rk.Adapter:
    """As if trained: angles of some tenths of a radian, scales around 1, on all linear layers but the head."""
    layers = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            size = layer.out_features * {"road_1": 1, "road_2": 2, "road_4": 4}[variant] // 2
            noise = torch.randn(2, size, generator=generator)
            layers[name] = 0.3 * noise[0], 1 + 0.1 * noise[1]
    return rk.Adapter(layers, variant, GROUP_SIZE)


def merged(model: nn.Module, adapter: rk.Adapter | None) -> nn.Module:
    model = copy.deepcopy(model)
    for name, (theta, alpha) in {} if adapter is None else adapter.layers.items():
        weight = model.get_submodule(name).weight
        about = {"variant": adapter.variant, "group_size": adapter.group_size}
        weight.copy_(rk.road_merge(weight, None, theta, alpha, **about)[0])
    return model


def left_padded(prompts: list[Tensor]) -> dict[str, Tensor]:
    tokens = nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_side="left")
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    mask = torch.arange(tokens.shape[1]) >= tokens.shape[1] - lengths[:, None]
    return {"input_ids": tokens, "attention_mask": mask.long()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer tokens")
    quick = parser.parse_args(argv).quick
    width, depth, new_tokens = (128, 2, 8) if quick else (512, 4, 32)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # such small steps: threads that wait for each other are slower on a busy machine
    generator = torch.Generator().manual_seed(0)
    how = {"max_new_tokens": new_tokens, "do_sample": False}

    model = make_model(width, depth)
    served = serve(model, capacity=ADAPTERS, group_size=GROUP_SIZE)
    adapters = {f"adapter-{k}": make_adapter(model, f"road_{(1, 2, 4)[k % 3]}", generator) for k in range(ADAPTERS)}
    with tempfile.TemporaryDirectory() as folder:
        for name, adapter in adapters.items():
            adapter.save(Path(folder) / name)
            served.load(name, Path(folder) / name)
    print(f"{served.bank}, in a {type(served).__name__} that shares the model's weights")

    names = [*adapters, None, "adapter-3"]
    prompts = [
        torch.randint(1, VOCABULARY, (length,), generator=generator) for length in range(4, 4 + 3 * len(names), 3)
    ]
    batch = left_padded(prompts)
    served.generate(**batch, adapter_names=names, max_new_tokens=1)  # warms up
    seconds = {}
    for what, used in (("an adapter each", names), ("no adapter", None)):
        start = time.perf_counter()
        tokens = served.generate(**batch, adapter_names=used, **how)
        seconds[what] = time.perf_counter() - start
        if used is not None:
            together = tokens[:, batch["input_ids"].shape[1] :]
    for what, taken in seconds.items():
        print(f"{len(names)} requests, {what}: {len(names) * new_tokens / taken:.0f} tokens/s")

    # Between batches adapters come and go, and change in place.
    served.evict("adapter-7")
    adapters["newcomer"] = make_adapter(model, "road_4", generator)
    served.load("newcomer", adapters["newcomer"])
    adapters["adapter-0"] = make_adapter(model, "road_1", generator)
    served.bank.update("adapter-0", adapters["adapter-0"])
    later = ["newcomer", "adapter-0", None]
    more = served.generate(**left_padded(prompts[:3]), adapter_names=later, **how)[:, -new_tokens:]

    checks = [*zip(names[1:], prompts[1:], together[1:], strict=True), *zip(later, prompts, more, strict=False)]
    for name, prompt, got in checks:
        alone = merged(model, None if name is None else adapters[name])
        want = alone.generate(**left_padded([prompt]), **how)[0, -new_tokens:]
        if not torch.equal(got, want):
            sys.exit(f"FAILED: a request of {name} differs from the model with the adapter merged")
    print(f"{len(checks)} requests equal the model with their adapter merged, token by token")


if __name__ == "__main__":
    with torch.no_grad():
        main()
