"""RoAd in plain PyTorch: the readable specification of road_kernels.

z = R h, with R block-diagonal in 2x2 blocks (Liao & Monz, "3-in-1: 2D Rotary Adaptation", arXiv 2409.00119):

    z_i = r1_i h_i - r2_i h_j            r1 = alpha cos(theta)
    z_j = r1_j h_j + r2_j h_i            r2 = alpha sin(theta)

``group_size`` g says who is paired: inside every run of g features, feature k pairs with k + g/2.

Any device, any floating dtype, ordinary autograd of any order, torch.func and torch.compile. Every other backend is
tested against the same numbers. It imports torch and nothing else.
"""

from .algebra import compose_tables, inverse_or_refuse, road_4_parameters, select_pairs, transpose_tables
from .fused import (
    add_rms_norm_backward,
    rms_norm_weight_gradient,
    rotate_add_rms_norm,
    rotate_rope,
    rotate_silu_mul,
    rotate_silu_mul_backward,
)
from .gradients import road_tables_backward, rotate_backward, rotate_batched_backward
from .merge import road_merge, road_unmerge, unmerge_tables
from .road_lora import road_lora_apply, road_lora_apply_batched, road_lora_merge
from .rotate import road_apply, road_apply_batched, rotate, rotate_batched
from .tables import expand_tables, invert_tables, road_tables

__all__ = [
    "add_rms_norm_backward",
    "compose_tables",
    "expand_tables",
    "inverse_or_refuse",
    "invert_tables",
    "rms_norm_weight_gradient",
    "road_4_parameters",
    "road_apply",
    "road_apply_batched",
    "road_lora_apply",
    "road_lora_apply_batched",
    "road_lora_merge",
    "road_merge",
    "road_tables",
    "road_tables_backward",
    "road_unmerge",
    "rotate",
    "rotate_add_rms_norm",
    "rotate_backward",
    "rotate_batched",
    "rotate_batched_backward",
    "rotate_rope",
    "rotate_silu_mul",
    "rotate_silu_mul_backward",
    "select_pairs",
    "transpose_tables",
    "unmerge_tables",
]
