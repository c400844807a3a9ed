"""The rules for the arguments of RoAd + LoRA that RoAd alone does not have; those of RoAd's own are in checks.py."""

import math

import torch
from torch import Tensor

from . import checks


def check_lora(h: Tensor, x, lora_a, lora_b, scaling, batched: bool) -> None:
    """h has been checked. lora_a [r, in] and lora_b [D, r] for x [..., in], or [L, ...] for a bank."""
    checks.check_float_tensor("x", x)
    if x.dim() != h.dim() or x.shape[:-1] != h.shape[:-1]:
        raise ValueError(f"x must be {_shape(*h.shape[:-1], 'in')}, the input of the layer of h, got {list(x.shape)}")
    if x.shape[-1] == 0:
        raise ValueError("x must have features, got a last dimension of 0")
    check_factors(lora_a, lora_b, x.shape[-1], h.shape[-1], batched)
    for name, t in (("x", x), ("lora_a", lora_a), ("lora_b", lora_b)):
        if t.device != h.device:
            raise ValueError(f"{name} must be on the device of h ({h.device}), got {t.device}")
    if batched and isinstance(scaling, Tensor):
        checks.check_float_tensor("scaling", scaling)
        if scaling.shape != lora_a.shape[:1] or scaling.device != h.device:
            wanted = f"a number or [{lora_a.shape[0]}], one for each LoRA, on {h.device}"
            raise ValueError(f"scaling must be {wanted}, got {list(scaling.shape)} on {scaling.device}")
    else:
        check_number(scaling)


def check_factors(lora_a, lora_b, inputs: int, outputs: int, batched: bool = False) -> None:
    bank = ("L",) if batched else ()
    for name, t, wanted in (("lora_a", lora_a, (*bank, "r", inputs)), ("lora_b", lora_b, (*bank, outputs, "r"))):
        checks.check_float_tensor(name, t)
        if t.dim() != len(wanted) or any(n != w for n, w in zip(t.shape, wanted, strict=True) if isinstance(w, int)):
            hint = ""
            if t.dim() == len(wanted) + (-1 if batched else 1):
                hint = (
                    " (for one adapter use road_lora_apply)" if batched else " (for a bank use road_lora_apply_batched)"
                )
            raise ValueError(f"{name} must be {_shape(*wanted)}, got {list(t.shape)}{hint}")
    if lora_a.shape[-2] != lora_b.shape[-1] or lora_a.shape[:-2] != lora_b.shape[:-2]:
        raise ValueError(
            f"lora_b must have the rank{' and the number' if batched else ''} of lora_a, {list(lora_a.shape)}, "
            f"got {list(lora_b.shape)}"
        )


def check_number(scaling) -> None:
    if isinstance(scaling, bool) or not isinstance(scaling, (int, float)):
        raise TypeError(f"scaling must be a number, got {type(scaling).__name__}")
    if isinstance(scaling, float) and not math.isfinite(scaling):
        raise ValueError(f"scaling must be finite, got {scaling}")
    if abs(scaling) > (2**63 - 1 if isinstance(scaling, int) else torch.finfo(torch.float32).max):
        raise ValueError("scaling must fit float32, or an int 64 bits, got one that is larger")


def _shape(*sizes) -> str:
    return f"[{', '.join(map(str, sizes))}]"
