"""The three fused ops on one shape of call, and their answers in float64 by numpy."""

from dataclasses import dataclass, field

import numpy as np
import torch
from support import oracle
from support.backends import DEVICE
from support.expected import f64, row_ids
from support.problems import make_params, make_x

import road_kernels as rk

OPS = ("silu_mul", "add_rms_norm", "rope")
EPS = 1e-5
MAX_POSITION = 40


@dataclass
class Case:
    """Tensors of a call. `args`: what stands between x and r1."""

    op: str
    x: torch.Tensor
    args: tuple
    r1: torch.Tensor
    r2: torch.Tensor
    ids: torch.Tensor | None
    keywords: dict = field(default_factory=dict)

    def run(self, **keywords) -> tuple[torch.Tensor, ...]:
        return self.run_on(self.x, *self.args, self.r1, self.r2, **keywords)

    def run_on(self, *tensors, **keywords) -> tuple[torch.Tensor, ...]:
        result = getattr(rk, f"rotate_{self.op}")(*tensors, self.ids, **self.keywords, **keywords)
        return result if isinstance(result, tuple) else (result,)

    @property
    def differentiable(self) -> list[torch.Tensor]:
        args = self.args if self.op == "add_rms_norm" else ()
        return [self.x, *args, self.r1, self.r2]

    def run_differentiable(self, *tensors, **keywords):
        """run_on for replacements of `differentiable`."""
        x, *args, r1, r2 = tensors
        return self.run_on(x, *(args or self.args), r1, r2, **keywords)


def make(
    op: str,
    leading: tuple[int, ...],
    size: int,
    group_size: int,
    *,
    form: str = "table_half",
    ids: torch.Tensor | None = None,
    adapters: int = 4,
    dtype: torch.dtype = torch.float32,
    param_dtype: torch.dtype = torch.float32,
    x: torch.Tensor | None = None,
    **rope,
) -> Case:
    """`size`: I of silu_mul, D of add_rms_norm, head_dim of rope (3 heads of q, 2 of k and of v)."""
    dim = {"silu_mul": 2 * size, "add_rms_norm": size, "rope": 7 * size}[op]
    x = make_x(*leading, dim, dtype=dtype) if x is None else x
    r1, r2 = make_params(form, None if ids is None else adapters, dim, dtype=param_dtype)
    keywords = {"group_size": group_size}
    args = ()
    if op == "add_rms_norm":
        weight = (make_x(dim, seed=8) / 4 + 1).to(param_dtype)
        args = make_x(*leading, dim, dtype=dtype, seed=7), weight
        keywords["eps"] = EPS
    if op == "rope":
        keywords |= {"num_heads": 3, "num_kv_heads": 2, "head_dim": size, "is_neox": rope.get("is_neox", True)}
        args = rope.get("positions"), make_cache(rope.get("rotary_dim", size), rope.get("cache_dtype", x.dtype))
        if args[0] is None:
            generator = torch.Generator().manual_seed(9)
            args = torch.randint(0, MAX_POSITION, leading, generator=generator, device="cpu").to(DEVICE), args[1]
    return Case(op, x, args, r1, r2, ids, keywords)


def make_cache(rotary_dim: int, dtype: torch.dtype) -> torch.Tensor:
    frequency = 100.0 ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64, device="cpu") / rotary_dim)
    angle = torch.arange(MAX_POSITION, dtype=torch.float64, device="cpu")[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=-1).to(dtype).to(DEVICE)


def expect(case: Case) -> list[oracle.Result]:
    x = f64(case.x).reshape(-1, case.x.shape[-1])
    r1, r2 = f64(case.r1), f64(case.r2)
    if case.ids is None:
        r1, r2 = r1[None], r2[None]
    h = oracle.forward(x, r1, r2, row_ids(case.x, case.ids), "table", case.keywords["group_size"])
    h.magnitude = np.maximum(h.magnitude, np.abs(h.value))  # rows without an adapter have none of their own
    shaped = lambda r: oracle.Result(*(a.reshape(*case.x.shape[:-1], a.shape[-1]) for a in (r.value, r.magnitude)))  # noqa: E731
    return [shaped(r) for r in {"silu_mul": _silu_mul, "add_rms_norm": _add_rms_norm, "rope": _rope}[case.op](case, h)]


def _silu_mul(case, h):
    width = h.value.shape[1] // 2
    gate, up = h.value[:, :width], h.value[:, width:]
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-gate))
    silu = gate * sigmoid
    slope = np.abs(sigmoid * (1 + gate * (1 - sigmoid)) * up)
    # exp(-gate) has a relative error of its own and that of gate.
    through_exp = np.abs(silu * up) * (1 + np.abs(gate))
    magnitude = slope * h.magnitude[:, :width] + np.abs(silu) * h.magnitude[:, width:] + through_exp
    return [oracle.Result(silu * up, magnitude)]


def _add_rms_norm(case, h):
    residual, weight = f64(case.args[0]).reshape(h.value.shape), f64(case.args[1])
    s = h.value + residual
    s_magnitude = h.magnitude + np.abs(residual) + np.abs(s)
    scale = 1 / np.sqrt((s**2).mean(-1, keepdims=True) + EPS)
    through_scale = (np.abs(s) * s_magnitude).mean(-1, keepdims=True) * scale**3
    magnitude = np.abs(weight) * (scale * s_magnitude + np.abs(s) * through_scale)
    return [oracle.Result(weight * s * scale, magnitude), oracle.Result(s, s_magnitude)]


def _rope(case, h):
    positions, cache = case.args
    head_dim, rotary_dim = case.keywords["head_dim"], cache.shape[1]
    cache = f64(cache)
    at = np.broadcast_to(positions.cpu().numpy(), case.x.shape[:-1]).reshape(-1)
    cos, sin = cache[at, : rotary_dim // 2], cache[at, rotary_dim // 2 :]
    value, magnitude = h.value.copy(), h.magnitude.copy()
    turned = case.keywords["num_heads"] + case.keywords["num_kv_heads"]
    for head in range(turned):
        for k in range(rotary_dim // 2):
            a, b = (k, k + rotary_dim // 2) if case.keywords["is_neox"] else (2 * k, 2 * k + 1)
            a, b = head * head_dim + a, head * head_dim + b
            c, s = cos[:, k], sin[:, k]
            value[:, a] = h.value[:, a] * c - h.value[:, b] * s
            value[:, b] = h.value[:, b] * c + h.value[:, a] * s
            magnitude[:, a] = h.magnitude[:, a] * np.abs(c) + h.magnitude[:, b] * np.abs(s)
            magnitude[:, b] = h.magnitude[:, b] * np.abs(c) + h.magnitude[:, a] * np.abs(s)
    return [oracle.Result(value, magnitude)]
