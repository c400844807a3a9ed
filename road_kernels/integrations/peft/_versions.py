"""Finds PEFT's RoAd layers, and checks that they are those that this integration was written for.

forward, merge, unmerge and the formula are the same code in PEFT 0.18.0 to 0.21.2, which differ in the constructors and
update_layer only; those are not replaced.
"""

import inspect
from types import ModuleType
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import _disable_current_modes

from ...python_fallback import road_tables, rotate

try:
    import peft
    from peft.import_utils import is_bnb_available
    from peft.tuners.road import layer as _layer
    from peft.tuners.road.model import RoadModel as _RoadModel
    from peft.utils.other import AuxiliaryTrainingWrapper as _Head
except ImportError as error:
    raise ImportError(
        f"road_kernels.integrations.peft needs PEFT 0.18 or newer, with its RoAd layers: {error}"
    ) from error

_ANGLES = ("variant", "group_size", "road_theta", "road_alpha")
_METHODS = {
    "forward": ("self", "x", "args", "kwargs"),
    "merge": ("self", "safe_merge", "adapter_names"),
    "unmerge": ("self",),
}
_LINEAR_METHODS = {
    **_METHODS,
    "_mixed_batch_forward": ("self", "x", "args", "adapter_names", "kwargs"),
    "_check_forward_args": ("self", "x", "args", "kwargs"),
}
_MODEL_METHODS = {"_enable_peft_forward_hooks": ("self", "args", "kwargs")}
# Called on the heads of modules_to_save: with so many arguments, and these by name.
_HEAD_CALLS = {
    "_check_forward_args": (1, ("adapter_names",)),
    "_mixed_batch_forward": (1, ("adapter_names",)),
    "_forward_wrapped_mixed_batch": (2, ()),
    "_forward_wrapped_passthrough": (1, ()),
}
_FUNCTIONS = {"_apply_road": (*_ANGLES, "x"), "_get_delta_weight": _ANGLES}


class Road(NamedTuple):
    """The parts of peft.tuners.road. ``bnb`` is None without bitsandbytes."""

    layer: ModuleType
    bnb: ModuleType | None
    quantized: tuple[type, ...]


def find() -> Road:
    """Raises ImportError, in one sentence, if a replaced function takes other arguments or computes something else."""
    _check_parameters(_layer.Linear, _LINEAR_METHODS)
    _check_parameters(_layer, _FUNCTIONS)
    _check_parameters(_RoadModel, _MODEL_METHODS)
    _check_calls(_Head, _HEAD_CALLS)
    if _layer.RoadLayer.adapter_layer_names != ("road_theta", "road_alpha"):
        _refuse(f"RoadLayer has the parameters {_layer.RoadLayer.adapter_layer_names}")
    _check_formula()
    # PEFT imports bitsandbytes itself as soon as a RoAd model is made.
    if not is_bnb_available():
        return Road(_layer, None, ())
    from peft.tuners.road import bnb

    quantized = tuple(getattr(bnb, name) for name in ("Linear8bitLt", "Linear4bit") if hasattr(bnb, name))
    for cls in quantized:
        _check_parameters(cls, _METHODS)
    _check_parameters(bnb, _FUNCTIONS)
    return Road(_layer, bnb, quantized)


def _check_parameters(owner, expected: dict[str, tuple[str, ...]]) -> None:
    for name, parameters in expected.items():
        function = vars(owner).get(name)
        got = tuple(inspect.signature(function).parameters) if callable(function) else None
        if got != parameters:
            found = "is missing" if got is None else f"takes ({', '.join(got)})"
            _refuse(f"{owner.__name__}.{name}({', '.join(parameters)}) {found}")


def _check_calls(owner, expected: dict[str, tuple[int, tuple[str, ...]]]) -> None:
    for name, (count, names) in expected.items():
        function = vars(owner).get(name)
        if not callable(function):
            _refuse(f"{owner.__name__}.{name} is missing")
        try:
            inspect.signature(function).bind(*[None] * (1 + count), **dict.fromkeys(names))
        except TypeError as error:
            _refuse(f"{owner.__name__}.{name}: {error}")


def _check_formula() -> None:
    # With numbers, whatever FakeTensorMode, default dtype or default device enable() is called under.
    with _disable_current_modes(), torch.device("cpu"):
        x = torch.arange(1, 9, dtype=torch.float32)
        for variant, width in (("road_1", 4), ("road_2", 8), ("road_4", 16)):
            theta = torch.arange(width, dtype=torch.float32)
            theta, alpha = theta / 7, 1 + theta / 5
            want = rotate(x, *road_tables(theta, alpha, variant, 4), 4)
            if not torch.allclose(_layer._apply_road(variant, 4, theta, alpha, x), want, rtol=1e-5, atol=1e-5):
                _refuse(f"its formula for {variant} has changed")


def _refuse(what: str):
    raise ImportError(
        f"road_kernels.integrations.peft does not know the RoAd layers of PEFT {peft.__version__}: {what}; "
        "PEFT 0.18 to 0.21 are known"
    )
