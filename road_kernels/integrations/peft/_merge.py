"""merge and unmerge: one pass over the weight per adapter; refused, if at all, before anything is written.

Sharded weights (DTensors, of FSDP2 or tensor parallelism) are written where they are, on every rank of their mesh.
"""

import functools

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor

from ... import road_merge, road_unmerge
from ...distributed.dispatch import gathered, is_sharded, replicated
from ...distributed.fsdp import is_gathered
from ...python_fallback import road_tables
from . import _options


def linear_merge(original):
    @functools.wraps(original)
    def merge(self, safe_merge=False, adapter_names=None):
        base = self.get_base_layer()
        if not _has_known_weight(base):
            return original(self, safe_merge, adapter_names)
        _refuse_gathered(base)
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.road_theta:
                inplace = _options.inplace and not safe_merge
                weight, bias = road_merge(*_data(base), **_adapter(self, name), inplace=inplace)
                if safe_merge:
                    _refuse_non_finite("weights", weight, name)
                    _refuse_non_finite("bias", bias, name)
                _store(base, weight, bias)
                self.merged_adapters.append(name)

    return merge


def linear_unmerge(original):
    @functools.wraps(original)
    def unmerge(self):
        base = self.get_base_layer()
        if not self.merged or not _has_known_weight(base):
            return original(self)
        _refuse_gathered(base)
        while self.merged_adapters:
            name = self.merged_adapters[-1]
            if name in self.road_theta:
                try:
                    _store(base, *road_unmerge(*_data(base), **_adapter(self, name), inplace=_options.inplace))
                except ValueError as error:  # a singular block: the type that PEFT's torch.linalg.inv raises
                    raise torch.linalg.LinAlgError(f"cannot unmerge adapter {name}: {error}") from error
            self.merged_adapters.pop()

    return unmerge


def quantized_merge(original):
    """PEFT's method, which dequantizes and quantizes, on a RoadMatrix; the bias is checked first."""

    @functools.wraps(original)
    def merge(self, safe_merge=False, adapter_names=None):
        if safe_merge:
            _check_bias(self, adapter_names)
        return original(self, safe_merge, adapter_names)

    return merge


def quantized_unmerge(original):
    @functools.wraps(original)
    def unmerge(self):
        merged = list(self.merged_adapters)
        try:
            return original(self)
        except Exception:  # PEFT removes an adapter from the list before it unmerges it from the weight
            self.merged_adapters[:] = merged[: len(self.merged_adapters) + 1]
            raise

    return unmerge


def _check_bias(layer, adapter_names) -> None:
    bias = layer.get_base_layer().bias
    names = layer.active_adapters if adapter_names is None else adapter_names
    if bias is None or isinstance(names, str):  # a string is refused by PEFT
        return
    bias = bias.data
    for name in names:
        if name in layer.road_theta and name not in layer.merged_adapters:
            adapter = _adapter(layer, name)
            if not all(table.isfinite().all() for table in road_tables(**adapter)):
                return  # PEFT finds the weight broken too, and raises
            bias = road_merge(bias[:, None], None, **adapter)[0][:, 0]
            _refuse_non_finite("bias", bias, name)


def _refuse_non_finite(what: str, tensor: Tensor | None, name: str) -> None:
    if tensor is not None and not gathered(tensor.isfinite().all()):
        raise ValueError(f"NaNs detected in the merged {what}. The adapter {name} seems to be broken")


def _has_known_weight(base) -> bool:
    """Not a quantized one, which is a subclass of Tensor with arithmetic of its own."""
    return type(base.weight.data) is Tensor or is_sharded(base.weight)


def _refuse_gathered(base) -> None:
    if is_gathered(base):
        raise RuntimeError(
            "FSDP has gathered the weight of this layer and would lose what is merged into it or unmerged from it: "
            "call reshard() of the FSDP modules first"
        )


def _data(base) -> tuple[Tensor, Tensor | None]:
    return base.weight.data, None if base.bias is None else base.bias.data


def _store(base, weight: Tensor, bias: Tensor | None) -> None:
    """Into the same Parameter objects, as PEFT does: a state_dict taken before keeps the old values.

    Of sharded ones into their memory, which is a part of FSDP's: a state_dict taken before has the new values.
    """
    for parameter, value in ((base.weight, weight), (base.bias, bias)):
        if value is None:
            continue
        if is_sharded(parameter):
            parameter.data.copy_(value)
        else:
            parameter.data = value


def _adapter(layer, name: str) -> dict:
    theta, alpha = layer.road_theta[name].data, layer.road_alpha[name].data
    if is_sharded(theta, alpha, weight := layer.get_base_layer().weight):  # each may be, without the others
        theta, alpha = gathered(theta), gathered(alpha)
        if is_sharded(weight):
            theta, alpha = replicated(theta, weight), replicated(alpha, weight)
    return {
        "theta": theta,
        "alpha": alpha,
        "variant": layer.variant[name],
        "group_size": layer.group_size[name],
    }
