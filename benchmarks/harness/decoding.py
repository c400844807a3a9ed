"""Greedy generation with a transformers model, in two ways: eager calls, and one CUDA graph per token."""

import torch
from torch import Tensor, nn

from .timing import now

WARM_UP_STEPS = 3


class Eager:
    """Keys and values in transformers' growing cache."""

    def __init__(self, model: nn.Module):
        self.model, self.cache = model, None

    def prefill(self, prompt: Tensor) -> Tensor:
        """Starts over. [requests, tokens] -> logits [requests, vocabulary] of the next token."""
        from transformers import DynamicCache

        self.cache = DynamicCache(config=self.model.config)
        return self.step(prompt)

    def step(self, token: Tensor) -> Tensor:
        out = self.model(input_ids=token, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1]


class Static:
    """Keys and values in transformers' static cache; with ``capture`` every step replays one CUDA graph.

    The prompt is not captured. The next step overwrites the logits that a step returns.
    """

    def __init__(self, model: nn.Module, requests: int, length: int, capture: bool):
        from transformers import StaticCache

        device = model.lm_head.weight.device
        self.model, self.capture, self.graph = model, capture, None
        self.cache = StaticCache(config=model.config, max_cache_len=length + WARM_UP_STEPS)
        self.token = torch.zeros(requests, 1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.slots = torch.arange(length + WARM_UP_STEPS, device=device)
        self.logits = None

    def prefill(self, prompt: Tensor) -> Tensor:
        if self.capture and self.graph is None:
            self._start(prompt)
            self._capture()
        return self._start(prompt)

    def step(self, token: Tensor) -> Tensor:
        self.token.copy_(token)
        if self.graph is None:
            return self._decode()
        self.graph.replay()
        return self.logits

    def _start(self, prompt: Tensor) -> Tensor:
        self.cache.reset()
        self.position.fill_(prompt.shape[1])
        return self.model(input_ids=prompt, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits[:, -1]

    def _decode(self) -> Tensor:
        """Reads and writes the same memory in every call, and advances by one position."""
        out = self.model(
            input_ids=self.token,
            position_ids=self.position.expand(self.token.shape),
            attention_mask=(self.slots <= self.position).expand(len(self.token), 1, 1, -1),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.position.add_(1)
        return out.logits[:, -1]

    def _capture(self) -> None:
        stream = torch.cuda.Stream()  # what the first calls allocate must exist before the capture
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                self._decode()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self._decode()


@torch.no_grad()
def forced(decoder: Eager | Static, tokens: Tensor, prompt: int) -> Tensor:
    """Logits [requests, 1 + more, vocabulary] after the prompt and after each of the given tokens that follow it."""
    logits = [decoder.prefill(tokens[:, :prompt]).clone()]
    logits += [decoder.step(token).clone() for token in tokens[:, prompt:].split(1, dim=1)]
    return torch.stack(logits, dim=1)


@torch.no_grad()
def generate(decoder: Eager | Static, prompt: Tensor, new_tokens: int) -> tuple[Tensor, float, float]:
    """(tokens [requests, new_tokens], seconds to the first one, seconds for the rest)."""
    start = now(prompt.device)
    tokens = [decoder.prefill(prompt).argmax(-1, keepdim=True)]
    first = now(prompt.device)
    while len(tokens) < new_tokens:
        tokens.append(decoder.step(tokens[-1]).argmax(-1, keepdim=True))
    return torch.cat(tokens, dim=1), first - start, now(prompt.device) - first
