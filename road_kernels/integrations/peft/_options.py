"""What enable() was given. A module attribute, so that torch.compile guards it."""

import torch
from torch import Tensor
from torch.nn.modules._functions import BackwardHookFunction

inplace = False


def may_write(result: Tensor) -> bool:
    """Whether to rotate the output of a base layer in place.

    Not a view with a gradient hook: autograd gives a view a new node when it is written and drops the hook with the old
    one. FSDP2 has its hook on the output of each module that it shards, to gather the weights before the backward pass
    reads them, and an output [B, T, D] is a view of [B T, D]. Not while torch.compile traces either: a write costs
    nothing there inside of a graph, and a copy with the same fault where a graph begins with ``result``. Nor the output
    of a module with a full backward hook, which is a view that autograd lets nobody write, nor while torch.jit traces,
    whose check runs without gradients and expects the same ops.
    """
    return (
        inplace
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        and not (result._backward_hooks and result._is_view())
        and not isinstance(result.grad_fn, BackwardHookFunction._backward_cls)
    )
