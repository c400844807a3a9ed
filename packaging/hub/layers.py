"""Layers for ``kernelize``: no state of their own, and no method but ``forward``."""

import torch

from . import peft_linear


class RoadLinear(torch.nn.Module):
    """In place of ``forward`` of PEFT's ``peft.tuners.road.layer.Linear``, whose attributes it uses."""

    has_backward = True
    can_torch_compile = True

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return peft_linear.forward(self, x, args, kwargs)
