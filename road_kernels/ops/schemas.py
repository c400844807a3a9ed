"""The torch ops: schemas and fake kernels.

    rotate(x, p, q, adapter_ids, form, group_size, overlap=False) -> z
    rotate_(x!, p, q, adapter_ids, form, group_size, check_invertible, overlap=False)
    rotate_backward(grad, saved, p, q, adapter_ids, form, group_size, from_output, output_mask) -> (gx, gp, gq)
    merge(w, r1, r2, group_size) -> R w
    merge_(w!, r1, r2, group_size)
    tables(p, q, form, group_size, dtype) -> (r1, r2)
    rotate_silu_mul(x, r1, r2, adapter_ids, group_size) -> z
    rotate_silu_mul_backward(grad, x, r1, r2, adapter_ids, group_size, output_mask) -> (gx, gr1, gr2)
    rotate_add_rms_norm(x, residual, weight, r1, r2, adapter_ids, eps, group_size) -> (y, s)
    rotate_add_rms_norm_(x!, residual!, weight, r1, r2, adapter_ids, eps, group_size): y into x, s into residual
    add_rms_norm_backward(gy, gs, s, weight, eps) -> the gradient of s
    rotate_rope(qkv, positions, cos_sin_cache, r1, r2, adapter_ids, num_heads, num_kv_heads, head_dim, is_neox,
        group_size) -> z
    rotate_rope_(qkv!, ...)

``form`` says what p and q hold: "road_1", "road_2", "road_4" (theta and alpha) or "table" (r1 and r2).
``adapter_ids`` is None for one adapter, p and q being [P] then and [A, P] otherwise. ``saved`` is x, or z if
``from_output``. Gradients that ``output_mask`` does not ask for are None. ``overlap``: see road_kernels.rotate; a
backend may ignore it. merge is rotate for w [D, N] whose rows are the features, without a gradient. tables is for the
forms with angles, [P] or [A, P]; its ``dtype`` is float32 or float64. The last seven are described in
functional/fused.py; ``positions`` has the shape of qkv.shape[:-1], or broadcasts to it.

Kernels register themselves: csrc/binding for the CPU and CUDA, road_kernels/backends for the others.
"""

import warnings

import torch

from . import checks, fused_checks

# Also in csrc/binding/arguments.h.
NAMESPACE = "road_kernels"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")

_PARAMS = "Tensor p, Tensor q, Tensor? adapter_ids, str form, int group_size"
_TABLES = "Tensor r1, Tensor r2, Tensor? adapter_ids"
_NORM = f"{_TABLES}, float eps, int group_size"
_ROPE = (
    f"Tensor positions, Tensor cos_sin_cache, {_TABLES}, int num_heads, int num_kv_heads, int head_dim, "
    "bool is_neox, int group_size"
)
_SCHEMAS = {
    "rotate": f"(Tensor x, {_PARAMS}, bool overlap=False) -> Tensor",
    "rotate_": f"(Tensor(a!) x, {_PARAMS}, bool check_invertible, bool overlap=False) -> ()",
    "rotate_backward": f"(Tensor grad, Tensor saved, {_PARAMS}, bool from_output, bool[3] output_mask)"
    " -> (Tensor, Tensor, Tensor)",
    "merge": "(Tensor w, Tensor r1, Tensor r2, int group_size) -> Tensor",
    "merge_": "(Tensor(a!) w, Tensor r1, Tensor r2, int group_size) -> ()",
    "tables": "(Tensor p, Tensor q, str form, int group_size, ScalarType dtype) -> (Tensor, Tensor)",
    "rotate_silu_mul": f"(Tensor x, {_TABLES}, int group_size) -> Tensor",
    "rotate_silu_mul_backward": f"(Tensor grad, Tensor x, {_TABLES}, int group_size, bool[3] output_mask)"
    " -> (Tensor, Tensor, Tensor)",
    "rotate_add_rms_norm": f"(Tensor x, Tensor residual, Tensor weight, {_NORM}) -> (Tensor, Tensor)",
    "rotate_add_rms_norm_": f"(Tensor(a!) x, Tensor(b!) residual, Tensor weight, {_NORM}) -> ()",
    "add_rms_norm_backward": "(Tensor gy, Tensor gs, Tensor s, Tensor weight, float eps) -> Tensor",
    "rotate_rope": f"(Tensor qkv, {_ROPE}) -> Tensor",
    "rotate_rope_": f"(Tensor(a!) qkv, {_ROPE}) -> ()",
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


@_register_fake("rotate_silu_mul")
def _(x, r1, r2, adapter_ids, group_size):
    fused_checks.check_silu_mul(x, r1, r2, adapter_ids, group_size)
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


@_register_fake("rotate_silu_mul_backward")
def _(grad, x, r1, r2, adapter_ids, group_size, output_mask):
    _check_one_device(grad, x, r1, r2, adapter_ids)
    return tuple(_contiguous_like(t) if wanted else None for t, wanted in zip((x, r1, r2), output_mask, strict=True))


@_register_fake("rotate_add_rms_norm")
def _(x, residual, weight, r1, r2, adapter_ids, eps, group_size):
    fused_checks.check_add_rms_norm(x, residual, weight, r1, r2, adapter_ids, eps, group_size)
    return _contiguous_like(x), _contiguous_like(x)


@_register_fake("rotate_add_rms_norm_")
def _(x, residual, weight, r1, r2, adapter_ids, eps, group_size):
    fused_checks.check_add_rms_norm(x, residual, weight, r1, r2, adapter_ids, eps, group_size)


@_register_fake("add_rms_norm_backward")
def _(gy, gs, s, weight, eps):
    fused_checks.check_add_rms_norm_grads(gy, gs, s, weight, eps)
    return _contiguous_like(s)


@_register_fake("rotate_rope")
def _(qkv, *args):
    fused_checks.check_rope(qkv, *args)
    return _contiguous_like(qkv)


@_register_fake("rotate_rope_")
def _(qkv, *args):
    fused_checks.check_rope(qkv, *args)


(
    rotate,
    rotate_,
    rotate_backward,
    merge,
    merge_,
    tables,
    rotate_silu_mul,
    rotate_silu_mul_backward,
    rotate_add_rms_norm,
    rotate_add_rms_norm_,
    add_rms_norm_backward,
    rotate_rope,
    rotate_rope_,
) = (getattr(getattr(torch.ops, NAMESPACE), torch_name(op)).default for op in OPS)
