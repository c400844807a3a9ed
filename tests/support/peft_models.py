"""Small models with PEFT's RoAd adapters, and the float64 answer for a layer."""

import copy

import torch
from peft import RoadConfig, get_peft_model
from support import oracle
from support.expected import f64
from support.problems import param_width
from torch import nn

VARIANTS = ("road_1", "road_2", "road_4")


class TwoLinears(nn.Module):
    def __init__(self, width: int = 128, dtype=torch.float32, inputs: int = 16):
        super().__init__()
        self.first = nn.Linear(inputs, width, dtype=dtype)
        self.second = nn.Linear(width, width, bias=False, dtype=dtype)

    def forward(self, x):
        return self.second(self.first(x).relu())


def config(variant="road_1", group_size=64, targets=("first", "second")) -> RoadConfig:
    return RoadConfig(variant=variant, group_size=group_size, target_modules=list(targets))


def randomize(model: nn.Module) -> nn.Module:
    """Sets angles and scales away from the identity, with well conditioned blocks."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "road_theta" in name:
                p.uniform_(-0.6, 0.6)
            elif "road_alpha" in name:
                p.uniform_(0.6, 1.4)
    return model


def make_model(*adapters, width=128, dtype=torch.float32, base=None, targets=("first", "second")):
    """Adapters "A", "B", ... given as (variant, group_size); the first is active. Parameters are float32 or wider."""
    adapters = adapters or (("road_1", 64),)
    model = get_peft_model(base or TwoLinears(width, dtype), config(*adapters[0], targets), adapter_name="A")
    for name, adapter in zip("BCDEFGH", adapters[1:], strict=False):
        model.add_adapter(name, config(*adapter, targets))
    model.base_model.set_adapter(["A"])
    return randomize(model)


def layers(model) -> list:
    return [m for m in model.modules() if hasattr(m, "road_theta")]


def first(model):
    return layers(model)[0]


def in_float64(model):
    return copy.deepcopy(model).double()


def matrix_of(layer, name):
    """R of one adapter, float64, from the explicit 2x2 blocks."""
    variant, group_size, dim = layer.variant[name], layer.group_size[name], layer.out_features
    theta, alpha = f64(layer.road_theta[name]), f64(layer.road_alpha[name])
    assert len(theta) == param_width(variant, dim)
    return oracle.matrix(*oracle.tables(theta, alpha, variant, dim, group_size), group_size)


def expect_rotated(h: torch.Tensor, *matrices) -> oracle.Result:
    """h [..., D] through the matrices in turn, with the magnitude that scales the rounding errors."""
    value, magnitude = f64(h), abs(f64(h))
    for m in matrices:
        value, magnitude = value @ m.T, magnitude @ abs(m).T
    return oracle.Result(value, magnitude)


# A mixed batch: sample b uses adapter NAMES[b].
BASE = "__base__"
NAMES = ["A", "C", BASE, "B", "A", "D"]
ADAPTERS = (("road_1", 64), ("road_2", 64), ("road_4", 64), ("road_1", 64))


def mixed_model(*adapters, **kwargs):
    return make_model(*(adapters or ADAPTERS), **kwargs).eval()


def expect_mixed(layer, x, names):
    h = layer.base_layer(x)
    rows = [expect_rotated(h[b], *([] if n == BASE else [matrix_of(layer, n)])) for b, n in enumerate(names)]
    return h, rows
