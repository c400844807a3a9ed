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


@dataclass(frozen=True)
class FusedCase:
    """A call of a fused op on contiguous rows: `dim` features of x, float32 tables; `gap` elements between rows.

    rotary_dim: default head_dim. own: tables are not compact.
    """

    op: str
    dtype: torch.dtype = torch.bfloat16
    dim: int = 4096
    group_size: int = 64
    own: bool = False
    batched: bool = False
    rows: int = 16384
    adapters: int = 100
    gap: int = 0
    head_dim: int = 128
    rotary_dim: int | None = None
    is_neox: bool = True
    cache_dtype: torch.dtype | None = None
    in_place: bool = False

    def __str__(self):
        changed = {k: v for k, v in vars(self).items() if k != "op" and v != getattr(FusedCase, k)}
        words = (f"{k}={v}".replace("torch.", "").removeprefix("dtype=") for k, v in changed.items())
        return " ".join((self.op, *words))

    def launches(self) -> dict:
        """{kernel: (its launch, the dtypes of its tensors)}"""
        from road_kernels.triton import prepare_fused

        x, r, ids = self.dtype, torch.float32, torch.int64 if self.batched else torch.float32
        width = self.dim if self.own else self.dim // 2
        tables = prepare_fused.Tables(1, width, 0, 0, None)
        if self.batched:
            tables = prepare_fused.Tables(self.adapters, width, width, width, self.rows)
        shape, strides = (self.rows, self.dim), (self.dim + self.gap, 1)
        of_z = (self.dim // 2, 1)
        if self.op == "silu_mul":
            found = {}
            for name, gradient in (("silu_mul", False), ("gradient", True)):
                launch = prepare_fused.silu_mul(0, shape, strides, of_z, x, True, tables, self.group_size, gradient)
                found[name] = launch, [x, r, r, ids, x, x]
            backward, reduce, _ = prepare_fused.silu_mul_backward(
                0, shape, of_z, strides, x, True, tables, self.group_size, (True, True, True)
            )
            scratch = torch.float64 if x == torch.float64 else torch.float32
            found["backward"] = backward, [x, x, x, r, r, ids, ids, scratch]
            found["reduce"] = reduce, [scratch, ids, r, r, r, r]
            return found
        if self.op == "add_rms_norm":
            all_strides = (strides, strides, (self.dim, 1), (self.dim, 1))
            args = (0, shape, all_strides, x, True, tables, 1e-6, self.group_size, self.in_place)
            backward = prepare_fused.add_rms_norm_backward(0, shape, (strides,) * 3, x, True, 1e-6)
            return {
                "add_rms_norm": (prepare_fused.add_rms_norm(*args), [x, x, x, r, r, ids, x, x]),
                "gradient": (backward, [x, x, x, x, x]),
            }
        rotary_dim, cache = self.rotary_dim or self.head_dim, self.cache_dtype or x
        all_heads = self.dim // self.head_dim
        heads = all_heads, max(1, all_heads - 8)
        launch = prepare_fused.rope(
            0, shape, (strides, strides), (1,), (4096, rotary_dim), rotary_dim, x, True, cache != torch.float64, tables,
            heads, self.head_dim, self.is_neox, self.group_size, self.in_place,
        )  # fmt: skip
        return {"rope": (launch, [x, torch.int64, cache, r, r, ids, x])}
