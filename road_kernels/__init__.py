"""road_kernels: RoAd adapters (2D Rotary Adaptation, arXiv 2409.00119) as fused kernels.

    import road_kernels as rk

    z = rk.road_apply(x, theta, alpha)                            # one adapter, trainable
    z = rk.road_apply_batched(x, theta, alpha, adapter_ids)       # one adapter per request
    z = rk.rotate_batched(x, *rk.road_tables(theta, alpha), ids)  # the same from ready tables, for serving

``python -m road_kernels`` shows what is usable here and runs a demonstration.
"""

from . import neighbours
from ._version import __version__
from .backends.registry import backend_info, set_backend, use_backend
from .functional import (
    algebra,
    related_adapters,
    road_apply,
    road_apply_batched,
    road_lora_apply,
    road_lora_apply_batched,
    road_lora_merge,
    road_lora_unmerge,
    road_merge,
    road_tables,
    road_unmerge,
    rotate,
    rotate_add_rms_norm,
    rotate_batched,
    rotate_rope,
    rotate_silu_mul,
)
from .functional.algebra import combine, compose, identity, invert, select_pairs, tables_to_road4, transpose
from .functional.measures import angular_displacement, cosine_similarity, magnitude_change
from .serving import Adapter, AdapterBank, BankFullError, BankLayer

__all__ = [
    "Adapter",
    "AdapterBank",
    "BankFullError",
    "BankLayer",
    "__version__",
    "algebra",
    "angular_displacement",
    "backend_info",
    "combine",
    "compose",
    "cosine_similarity",
    "identity",
    "invert",
    "magnitude_change",
    "neighbours",
    "related_adapters",
    "road_apply",
    "road_apply_batched",
    "road_lora_apply",
    "road_lora_apply_batched",
    "road_lora_merge",
    "road_lora_unmerge",
    "road_merge",
    "road_tables",
    "road_unmerge",
    "rotate",
    "rotate_add_rms_norm",
    "rotate_batched",
    "rotate_rope",
    "rotate_silu_mul",
    "select_pairs",
    "set_backend",
    "tables_to_road4",
    "transpose",
    "use_backend",
]
