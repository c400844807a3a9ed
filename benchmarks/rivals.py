"""What the kernels are compared with, written from their published definitions."""

import torch
from torch import Tensor


def eager_formula(x: Tensor, first: Tensor, second: Tensor, group_size: int) -> Tensor:
    """What PEFT does per layer after preparing its two coefficient vectors: reshape, stack, multiply, add."""
    halves = x.reshape(-1, 2, group_size // 2)
    turned = torch.stack((-halves[:, 1], halves[:, 0]), dim=1).reshape(x.shape)
    return x * first + turned * second


def eager_coefficients(theta: Tensor, alpha: Tensor, variant: str, group_size: int) -> tuple[Tensor, Tensor]:
    """PEFT's preparation of the two vectors, part of each of its training steps."""
    if variant == "road_4":
        theta, alpha = (t.reshape(-1, 2, group_size) for t in (theta, alpha))
        return (alpha[:, 0] * theta[:, 0].cos()).flatten(), (alpha[:, 1] * theta[:, 1].sin()).flatten()
    if variant == "road_1":
        theta, alpha = (t.reshape(-1, group_size // 2).repeat_interleave(2, dim=0).flatten() for t in (theta, alpha))
    return alpha * theta.cos(), alpha * theta.sin()
