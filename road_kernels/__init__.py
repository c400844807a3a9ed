"""road_kernels: RoAd adapters (2D Rotary Adaptation, arXiv 2409.00119) as fused kernels.

    import road_kernels as rk

    z = rk.road_apply(x, theta, alpha)                            # one adapter, trainable
    z = rk.road_apply_batched(x, theta, alpha, adapter_ids)       # one adapter per request
    z = rk.rotate_batched(x, *rk.road_tables(theta, alpha), ids)  # the same from ready tables, for serving

``python -m road_kernels`` shows what is usable here and runs a demonstration.
"""

from . import _ops  # noqa: F401  declares the ops before the extension's kernels are called
from ._backends import backend_info, set_backend, use_backend
from ._version import __version__
from .adapter import Adapter
from .algebra import combine, compose, identity, invert, select_pairs, tables_to_road4, transpose
from .bank import AdapterBank, BankFullError
from .functional import road_apply, road_apply_batched, rotate, rotate_batched
from .measures import angular_displacement, magnitude_change
from .tables import road_merge, road_tables, road_unmerge

__all__ = [
    "Adapter",
    "AdapterBank",
    "BankFullError",
    "__version__",
    "angular_displacement",
    "backend_info",
    "combine",
    "compose",
    "identity",
    "invert",
    "magnitude_change",
    "road_apply",
    "road_apply_batched",
    "road_merge",
    "road_tables",
    "road_unmerge",
    "rotate",
    "rotate_batched",
    "select_pairs",
    "set_backend",
    "tables_to_road4",
    "transpose",
    "use_backend",
]
