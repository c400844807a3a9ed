"""The torch ops: schemas and fake kernels.

    rotate(x, p, q, adapter_ids, form, group_size, overlap=False) -> z
    rotate_(x!, p, q, adapter_ids, form, group_size, check_invertible, overlap=False)
    rotate_backward(grad, saved, p, q, adapter_ids, form, group_size, from_output, output_mask) -> (gx, gp, gq)
    merge(w, r1, r2, group_size) -> R w
    merge_(w!, r1, r2, group_size)
    tables(p, q, form, group_size, dtype) -> (r1, r2)

``form`` says what p and q hold: "road_1", "road_2", "road_4" (theta and alpha) or "table" (r1 and r2).
``adapter_ids`` is None for one adapter, p and q being [P] then and [A, P] otherwise. ``saved`` is x, or z if
``from_output``. Gradients that ``output_mask`` does not ask for are None. ``overlap``: see road_kernels.rotate; a
backend may ignore it. merge is rotate for w [D, N] whose rows are the features, without a gradient. tables is for the
forms with angles, [P] or [A, P]; its ``dtype`` is float32 or float64.

Kernels register themselves: csrc/binding for the CPU and CUDA, road_kernels/backends for the others.
"""

import warnings

import torch

from . import checks

# Also in csrc/binding/arguments.h.
NAMESPACE = "road_kernels"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")

_PARAMS = "Tensor p, Tensor q, Tensor? adapter_ids, str form, int group_size"
_SCHEMAS = {
    "rotate": f"(Tensor x, {_PARAMS}, bool overlap=False) -> Tensor",
    "rotate_": f"(Tensor(a!) x, {_PARAMS}, bool check_invertible, bool overlap=False) -> ()",
    "rotate_backward": f"(Tensor grad, Tensor saved, {_PARAMS}, bool from_output, bool[3] output_mask)"
    " -> (Tensor, Tensor, Tensor)",
    "merge": "(Tensor w, Tensor r1, Tensor r2, int group_size) -> Tensor",
    "merge_": "(Tensor(a!) w, Tensor r1, Tensor r2, int group_size) -> ()",
    "tables": "(Tensor p, Tensor q, str form, int group_size, ScalarType dtype) -> (Tensor, Tensor)",
}
OPS = tuple(_SCHEMAS)
# In torch.ops, where exported programs and compiled graphs hold the name.
_TORCH_NAMES = {"merge": "mix_rows", "merge_": "mix_rows_"}


def torch_name(op: str) -> str:
    """The name of an op in torch.ops.road_kernels."""
    return _TORCH_NAMES.get(op, op)


for _op, _schema in _SCHEMAS.items():
    _tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    LIBRARY.define(torch_name(_op) + _schema, tags=_tags)


def register_backend(module, dispatch_key: str) -> None:
    """Makes the functions of ``module``, named as the ops, their kernels for ``dispatch_key``, replacing others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*previously registered kernel")
        for op in OPS:
            LIBRARY.impl(torch_name(op), getattr(module, op), dispatch_key)


def is_transposed(w: torch.Tensor) -> bool:
    """Whether the elements of w's columns, and not those of its rows, are adjacent: merge keeps that layout."""
    return w.stride(1) != 1 and w.shape[1] > 1 and w.stride(0) == 1


def _register_fake(op: str):
    return torch.library.register_fake(f"{NAMESPACE}::{torch_name(op)}", lib=LIBRARY)


def _check_one_device(x, *others):
    """Tensors of several devices reach a fake kernel when one of them is a meta tensor."""
    if any(t is not None and t.device != x.device for t in others):
        raise ValueError("all tensors must be on one device")


def _contiguous_like(t):
    return t.new_empty(t.shape)


@_register_fake("rotate")
def _(x, p, q, adapter_ids, form, group_size, overlap=False):
    checks.check_arguments(x, p, q, adapter_ids, form, group_size)
    return _contiguous_like(x)


@_register_fake("rotate_")
def _(x, p, q, adapter_ids, form, group_size, check_invertible, overlap=False):
    checks.check_arguments(x, p, q, adapter_ids, form, group_size)


@_register_fake("rotate_backward")
def _(grad, saved, p, q, adapter_ids, form, group_size, from_output, output_mask):
    _check_one_device(grad, saved, p, q, adapter_ids)
    return tuple(_contiguous_like(t) if wanted else None for t, wanted in zip((saved, p, q), output_mask, strict=True))


@_register_fake("merge")
def _(w, r1, r2, group_size):
    _check_one_device(w, r1, r2)
    return _contiguous_like(w.t()).t() if is_transposed(w) else _contiguous_like(w)


@_register_fake("merge_")
def _(w, r1, r2, group_size):
    _check_one_device(w, r1, r2)


@_register_fake("tables")
def _(p, q, form, group_size, dtype):
    _check_one_device(p, q)
    width = p.shape[-1] // 2 if form == "road_4" else p.shape[-1]
    return p.new_empty((*p.shape[:-1], width), dtype=dtype), p.new_empty((*p.shape[:-1], width), dtype=dtype)


rotate, rotate_, rotate_backward, merge, merge_, tables = (
    getattr(getattr(torch.ops, NAMESPACE), torch_name(op)).default for op in OPS
)
