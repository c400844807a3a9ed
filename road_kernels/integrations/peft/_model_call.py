"""A mixed batch of a whole model: how adapter_names reach its layers, and the heads of modules_to_save.

PEFT registers hooks that add adapter_names to the arguments of every layer. A compiled block does not see hooks that
were not there when it was compiled (torch.compile guards no hooks), and would go on with the active adapter. So the
names are an attribute of the layers here, which is guarded, for as long as the call takes, whether it raises or not.
"""

import contextlib
import functools

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ._batch_plan import NO_ADAPTER, batch_of
from ._versions import _layer

try:
    from torch._dynamo.eval_frame import skip_code
except ImportError:  # then a compiled layer is compiled anew for other adapter_names
    skip_code = None

# Of a layer or head, during a call: its names, once for each number of rows that the call may have. None of the class
# otherwise, which torch.compile guards; that vars() lacks a name, it does not.
NAMES = "_road_adapter_names"


def takes_batch(original):
    """Makes of a forward with ``adapter_names`` one that also has those of a call of the whole model."""

    def decorate(run):
        # torch.compile of a layer leaves this frame out and begins in ``run``, for which names are an input then.
        @functools.wraps(original)
        def forward(self, x, *args, **kwargs):
            if self._road_adapter_names is not None:
                kwargs["adapter_names"] = _of_rows(self._road_adapter_names, len(x))
            elif kwargs.get("adapter_names") is not None and not torch.compiler.is_dynamo_compiling():
                kwargs["adapter_names"] = _outside_of_graphs(self, kwargs["adapter_names"], x.device)
            return run(self, x, *args, **kwargs)

        if skip_code is not None:
            skip_code(forward.__code__)
        forward.takes_batch = True
        return forward

    return decorate


@functools.partial(torch.compiler.disable, reason="names become ids")
def _outside_of_graphs(layer, names, device: torch.device):
    return batch_of(layer, list(names), device)


def _of_rows(candidates: tuple[list[str], ...], rows: int) -> list[str]:
    """The names for an input of ``rows``, or the first, which PEFT then finds to be too many or too few."""
    for names in candidates:
        if len(names) == rows:
            return names
    return candidates[0]


def model_call(original):
    """PEFT's _enable_peft_forward_hooks."""

    @functools.wraps(original)
    @contextlib.contextmanager
    def _enable_peft_forward_hooks(self, *args, **kwargs):
        names = kwargs.get("adapter_names")
        layers = _parts(self, _layer.RoadLayer) if names is not None and not self.training else []
        if not layers or not _are_known(names, layers):
            with original(self, *args, **kwargs):  # which refuses what is wrong
                yield
            return
        candidates = [list(names)]
        if (times := _repeats(self.model, kwargs)) > 1:
            candidates.append([name for name in names for _ in range(times)])
        # Whatever a head says: PEFT 0.18 disables those that the active adapter lacks.
        disabled = all(layer.disable_adapters for layer in layers)
        heads = [] if disabled else _parts(self, AuxiliaryTrainingWrapper)
        undo = contextlib.ExitStack()
        try:
            for module in (*layers, *heads):
                undo.callback(_give(module, candidates))
            yield
        finally:
            undo.close()

    return _enable_peft_forward_hooks


def _parts(model: nn.Module, kind: type) -> list:
    return [module for module in model.modules() if isinstance(module, kind)]


def _are_known(names, layers) -> bool:
    known = {NO_ADAPTER}.union(*(layer.road_theta for layer in layers))
    return known.issuperset(names)


def _repeats(model: nn.Module, kwargs: dict) -> int:
    """How many rows generate makes of each: one a beam, or one a returned sequence."""
    configs = kwargs.get("generation_config"), getattr(model, "generation_config", None)
    times = 1
    for option in ("num_beams", "num_return_sequences"):
        values = kwargs.get(option), *(getattr(config, option, None) for config in configs)
        times = max(times, next((value for value in values if isinstance(value, int)), 1))
    return times


def _give(module: nn.Module, candidates: list[list[str]]):
    """Gives a layer or head its names; returns the function that takes them away."""
    if "forward" in module.__dict__ or not hasattr(type(module).forward, "takes_batch"):
        # A forward that was wrapped before enable(), or is another library's: it knows PEFT's way only.
        hook = functools.partial(_add_names, candidates)
        return module.register_forward_pre_hook(hook, with_kwargs=True).remove
    if isinstance(module, _layer.RoadLayer):
        parameter = next(iter(module.road_theta.values()), None)
        if parameter is not None and not torch.compiler.is_compiling():
            device = parameter.device
            candidates = [batch_of(module, names, device) for names in candidates]
    before = module._road_adapter_names
    module._road_adapter_names = tuple(candidates)
    return functools.partial(_restore, module, before)


def _restore(module: nn.Module, before) -> None:
    if before is None and not torch.compiler.is_compiling():  # which cannot delete what the call has set
        del module._road_adapter_names
    else:
        module._road_adapter_names = before


def _add_names(candidates, module, args, kwargs):
    rows = len(args[0]) if args else len(candidates[0])
    return args, {**kwargs, "adapter_names": _of_rows(candidates, rows)}


def head_forward(original):
    """PEFT's AuxiliaryTrainingWrapper, of modules_to_save: every row its own head, or the original one."""

    @functools.wraps(original)
    def forward(self, *args, **kwargs):
        if self._road_adapter_names is None:
            return original(self, *args, **kwargs)
        (x, *rest), names = args, self._road_adapter_names
        names = [name if name in self._adapters else NO_ADAPTER for name in _of_rows(names, len(x))]
        self._check_forward_args(x, adapter_names=names)
        if len(set(names)) > 1:
            return self._mixed_batch_forward(x, *rest, adapter_names=names, **kwargs)
        if not names or names[0] == NO_ADAPTER:
            return self._forward_wrapped_passthrough(x, *rest, **kwargs)
        return self._forward_wrapped_mixed_batch(x, names[0], *rest, **kwargs)

    forward.takes_batch = True
    return forward
