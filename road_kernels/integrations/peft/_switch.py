"""Replacing methods of PEFT's layer classes, and restoring them."""

import contextlib
import threading
from collections.abc import Iterator

from . import _options, _versions
from ._forward import adapter_dtype_forward, base_dtype_forward, formula
from ._matrix import delta_weight
from ._merge import linear_merge, linear_unmerge, quantized_merge, quantized_unmerge
from ._mixed_batch import mixed_batch_forward
from ._model_call import NAMES, head_forward, model_call

_LINEAR = {
    "forward": base_dtype_forward,
    "_mixed_batch_forward": mixed_batch_forward,
    "merge": linear_merge,
    "unmerge": linear_unmerge,
}
_QUANTIZED = {"forward": adapter_dtype_forward, "merge": quantized_merge, "unmerge": quantized_unmerge}
_LAYER = {NAMES: lambda original: None}
_MODEL = {"_enable_peft_forward_hooks": model_call}
_HEAD = {"forward": head_forward, **_LAYER}
# The formula too: an instance whose forward was wrapped before enable() keeps PEFT's method, which calls it.
_LINEAR_MODULE = {"_apply_road": formula}
_QUANTIZED_MODULE = {"_apply_road": formula, "_get_delta_weight": delta_weight}

_lock = threading.RLock()
_replaced: list[tuple[object, str, object, object]] = []  # owner, name, PEFT's, ours
_NONE = object()  # PEFT has no attribute of this name


def enable(*, inplace: bool = False) -> None:
    """Makes all RoAd layers of PEFT use these kernels, in every model of this process. May be called repeatedly.

    Args:
        inplace: overwrite the output of the base layer instead of writing new memory, and merge into the memory of the
            weights. Saves a buffer per layer and, in training, all that the rotation would save (see road_apply on the
            effect on gradients). Only where nothing else uses those tensors: no forward hook that keeps the base
            layer's output, no state_dict taken before a merge and used after it, and in training no op in place behind
            the layer, as ReLU(inplace=True): the backward pass reads the layer's output, and autograd's RuntimeError
            says that it was modified. Outputs of base layers with a full backward hook, which autograd lets nobody
            write, are not overwritten, nor are those that torch.compile or torch.jit trace.

    Raises:
        ImportError: RoAd layers that differ from those of the PEFT versions known here; nothing is replaced.
    """
    with _lock:
        if not _replaced:
            _replace_all()
        _options.inplace = inplace


def disable() -> None:
    """Restores PEFT's own code. May be called repeatedly.

    Raises:
        RuntimeError: other code replaced one of the methods after enable(); nothing is restored.
    """
    with _lock:
        for owner, name, _, ours in _replaced:
            if vars(owner)[name] is not ours:
                raise RuntimeError(
                    f"{owner.__name__}.{name} was replaced by other code after road_kernels.integrations.peft.enable():"
                    " undo that before disable()"
                )
        while _replaced:
            owner, name, theirs, _ = _replaced.pop()
            if theirs is _NONE:
                delattr(owner, name)
            else:
                setattr(owner, name, theirs)
        _options.inplace = False


@contextlib.contextmanager
def enabled(*, inplace: bool = False) -> Iterator[None]:
    """``with enabled(): ...``; restores the previous state after it. For the whole process, not one thread."""
    with _lock:
        before = is_enabled(), _options.inplace
        enable(inplace=inplace)
    try:
        yield
    finally:
        was_enabled, was_inplace = before
        if was_enabled:
            enable(inplace=was_inplace)
        else:
            disable()


def is_enabled() -> bool:
    return bool(_replaced)


def _replace_all() -> None:
    road = _versions.find()
    plan = [(road.layer.Linear, _LINEAR), (road.layer, _LINEAR_MODULE)]
    plan += [(road.layer.RoadLayer, _LAYER), (_versions._RoadModel, _MODEL), (_versions._Head, _HEAD)]
    if road.bnb is not None:
        plan += [(cls, _QUANTIZED) for cls in road.quantized] + [(road.bnb, _QUANTIZED_MODULE)]
    made = [
        (owner, name, original := vars(owner).get(name, _NONE), make(original))
        for owner, replacements in plan
        for name, make in replacements.items()
    ]
    for entry in made:
        owner, name, _, ours = entry
        setattr(owner, name, ours)
        _replaced.append(entry)
