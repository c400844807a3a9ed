"""The public functions on tensors; nothing here knows of serving or integrations."""

from .fused import rotate_add_rms_norm, rotate_rope, rotate_silu_mul
from .lora_merge import road_lora_merge, road_lora_unmerge
from .merge import road_merge, road_unmerge
from .road_lora import road_lora_apply, road_lora_apply_batched
from .rotate import road_apply, road_apply_batched, rotate, rotate_batched
from .tables import road_tables

__all__ = [
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
]
