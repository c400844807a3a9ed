"""Writing in place: which tensors may be, and refusing the others before anything is written."""

from typing import NoReturn

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from .extension import EXTENSION


def check_inplace(x: Tensor, name: str = "x") -> None:
    if x.requires_grad and x.is_leaf and torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} is a leaf tensor that requires grad, so it cannot be written in place: use inplace=False"
        )
    if not torch.compiler.is_compiling() and x.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{name} was made in inference mode, so it cannot be written in place outside of it: use inplace=False"
        )
    if not x.is_contiguous() and not torch.compiler.is_compiling() and _may_overlap_itself(x):
        raise ValueError(
            f"{name} of shape {list(x.shape)} and strides {list(x.stride())} may hold several elements in one place "
            "(it was expanded, or made by as_strided or unfold), so it cannot be written in place: use inplace=False"
        )


def check_recorded_inplace(x: Tensor, name: str = "x") -> None:
    """Refuses a write that autograd cannot record; autograd would refuse it only after the kernel has written."""
    try:
        if EXTENSION is not None:
            EXTENSION.check_inplace(x)
        elif x._is_view():
            x.narrow(-1, 0, 0).zero_()  # writes nothing, but is refused where writing all of x would be
    except RuntimeError as error:
        raise RuntimeError(f"{name} cannot be written in place: use inplace=False ({error})") from None


def check_not_shared(x: Tensor, *parameters: Tensor, name: str = "x") -> None:
    """Refuses writing x while a kernel reads parameters from the same memory.

    Not while it is traced: torch.compile has no addresses, and reads before it writes whatever shares memory.
    """
    if not torch.compiler.is_compiling() and any(shares_memory(x, t) for t in parameters):
        refuse_shared(name)


def check_apart(x: Tensor, y: Tensor, names: tuple[str, str]) -> None:
    """Refuses writing two tensors that overlap."""
    if not torch.compiler.is_compiling() and shares_memory(x, y):
        raise ValueError(
            f"{names[1]} shares memory with {names[0]}, so both cannot be written in place: use inplace=False"
        )


def refuse_shared(name: str) -> NoReturn:
    raise ValueError(f"{name} shares memory with its parameters, so it cannot be written in place: use inplace=False")


def shares_memory(a: Tensor, b: Tensor) -> bool:
    """Whether the bytes from a's first element to its last and those of b overlap."""
    if a.numel() == 0 or b.numel() == 0 or not _share_storage(a, b):
        return False

    def span(t):
        first = t.storage_offset()
        last = first + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        return first * t.element_size(), (last + 1) * t.element_size()

    (a_first, a_end), (b_first, b_end) = span(a), span(b)
    return a_first < b_end and b_first < a_end


def _share_storage(a: Tensor, b: Tensor) -> bool:
    if torch._C._is_alias_of(a, b):
        return True
    if a.is_meta or b.is_meta or is_fake(a) or is_fake(b):  # which have no addresses, or all the same
        return False
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()  # two views of NumPy's memory, for instance


def _may_overlap_itself(x: Tensor) -> bool:
    """False if each stride, smallest first, steps over all that the smaller ones reach."""
    reach = 0
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size == 0:
            return False
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False
