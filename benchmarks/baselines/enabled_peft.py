"""A RoAd layer of PEFT with our integration enabled, and the two calls that it is made of."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import road_kernels as rk


class _Model(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def enabled_peft_layer(
    device: torch.device | str = "cpu", width: int = 128
) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A bfloat16 layer [width, width] with one road_1 adapter, and a function of the same: its base layer and
    road_apply. The integration is enabled from then on. Raises ImportError without PEFT."""
    from peft import RoadConfig, get_peft_model

    from road_kernels.integrations import peft as road_peft

    torch.manual_seed(0)
    config = RoadConfig(target_modules=["layer"], init_weights=False)
    model = get_peft_model(_Model(width).to(device, torch.bfloat16), config)
    road_peft.enable()
    layer = model.base_model.model.layer
    base, theta, alpha = layer.base_layer, layer.road_theta["default"], layer.road_alpha["default"]
    return layer, lambda x: rk.road_apply(base(x), theta, alpha, group_size=config.group_size)
