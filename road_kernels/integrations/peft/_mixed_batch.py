"""Mixed batches: one adapter per sample, by ``adapter_names``, in one call per layer."""

import functools

import torch
from torch import Tensor

from ... import road_apply_batched
from ...distributed.dispatch import is_sharded, made_whole, replicated
from . import _options
from ._batch_plan import Batch, Run, batch_of, runs


def mixed_batch_forward(original):
    @functools.wraps(original)
    def _mixed_batch_forward(self, x, *args, adapter_names, **kwargs):
        result = self.base_layer(x, *args, **kwargs)
        if type(result) is not Tensor and not is_sharded(result):  # a subclass, with arithmetic of its own
            return original(self, x, *args, adapter_names=adapter_names, **kwargs)
        return apply_mixed_batch(self, result, adapter_names)

    return _mixed_batch_forward


def apply_mixed_batch(layer, result: Tensor, adapter_names: list[str]) -> Tensor:
    """``result`` [B, ..., D], sample b rotated by adapter_names[b]; untouched for "__base__" and unknown names.

    Written over ``result`` where no gradient is recorded, as PEFT does.
    """
    for run in _runs(layer, adapter_names, result.device):
        ids, sharded = run.ids, type(result) is not Tensor and is_sharded(result)
        theta, alpha = stack(layer, run, sharded)
        if sharded:
            ids = replicated(ids, result)
        recorded = (torch.is_grad_enabled() and (result.requires_grad or theta.requires_grad)) or torch.jit.is_tracing()
        result = road_apply_batched(
            result,
            theta,
            alpha,
            ids,
            variant=run.variant,
            group_size=run.group_size,
            inplace=_options.may_write(result) or (not recorded and result.is_contiguous()),
        )
    return result


def _runs(layer, names: list[str], device: torch.device) -> list[Run]:
    if torch.compiler.is_dynamo_compiling():
        # Names that are no input of the graph are constants of it.
        return names.every if isinstance(names, Batch) else runs(layer, dict.fromkeys(names), names, device)
    if not isinstance(names, Batch) or names.device != device:
        names = batch_of(layer, list(names), device)
    return names.used


# variant -> how many of the two slots of a parameter, and of the two rows of a pair, have values of their own.
_OWN = {"road_1": (1, 1), "road_2": (1, 2), "road_4": (2, 2)}


def stack(layer, run: Run, sharded: bool = False) -> tuple[Tensor, Tensor]:
    """theta and alpha of all adapters of the run, [A, P] each, packed as its widest variant; sharded ones replicated.

    One launch, and two or three more where variants are mixed. Built in every call from the current parameters, so it
    cannot be stale, also when a CUDA graph replays it: writes through ``.data``, fused optimizers and sharding wrappers
    leave no trace that a cache could check. It costs, for 16 adapters of D = 4096 in bfloat16 on one core of an AMD
    EPYC, 38 us more than a ready table, beside 2800 us for the base layer.
    """
    parts = []
    for variant, names in run.names.items():
        parameters = [_parameter(layer, of, name) for of in ("road_theta", "road_alpha") for name in names]
        if sharded:
            parameters = [made_whole(parameter) for parameter in parameters]
        part = torch.cat(parameters).view(2, len(names), -1)
        if variant != run.variant:
            half = run.group_size // 2
            shape = 2, len(names), -1
            part = part.view(*shape, *_OWN[variant], half).expand(*shape, *_OWN[run.variant], half).reshape(shape)
        parts.append(part)
    theta, alpha = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return theta, alpha


def _parameter(layer, of: str, name: str) -> Tensor:
    """layer.road_theta[name], for instance, past the __getattr__ of nn.Module and ParameterDict."""
    parameters = layer._modules[of]
    parameter = parameters._parameters.get(name)
    return parameters[name] if parameter is None else parameter
