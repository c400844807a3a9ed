"""The torch ops: schemas, fake kernels, and the PyTorch implementation that serves every device without a kernel.

    rotate(x, p, q, adapter_ids, form, group_size) -> z
    rotate_(x!, p, q, adapter_ids, form, group_size, check_invertible)
    rotate_backward(grad, saved, p, q, adapter_ids, form, group_size, from_output, output_mask) -> (gx, gp, gq)
    mix_rows(w, r1, r2, group_size) -> R w
    mix_rows_(w!, r1, r2, group_size)

``form`` says what p and q hold: "road_1", "road_2", "road_4" (theta and alpha) or "table" (r1 and r2).
``adapter_ids`` is None for one adapter, p and q being [P] then and [A, P] otherwise. ``saved`` is x, or z if
``from_output``. Gradients that ``output_mask`` does not ask for are None. mix_rows is rotate for w [D, N]
whose rows are the features, without a gradient. csrc/binding registers the compiled kernels.
"""

import torch

from .backends import python as plain

_PARAMS = "Tensor p, Tensor q, Tensor? adapter_ids, str form, int group_size"
_library = torch.library.Library("road_kernels", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_library.define(f"rotate(Tensor x, {_PARAMS}) -> Tensor", tags=_TAGS)
_library.define(f"rotate_(Tensor(a!) x, {_PARAMS}, bool check_invertible) -> ()", tags=_TAGS)
_library.define(
    f"rotate_backward(Tensor grad, Tensor saved, {_PARAMS}, bool from_output, bool[3] output_mask)"
    " -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
_library.define("mix_rows(Tensor w, Tensor r1, Tensor r2, int group_size) -> Tensor", tags=_TAGS)
_library.define("mix_rows_(Tensor(a!) w, Tensor r1, Tensor r2, int group_size) -> ()", tags=_TAGS)

for _name in ("rotate", "rotate_", "rotate_backward", "mix_rows", "mix_rows_"):
    _library.impl(_name, getattr(plain, _name), "CompositeExplicitAutograd")


def _check_fake(x, p, q, adapter_ids):
    """Tensors of several devices reach a fake kernel when one of them is a meta tensor."""
    if any(t is not None and t.device != x.device for t in (p, q, adapter_ids)):
        raise ValueError("all tensors must be on one device")


def _contiguous_like(t):
    return t.new_empty(t.shape)


@torch.library.register_fake("road_kernels::rotate", lib=_library)
def _(x, p, q, adapter_ids, form, group_size):
    _check_fake(x, p, q, adapter_ids)
    return _contiguous_like(x)


@torch.library.register_fake("road_kernels::rotate_", lib=_library)
def _(x, p, q, adapter_ids, form, group_size, check_invertible):
    _check_fake(x, p, q, adapter_ids)


@torch.library.register_fake("road_kernels::rotate_backward", lib=_library)
def _(grad, saved, p, q, adapter_ids, form, group_size, from_output, output_mask):
    _check_fake(grad, p, q, adapter_ids)
    _check_fake(saved, grad, q, adapter_ids)
    return tuple(_contiguous_like(t) if wanted else None for t, wanted in zip((saved, p, q), output_mask, strict=True))


@torch.library.register_fake("road_kernels::mix_rows", lib=_library)
def _(w, r1, r2, group_size):
    _check_fake(w, r1, r2, None)
    return _contiguous_like(w.t()).t() if plain.is_transposed(w) else _contiguous_like(w)


@torch.library.register_fake("road_kernels::mix_rows_", lib=_library)
def _(w, r1, r2, group_size):
    _check_fake(w, r1, r2, None)


rotate = torch.ops.road_kernels.rotate.default
rotate_ = torch.ops.road_kernels.rotate_.default
rotate_backward = torch.ops.road_kernels.rotate_backward.default
mix_rows = torch.ops.road_kernels.mix_rows.default
mix_rows_ = torch.ops.road_kernels.mix_rows_.default
