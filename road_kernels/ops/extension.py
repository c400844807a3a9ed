"""Loads road_kernels._C, or records why it could not."""

import warnings
from types import ModuleType

import torch

REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps road_kernels (from a checkout: make build)"


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split("+")[0].split(".")[:2])


def load() -> tuple[ModuleType | None, str | None]:
    """(module, None), or (None, the reason). "Not built" is quiet; "built but broken" warns once with the cause."""
    try:
        from .._build_info import REASON, TORCH_VERSION
    except ImportError:
        return None, f"not built: run {REBUILD}"
    if TORCH_VERSION is None:
        return None, REASON
    if _minor(TORCH_VERSION) != _minor(torch.__version__):
        reason = (
            f"the extension was built for torch {TORCH_VERSION}, but torch {torch.__version__} is installed: "
            f"rebuild it with {REBUILD}"
        )
    else:
        try:
            from .. import _C

            return _C, None
        except ImportError as error:
            reason = f"the extension does not load ({error}): rebuild it with {REBUILD}"
    warnings.warn(f"road_kernels: {reason}; until then the slower PyTorch path is used", RuntimeWarning, stacklevel=4)
    return None, reason


def left_out() -> dict[str, str]:
    """What setup.py left out of an extension that it built ("CUDA", "OpenMP"), and why."""
    try:
        from .. import _build_info
    except ImportError:
        return {}
    return getattr(_build_info, "WITHOUT", {})


EXTENSION, REASON = load()
WITHOUT = left_out()
