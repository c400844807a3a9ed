"""Models that serve a mixed batch, request b with adapter b: RoAd by an AdapterBank, LoRA by batched products, and
both in PEFT."""

import copy
import warnings
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import road_kernels as rk

from .models import GROUP_SIZE, LINEARS, Lora, Road, adapted, replaced, shared_copy


class Batch:
    """The batch being served, shared by all layers of a model."""

    def __init__(self, device: torch.device | str):
        self.device, self.requests, self.ids = device, 0, None
        self._kept: dict[tuple[int, bool], Tensor] = {}  # a captured CUDA graph keeps reading them

    @contextmanager
    def of(self, requests: int, adapters: bool = True):
        """Request k with the adapter in slot k, or all of them without."""
        made = torch.arange(requests, dtype=torch.int32, device=self.device)
        self.requests = requests
        self.ids = self._kept.setdefault((requests, adapters), made if adapters else torch.full_like(made, -1))
        yield


class BankLinear(nn.Module):
    """RoAd on our kernels as in a server: rotates the layer's output in place by an AdapterBank's tables."""

    def __init__(self, layer: nn.Module, name: str, bank: rk.AdapterBank, batch: Batch):
        super().__init__()
        self.layer, self.name, self.bank, self.batch = layer, name, bank, batch

    def forward(self, x: Tensor) -> Tensor:
        return self.bank.rotate(self.name, self.layer(x), self.batch.ids, inplace=True)


class ServedBatch(nn.Module):
    """A model of road_kernels.integrations.transformers.serve, called as a model without adapters is."""

    def __init__(self, served: nn.Module, batch: Batch):
        super().__init__()
        self.served, self.batch = served, batch
        self.config, self.lm_head = served.config, served.lm_head

    def forward(self, **inputs):
        return self.served(**inputs, adapter_ids=self.batch.ids)

    def generate(self, inputs: Tensor, **how) -> Tensor:
        return self.served.generate(inputs, adapter_ids=self.batch.ids, **how)


class BmmLoraLinear(nn.Module):
    """LoRA at its best for this batch: the weights already stacked, two batched products, added in place."""

    def __init__(self, layer: nn.Module, a: Tensor, b: Tensor, batch: Batch):
        super().__init__()
        self.layer, self.a, self.b, self.batch = layer, a, b, batch

    def forward(self, x: Tensor) -> Tensor:
        n = self.batch.requests
        return self.layer(x).baddbmm_(torch.bmm(x, self.a[:n]), self.b[:n])


def banked(model: nn.Module, road: Road, batch: Batch) -> nn.Module:
    """The adapters in a bank, in slots 0, 1, ..."""
    count = len(next(iter(road.theta.values())))
    widths = {name: layer.out_features for name, layer in adapted(model).items()}
    bank = rk.AdapterBank(widths, count, group_size=GROUP_SIZE, device=batch.device)
    _fill(bank, road)
    return replaced(model, lambda name, layer: BankLinear(layer, name, bank, batch))


def served(model: nn.Module, road: Road, batch: Batch) -> nn.Module:
    """Packed projections, and the rotation inside the kernels that follow them; the adapters in slots 0, 1, ..."""
    from road_kernels.integrations.transformers import serve

    count = len(next(iter(road.theta.values())))
    made = serve(shared_copy(model), capacity=count, group_size=GROUP_SIZE, compact=True)
    _fill(made.bank, road)
    return ServedBatch(made, batch)


def _fill(bank: rk.AdapterBank, road: Road) -> None:
    for k in range(bank.capacity):
        layers = {name: (road.theta[name][k], road.alpha[name][k]) for name in bank.widths}
        slot = bank.load(str(k), rk.Adapter(layers, "road_1", GROUP_SIZE))
        assert slot == k, f"adapter {k} is in slot {slot}"


def bmm_lora(model: nn.Module, lora: Lora, batch: Batch) -> nn.Module:
    def make(name, layer):
        return BmmLoraLinear(layer, *(stack[name].to(layer.weight.dtype) for stack in (lora.a, lora.b)), batch)

    return replaced(model, make)


# ---- the same adapters in PEFT, named "0", "1", ...


def peft_road(model: nn.Module, road: Road, dtype: torch.dtype) -> nn.Module:
    from peft import RoadConfig

    def fill(name, layer):
        for kept, drawn in ((layer.road_theta, road.theta), (layer.road_alpha, road.alpha)):
            for adapter, values in enumerate(drawn[name]):
                kept[str(adapter)].data = values.to(dtype, copy=True)

    config = RoadConfig(variant="road_1", group_size=GROUP_SIZE, target_modules=list(LINEARS))
    return _peft_model(model, config, len(next(iter(road.theta.values()))), fill)


def peft_lora(model: nn.Module, lora: Lora, dtype: torch.dtype) -> nn.Module:
    from peft import LoraConfig

    def fill(name, layer):
        for kept, drawn in ((layer.lora_A, lora.a), (layer.lora_B, lora.b)):
            for adapter, values in enumerate(drawn[name]):
                kept[str(adapter)].weight.data = values.t().to(dtype).contiguous()

    count, _, rank = next(iter(lora.a.values())).shape
    return _peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LINEARS)), count, fill)


def _peft_model(model: nn.Module, config, count: int, fill: Callable[[str, nn.Module], None]) -> nn.Module:
    from peft import get_peft_model

    with warnings.catch_warnings():  # transformers', about functions that PEFT calls
        warnings.simplefilter("ignore", FutureWarning)
        made = get_peft_model(shared_copy(model), config, adapter_name="0")
        for adapter in range(1, count):
            made.add_adapter(str(adapter), copy.deepcopy(config))
    for name, layer in adapted(made.get_base_model()).items():
        fill(name, layer)
    return made.eval().requires_grad_(False)
