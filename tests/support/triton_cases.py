"""The calls that the Triton kernels are compiled for ahead of time."""

from dataclasses import dataclass

import torch

from .problems import op_form, param_width


@dataclass(frozen=True)
class Case:
    """A call on x [rows, dim] with float32 parameters; `gap` elements between rows."""

    form: str = "road_1"
    dtype: torch.dtype = torch.bfloat16
    dim: int = 4096
    group_size: int = 64
    batched: bool = False
    rows: int = 16384
    adapters: int = 100
    gap: int = 0
    transposed: bool = False
    from_output: bool = False
    split: bool = False

    def __str__(self):
        changed = {name: value for name, value in vars(self).items() if value != getattr(Case, name)}
        return " ".join(f"{name}={value}".removeprefix("dtype=torch.") for name, value in changed.items()) or "plain"

    @property
    def shared(self):
        return self.form in ("road_1", "table_half")

    @property
    def words(self):
        return self.group_size == 2

    def arguments(self):
        width = param_width(self.form, self.dim)
        strides = (width, width) if self.batched else (0, 0)
        adapters = self.adapters if self.batched else 1
        return adapters, width, *strides, self.rows if self.batched else None, op_form(self.form), self.group_size

    def strides(self):
        row = self.dim + self.gap
        return (self.rows * row + 64, row, 1) if self.split else (row, 1)

    def shape(self):
        return (2, self.rows // 2, self.dim) if self.split else (self.rows, self.dim)
