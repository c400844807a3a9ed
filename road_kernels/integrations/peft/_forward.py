"""The forward of a RoAd layer with its active adapters."""

import functools

import torch
from torch import Tensor

from ... import compose, road_apply, road_tables, rotate
from ...distributed.dispatch import is_sharded
from . import _options
from ._mixed_batch import apply_mixed_batch
from ._model_call import takes_batch
from ._versions import _layer


def base_dtype_forward(original):
    """For PEFT's Linear, which returns the dtype of its base layer's output."""

    @takes_batch(original)
    def forward(self, x, *args, **kwargs):
        if self.disable_adapters or self.merged or kwargs.get("adapter_names") is not None:
            return original(self, x, *args, **kwargs)
        kwargs.pop("adapter_names", None)
        return apply_active(self, self._modules["base_layer"](x, *args, **kwargs))

    return forward


def adapter_dtype_forward(original):
    """For PEFT's bitsandbytes layers, which return the dtype of the adapter (float32 as a rule)."""

    @takes_batch(original)
    def forward(self, x, *args, **kwargs):
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is not None:
            _layer.Linear._check_forward_args(self, x, adapter_names=adapter_names)
        if self.disable_adapters or self.merged:
            return original(self, x, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        if adapter_names is not None:
            return apply_mixed_batch(self, result, adapter_names)
        dtype = _promised_dtype(self, result.dtype)
        # In the wider of the two dtypes, so that there is one rounding.
        return apply_active(self, result.to(torch.promote_types(result.dtype, dtype))).to(dtype)

    return forward


def _promised_dtype(layer, dtype: torch.dtype) -> torch.dtype:
    casts = getattr(layer, "cast_input_dtype_enabled", True) and not torch.is_autocast_enabled()
    for name in _active(layer):
        theta, alpha = layer.road_theta[name], layer.road_alpha[name]
        dtype = torch.promote_types(theta.dtype if casts else torch.promote_types(dtype, theta.dtype), alpha.dtype)
    return dtype


def formula(original):
    """PEFT's _apply_road: x rotated by one adapter, in the widest dtype of the three tensors."""

    @functools.wraps(original)
    def _apply_road(variant, group_size, road_theta, road_alpha, x):
        if type(x) is not Tensor:
            return original(variant, group_size, road_theta, road_alpha, x)
        dtype = torch.promote_types(x.dtype, torch.promote_types(road_theta.dtype, road_alpha.dtype))
        return road_apply(x.to(dtype), road_theta, road_alpha, variant=variant, group_size=group_size)

    return _apply_road


def _active(layer) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.road_theta]


def apply_active(layer, result: Tensor) -> Tensor:
    """``result`` [..., D] rotated by the active adapters, in its own dtype."""
    names = layer.active_adapters
    if len(names) == 1 and type(result) is Tensor:
        (name,) = names
        # Past the __getattr__ of nn.Module and ParameterDict, which take 3 us of the host; what is not there (a
        # parameter that a wrapper has made a plain attribute, an adapter of other layers) is looked for below.
        modules = layer._modules
        theta = modules["road_theta"]._parameters.get(name)
        if theta is not None:
            return road_apply(
                result,
                theta,
                modules["road_alpha"]._parameters[name],
                variant=layer.variant[name],
                group_size=layer.group_size[name],
                inplace=_options.may_write(result),
            )
    names = _active(layer)
    if not names:
        return result
    if type(result) is not Tensor and not is_sharded(result):
        return _by_formula_of_peft(layer, names, result)
    if len(names) == 1:
        (name,) = names
        theta, alpha, variant = layer.road_theta[name], layer.road_alpha[name], layer.variant[name]
        group_size = layer.group_size[name]
        inplace = _options.may_write(result)
        return road_apply(result, theta, alpha, variant=variant, group_size=group_size, inplace=inplace)
    return _apply_several(layer, names, result)


def _by_formula_of_peft(layer, names: list[str], result: Tensor) -> Tensor:
    """For subclasses of Tensor that have their own arithmetic."""
    dtype = result.dtype
    for name in names:
        theta, alpha = layer.road_theta[name], layer.road_alpha[name]
        result = layer._cast_input_dtype(result, theta.dtype)
        result = _layer._apply_road(layer.variant[name], layer.group_size[name], theta, alpha, result)
    return result.to(dtype)


def _apply_several(layer, names: list[str], result: Tensor) -> Tensor:
    """One rotation by the product of the adapters; one per run of equal group_size, rounded once at the end."""
    runs: list[tuple[int, list[str]]] = []
    for name in names:
        if runs and runs[-1][0] == layer.group_size[name]:
            runs[-1][1].append(name)
        else:
            runs.append((layer.group_size[name], [name]))
    dtype = result.dtype
    if len(runs) > 1 and dtype.itemsize < 4:
        result = result.float()
    for group_size, run in runs:
        tables = _tables(layer, run[0], result)
        for name in run[1:]:
            tables = compose(tables, _tables(layer, name, result), dim=result.shape[-1], group_size=group_size)
        result = rotate(result, *tables, group_size=group_size, inplace=_options.may_write(result))
    return result.to(dtype)


def _tables(layer, name: str, result: Tensor) -> tuple[Tensor, Tensor]:
    theta, alpha = layer.road_theta[name], layer.road_alpha[name]
    if result.dtype == torch.float64:
        theta, alpha = theta.double(), alpha.double()
    return road_tables(theta, alpha, variant=layer.variant[name], group_size=layer.group_size[name])
