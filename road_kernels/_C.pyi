"""The compiled extension (csrc/binding): what the package itself calls. Use the functions of the package instead."""

from typing import Any

from torch import Tensor

# csrc/binding/call.cpp, fused_call.cpp: a whole public call, or NotImplemented where Python must decide; by position.
def apply(
    x: Any, theta: Any, alpha: Any, ids: Any, form: Any, group_size: Any, inplace: Any, overlap: Any, backend: Any, /
) -> Any: ...
def rotate_tables(
    x: Any, r1: Any, r2: Any, ids: Any, form: Any, group_size: Any, inplace: Any, overlap: Any, backend: Any, /
) -> Any: ...
def rotate_silu_mul(x: Any, r1: Any, r2: Any, ids: Any, group_size: Any, backend: Any, /) -> Any: ...
def rotate_add_rms_norm(
    x: Any,
    residual: Any,
    weight: Any,
    r1: Any,
    r2: Any,
    ids: Any,
    eps: Any,
    group_size: Any,
    inplace: Any,
    backend: Any,
    /,
) -> Any: ...
def rotate_rope(
    qkv: Any,
    positions: Any,
    cos_sin_cache: Any,
    r1: Any,
    r2: Any,
    ids: Any,
    num_heads: Any,
    num_kv_heads: Any,
    head_dim: Any,
    is_neox: Any,
    group_size: Any,
    inplace: Any,
    backend: Any,
    /,
) -> Any: ...
def is_valid(x: Any, p: Any, q: Any, ids: Any, form: Any, group_size: Any, batched: bool, /) -> bool: ...
def serve(cpu: bool, cuda: bool, /) -> None: ...
def count_choice(name: str, change: int, /) -> None: ...

# csrc/binding/module.cpp: the ops, below autograd.
def rotate(
    x: Tensor, p: Tensor, q: Tensor, adapter_ids: Tensor | None, form: str, group_size: int, overlap: bool = False
) -> Tensor: ...
def rotate_(
    x: Tensor,
    p: Tensor,
    q: Tensor,
    adapter_ids: Tensor | None,
    form: str,
    group_size: int,
    check_invertible: bool,
    overlap: bool = False,
) -> None: ...
def rotate_backward(
    grad: Tensor,
    saved: Tensor,
    p: Tensor,
    q: Tensor,
    adapter_ids: Tensor | None,
    form: str,
    group_size: int,
    from_output: bool,
    output_mask: list[bool],
    /,
) -> tuple[Tensor, Tensor, Tensor]: ...
def check_inplace(x: Tensor, /) -> None: ...
def build_info() -> dict[str, Any]: ...
