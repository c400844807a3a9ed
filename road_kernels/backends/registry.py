"""The table of backends, and which of them a call uses."""

import contextlib
import importlib
import logging
import platform
import threading
import warnings
from collections.abc import Iterator
from types import ModuleType

import torch

from ..ops import schemas
from ..ops.extension import EXTENSION, WITHOUT

# In order of preference. A new backend is a file in road_kernels/backends and a name here.
TABLE = ("cuda", "cpu", "triton", "python")
logger = logging.getLogger(__name__)


class _Forced(threading.local):
    name: str | None = None


_forced = _Forced()
# The use_backend entered last, in any thread. torch.compile (2.11) guards a global but not a thread-local value, and
# would keep the choice that it traced first.
_forced_last: str | None = None
_default: str | None = None


def _load(name: str) -> tuple[ModuleType | None, str | None]:
    try:
        module = importlib.import_module(f".{name}", __package__)
    except ModuleNotFoundError as error:
        if error.name != f"{__package__}.{name}":
            return None, str(error)
        return None, "not part of this version"
    reason = module.unavailable()
    return (None, reason) if reason else (module, None)


_loaded = {name: _load(name) for name in TABLE}
for _name, (_, _reason) in _loaded.items():
    logger.debug("backend %s: %s", _name, f"not usable: {_reason}" if _reason else "usable")
if EXTENSION:
    EXTENSION.serve(*(_loaded[name][0] is not None for name in ("cpu", "cuda")))


def _count_choice(name: str | None, change: int) -> None:
    """While any thread asks for another backend than the compiled one of a device, no call there goes through C++."""
    if EXTENSION and name is not None:
        EXTENSION.count_choice(name, change)


def _serves(module: ModuleType, device_type: str) -> bool:
    return module.DEVICES is None or device_type in module.DEVICES


def _first_for(device_type: str) -> ModuleType:
    for name, (module, _) in _loaded.items():
        # Triton serves CPU tensors in its interpreter only, for tests: never chosen automatically.
        if module is not None and _serves(module, device_type) and (name, device_type) != ("triton", "cpu"):
            return module
    raise AssertionError("python serves every device")


# For torch.compile and torch.export, which call the registered ops: the extension registers its CUDA kernels when it is
# loaded, whether or not they run on this GPU.
if _loaded["cuda"][0] is None:
    schemas.register_backend(_first_for("cuda"), "CUDA")

_WITH_KERNELS = frozenset(d for d in ("cuda", "cpu") if _first_for(d) is not _loaded["python"][0])
# Filled when a device type is first seen; the lookup is then one dictionary access.
_automatic: dict[str, ModuleType] = {}


def _choose_automatically(device_type: str) -> ModuleType:
    module = _automatic[device_type] = _first_for(device_type)
    logger.info("%s tensors: backend %s", device_type, module.__name__.rpartition(".")[2])
    reason = _loaded["cpu"][1]
    if device_type == "cpu" and reason and reason.startswith("not built"):  # a broken one has warned at import
        warnings.warn(f"road_kernels runs on the slower PyTorch path: compiled CPU kernels {reason}", stacklevel=5)
    return module


def usable(name: str) -> ModuleType:
    """The backend of that name. Raises ValueError for an unknown one, RuntimeError for one not usable here."""
    if name not in _loaded:
        raise ValueError(f"backend must be one of {', '.join(map(repr, TABLE))}, got {name!r}")
    module, reason = _loaded[name]
    if module is None:
        raise RuntimeError(f"backend {name!r} is not usable here: {reason}")
    return module


def choose(name: str | None, device: torch.device) -> ModuleType:
    """The backend asked for by the call, by use_backend, or by set_backend; or the best for the device."""
    name = name or _forced.name or _default
    if name is None:
        return _automatic.get(device.type) or _choose_automatically(device.type)
    module = usable(name)
    if not _serves(module, device.type):
        raise RuntimeError(f"backend {name!r} serves {', '.join(module.DEVICES)} tensors, but x is on {device}")
    return module


def registered_for(device: torch.device) -> ModuleType:
    """The backend whose kernels torch.ops.road_kernels runs on this device."""
    return _first_for(device.type)


def is_traced_as_formula(name: str | None, device: torch.device) -> bool:
    """Whether torch.compile traces the formula, as ``choose`` chooses. Short: all it reads becomes a guard."""
    name = name or _forced_last or _default
    if name is None:
        return device.type not in _WITH_KERNELS
    return choose(name, device) is _loaded["python"][0]


def set_backend(name: str | None) -> None:
    """Use backend ``name`` ("cuda", "cpu", "triton", "python") for every call from now on; None: the best one.

    Raises ValueError for an unknown name, RuntimeError with the recorded reason for one that is not usable here.
    """
    global _default
    if name is not None:
        usable(name)
    _count_choice(_default, -1)
    _count_choice(name, 1)
    _default = name
    logger.info("set_backend(%r)", name)


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """``with use_backend("python"): ...``, for this thread only. Errors as set_backend."""
    if name is not None:
        usable(name)
    global _forced_last
    before, _forced.name = _forced.name, name
    before_last, _forced_last = _forced_last, name
    _count_choice(name, 1)
    try:
        yield
    finally:
        _count_choice(name, -1)
        _forced.name, _forced_last = before, before_last


def backend_info() -> dict:
    """What is usable here, and why the rest is not.

    Returns a dict: ``backends`` maps each name to {"usable": bool, "devices": [...] or "any", "reason": str or None};
    ``automatic`` maps device types to the backend chosen for them; ``build`` describes the compiled extension
    (torch, compiler, C++ standard, instruction set in use, CUDA and its architectures, what was left out and why) or is
    None.
    """
    backends = {
        name: {
            "usable": module is not None,
            "devices": None if module is None else "any" if module.DEVICES is None else list(module.DEVICES),
            "reason": reason,
        }
        for name, (module, reason) in _loaded.items()
    }
    return {
        "backends": backends,
        "automatic": {d: _first_for(d).__name__.rpartition(".")[2] for d in ("cuda", "cpu")},
        "build": EXTENSION.build_info() | {"without": WITHOUT} if EXTENSION else None,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
