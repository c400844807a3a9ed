"""RoAd adapters (2D Rotary Adaptation, arXiv 2409.00119) as a kernel of the Hub: Triton on GPUs, PyTorch elsewhere.

The functions of the package road_kernels, without its compiled kernels; ``layers`` for ``kernelize``.
"""

from . import layers
from ._version import __version__
from .backends.registry import backend_info, set_backend, use_backend
from .functional import (
    road_apply,
    road_apply_batched,
    road_merge,
    road_tables,
    road_unmerge,
    rotate,
    rotate_add_rms_norm,
    rotate_batched,
    rotate_rope,
    rotate_silu_mul,
)

__all__ = [
    "__version__",
    "backend_info",
    "layers",
    "road_apply",
    "road_apply_batched",
    "road_merge",
    "road_tables",
    "road_unmerge",
    "rotate",
    "rotate_add_rms_norm",
    "rotate_batched",
    "rotate_rope",
    "rotate_silu_mul",
    "set_backend",
    "use_backend",
]
