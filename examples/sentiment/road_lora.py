"""RoAd and LoRA together on every linear layer: what PEFT has no adapter for, in a module around each layer."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import road_kernels as rk

GROUP_SIZE = 64


@dataclass(frozen=True)
class RoadLoraConfig:
    rank: int
    scaling: float = 2.0  # LoRA's own in this example: lora_alpha = 2 r


class RoadLoraLinear(nn.Module):
    """Starts as the layer itself: R = I, and lora_b = 0 as LoRA does."""

    def __init__(self, base: nn.Linear, config: RoadLoraConfig):
        super().__init__()
        self.base, self.scaling = base, config.scaling
        self.theta = nn.Parameter(torch.zeros(base.out_features // 2))
        self.alpha = nn.Parameter(torch.ones(base.out_features // 2))
        self.lora_a = nn.Parameter(torch.empty(config.rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, config.rank))
        nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        adapter = self.theta, self.alpha, self.lora_a, self.lora_b
        h = self.base(x)
        return rk.road_lora_apply(h, x, *adapter, scaling=self.scaling, group_size=GROUP_SIZE, inplace=True)


def wrap(encoder: nn.Module, config: RoadLoraConfig) -> None:
    for module in list(encoder.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.Linear) and not isinstance(module, RoadLoraLinear):
                setattr(module, name, RoadLoraLinear(layer, config))


def unwrap(encoder: nn.Module) -> None:
    for module in list(encoder.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, RoadLoraLinear):
                setattr(module, name, layer.base)


def state_of(encoder: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in encoder.named_parameters() if p.requires_grad}
