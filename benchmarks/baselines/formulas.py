"""What the kernels are compared with, written from the published definitions."""

import torch
from torch import Tensor


def eager_formula(x: Tensor, first: Tensor, second: Tensor, group_size: int) -> Tensor:
    """What PEFT does in each layer once its two coefficient vectors are ready: reshape, stack, multiply, add."""
    halves = x.reshape(-1, 2, group_size // 2)
    turned = torch.stack((-halves[:, 1], halves[:, 0]), dim=1).reshape(x.shape)
    return x * first + turned * second


def eager_coefficients(theta: Tensor, alpha: Tensor, variant: str, group_size: int) -> tuple[Tensor, Tensor]:
    """PEFT's preparation of the two vectors, which every training step of its code includes."""
    if variant == "road_4":
        theta, alpha = (t.reshape(-1, 2, group_size) for t in (theta, alpha))
        return (alpha[:, 0] * theta[:, 0].cos()).flatten(), (alpha[:, 1] * theta[:, 1].sin()).flatten()
    if variant == "road_1":
        theta, alpha = (t.reshape(-1, group_size // 2).repeat_interleave(2, dim=0).flatten() for t in (theta, alpha))
    return alpha * theta.cos(), alpha * theta.sin()


def requests_of(names: list[int]) -> list[tuple[int, list[int]]]:
    """PEFT's grouping of a mixed batch, repeated in each layer: (adapter, its requests); -1 is no adapter."""
    return [(a, [r for r, other in enumerate(names) if other == a]) for a in set(names) if a != -1]


def road_adapter_by_adapter(
    y: Tensor, theta: list[Tensor], alpha: list[Tensor], names: list[int], variant: str, group_size: int
) -> Tensor:
    """PEFT's mixed batch: gathers the requests of each adapter from y, rotates them and writes them back."""
    for adapter, requests in requests_of(names):
        coefficients = eager_coefficients(theta[adapter], alpha[adapter], variant, group_size)
        y[requests] = eager_formula(y[requests], *coefficients, group_size)
    return y


def lora_adapter_by_adapter(
    y: Tensor, x: Tensor, a: list[Tensor], b: list[Tensor], names: list[int], scaling: float
) -> Tensor:
    """PEFT's mixed batch for LoRA. x: [R, T, in], y: [R, T, out]; a: [rank, in] and b: [out, rank] of each adapter."""
    linear = torch.nn.functional.linear
    for adapter, requests in requests_of(names):
        y[requests] += linear(linear(x[requests], a[adapter]), b[adapter]) * scaling
    return y


def lora_batched(y: Tensor, x: Tensor, a: Tensor, b: Tensor, who: Tensor | None) -> Tensor:
    """y += (x a) b by two batched products. a: [R, in, rank], b: [R, rank, out]; ``who``: requests with an adapter."""
    if who is None:
        return y.baddbmm_(torch.bmm(x, a), b)
    return y.index_add_(0, who, torch.bmm(torch.bmm(x[who], a), b))


def lora_segments(y: Tensor, x: Tensor, a: list[Tensor], b: list[Tensor], segments: list[tuple[int, int, int]]):
    """Requests sorted by adapter before the call; segments: (first, end, adapter). a: [in, rank], b: [rank, out]. Two
    products per segment; the second accumulates into y."""
    for first, end, adapter in segments:
        rows, out = x[first:end].flatten(0, 1), y[first:end].flatten(0, 1)
        out.addmm_(rows @ a[adapter], b[adapter])
    return y


def lora_grouped(y: Tensor, x: Tensor, a: Tensor, b: Tensor, ends: Tensor, rows: int) -> Tensor:
    """Sorted segments by two calls of torch's grouped matrix product. a: [U, in, rank], b: [U, rank, out] of the
    adapters in use; ends: [U] int32, the end of each one's rows. Only the first ``rows`` rows have an adapter."""
    grouped = torch.nn.functional.grouped_mm
    some, out = x.flatten(0, 1)[:rows], y.flatten(0, 1)[:rows]
    out.add_(grouped(grouped(some, a, offs=ends), b, offs=ends))
    return y


def compile_afresh(function):
    """Compiles for the shapes of one case; what was compiled for earlier cases is dropped."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)
