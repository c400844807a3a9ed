"""The fused ops as the GPU tests call them, by name."""

from dataclasses import dataclass

import torch
from gpu_work import ADAPTERS, make_ids
from support import fused_cases
from support.backends import DEVICE
from support.problems import make_x

from road_kernels.backends import registry

FORWARD = ("silu_mul", "add_rms_norm", "add_rms_norm in place", "rope", "rope in place")
BACKWARD = ("silu_mul backward", "silu_mul backward of x")
NORM_BACKWARD = "add_rms_norm backward of s"  # has no ids
WORK = *(f"{prefix}{name}" for prefix in ("", "batched ") for name in FORWARD + BACKWARD), NORM_BACKWARD
SIZE = {"silu_mul": 512, "add_rms_norm": 1024, "rope": 128}  # I, D, head_dim


@dataclass
class FusedWork:
    """A call on tensors that stay in place, as a CUDA graph captures it."""

    name: str
    kernels: str
    case: fused_cases.Case
    gz: torch.Tensor  # of add_rms_norm: the gradient of y

    def __call__(self) -> tuple[torch.Tensor, ...]:
        if "backward" not in self.name:
            keywords = {"inplace": True} if "in place" in self.name else {}
            return self.case.run(backend=self.kernels, **keywords)
        c, kernels = self.case, registry._loaded[self.kernels][0]
        if self.name == NORM_BACKWARD:
            gs, weight = c.args
            return (kernels.add_rms_norm_backward(self.gz, gs, c.x, weight, c.keywords["eps"]),)
        wanted = [True, *["of x" not in self.name] * 2]
        grads = kernels.rotate_silu_mul_backward(self.gz, c.x, c.r1, c.r2, c.ids, c.keywords["group_size"], wanted)
        return tuple(g for g in grads if g is not None)

    @property
    def ids(self) -> torch.Tensor | None:
        return self.case.ids

    def tensors(self) -> list[torch.Tensor]:
        c = self.case
        return [t for t in (c.x, *c.args, c.r1, c.r2, c.ids, self.gz) if t is not None]


def make_fused(name, kernels, form="table_half", rows=1200, group_size=64, dtype=torch.bfloat16, seed=0) -> FusedWork:
    op = next(op for op in fused_cases.OPS if op in name)
    ids = make_ids(rows, ADAPTERS, seed) if "batched" in name else None
    case = fused_cases.make(op, (rows,), SIZE[op], group_size, form=form, ids=ids, adapters=ADAPTERS, dtype=dtype)
    case.x = make_x(*case.x.shape, dtype=dtype, seed=seed)
    case.r1, case.r2 = case.r1 * (1 + seed / 16), case.r2 * (1 - seed / 16)
    if op == "rope":
        positions = (torch.arange(rows, device=DEVICE) * (2 * seed + 1)) % fused_cases.MAX_POSITION
        case.args = positions, case.args[1]
    width = SIZE["add_rms_norm" if op == "add_rms_norm" else "silu_mul"]
    return FusedWork(name, kernels, case, make_x(rows, width, dtype=dtype, seed=seed + 2))
