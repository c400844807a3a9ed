"""Gradients, wired once for every backend: an autograd Function around the ops."""

import torch
from torch.autograd import forward_ad

from ..python_fallback import road_tables_backward
from . import formula, schemas

_functorch_active = torch._C._are_functorch_transforms_active


def needs_formula() -> bool:
    """Under torch.func transforms, vmap and forward-mode AD, which do not accept an autograd Function like this one."""
    return _functorch_active() or forward_ad._current_level >= 0


def is_transformed() -> bool:
    """Whether a tensor made now belongs to a tool that transforms or records the program, and means nothing outside it:
    torch.func and vmap, torch.compile and torch.export, torch.jit.trace, and modes as FakeTensorMode or make_fx's.
    """
    return (
        _functorch_active()
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
    )


def divides_in_place(form: str, need_p: bool, need_q: bool) -> bool:
    """Whether a backward from the output divides by a determinant (road_1: by alpha, for its own gradient only)."""
    return need_q or (need_p and form != "road_1")


def backend_of_backward(backend, formula=formula):
    """Gradients that can be differentiated again, or traced by compiled autograd, or the backend's own."""
    if torch.is_grad_enabled():  # create_graph=True
        return formula
    return schemas if torch.compiler.is_compiling() else backend


# forward(ctx, ...) and not setup_context: 6 us a call instead of 21.
class Rotate(torch.autograd.Function):
    """Saves x in its own dtype, or in place only the output; neither if no parameter needs a gradient."""

    @staticmethod
    def forward(ctx, x, p, q, adapter_ids, form, group_size, inplace, backend):
        _, need_p, need_q = ctx.needs_input_grad[:3]
        if inplace:
            backend.rotate_(x, p, q, adapter_ids, form, group_size, divides_in_place(form, need_p, need_q))
            ctx.mark_dirty(x)
            z = x
        else:
            z = backend.rotate(x, p, q, adapter_ids, form, group_size)
        ctx.save_for_backward(x if need_p or need_q else None, p, q, adapter_ids)
        ctx.call = form, group_size, inplace, backend
        return z

    @staticmethod
    def backward(ctx, grad):
        saved, p, q, adapter_ids = ctx.saved_tensors
        form, group_size, from_output, backend = ctx.call
        backend = backend_of_backward(backend)
        saved = grad if saved is None else saved  # only gx is needed, which does not read it
        grads = backend.rotate_backward(
            grad, saved, p, q, adapter_ids, form, group_size, from_output, list(ctx.needs_input_grad[:3])
        )
        return *grads, None, None, None, None, None


class RotateAndAdd(torch.autograd.Function):
    """RoAd + LoRA over h: h rotated, then ``scaling`` low @ b^T added to it, low [N, r] and b [D, r] in h's dtype.

    Saves low, b and the result, from which the backward takes the product of rank r away again.
    """

    @staticmethod
    def forward(ctx, h, theta, alpha, low, b, scaling, form, group_size, backend):
        _, need_theta, need_alpha = ctx.needs_input_grad[:3]
        backend.rotate_(h, theta, alpha, None, form, group_size, divides_in_place(form, need_theta, need_alpha))
        try:
            h.view(-1, h.shape[-1]).addmm_(low, b.t(), alpha=scaling)
        except RuntimeError:  # a slice whose rows lie at no one distance
            h.add_((low @ b.t()).view(h.shape), alpha=scaling)
        ctx.mark_dirty(h)
        ctx.save_for_backward(h if need_theta or need_alpha else None, theta, alpha, low, b)
        ctx.call = scaling, form, group_size, backend
        return h

    @staticmethod
    def backward(ctx, grad):
        z, theta, alpha, low, b = ctx.saved_tensors
        scaling, form, group_size, backend = ctx.call
        backend = backend_of_backward(backend)
        matrix = grad.reshape(-1, grad.shape[-1])
        rotated = grad  # only gh is needed, which does not read it
        if z is not None:
            rotated = torch.addmm(z.reshape(matrix.shape), low, b.t(), alpha=-scaling).view(grad.shape)
        mask = list(ctx.needs_input_grad[:3])
        grads = (None,) * 3
        if any(mask):
            grads = backend.rotate_backward(grad, rotated, theta, alpha, None, form, group_size, True, mask)
        grad_low = scaling * (matrix @ b) if ctx.needs_input_grad[3] else None
        grad_b = scaling * (matrix.t() @ low) if ctx.needs_input_grad[4] else None
        return *grads, grad_low, grad_b, None, None, None, None


class Tables(torch.autograd.Function):
    """Saves the parameters. The backward is the formula, which can be differentiated again."""

    @staticmethod
    def forward(ctx, p, q, form, group_size, dtype, backend):
        ctx.save_for_backward(p, q)
        ctx.call = form, group_size
        return backend.tables(p, q, form, group_size, dtype)

    @staticmethod
    def backward(ctx, gr1, gr2):
        p, q = ctx.saved_tensors
        gp, gq = road_tables_backward(gr1, gr2, p, q, *ctx.call)
        return gp if ctx.needs_input_grad[0] else None, gq if ctx.needs_input_grad[1] else None, None, None, None, None


# Called before an op is dispatched on a subclass of Tensor; road_kernels.distributed, which is above us, sets it.
before_subclass = None


def below(op):
    written = [k for k, a in enumerate(op._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]

    def call(x, *args):
        subclass = type(x) not in (torch.Tensor, torch.nn.Parameter)
        if subclass and before_subclass is not None:
            before_subclass(x)
        with torch._C._AutoDispatchBelowAutograd():
            result = op(x, *args)
        if subclass and written and not torch.compiler.is_compiling():
            for k in written:  # the kernel has told the tensor inside of it only
                torch.autograd.graph.increment_version((x, *args)[k])
        return result

    return staticmethod(call)


# Gradients of the ops themselves, for direct calls of torch.ops.road_kernels, for torch.compile and for DTensors.
class BelowAutograd:
    """The ops as a backend, dispatched below the Autograd key."""

    rotate = below(schemas.rotate)
    rotate_backward = below(schemas.rotate_backward)
    merge = below(schemas.merge)
    tables = below(schemas.tables)
    rotate_ = below(schemas.rotate_)
    merge_ = below(schemas.merge_)


def wants_grad(*tensors) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _rotate_autograd(x, p, q, adapter_ids, form, group_size, overlap=False):
    if needs_formula():
        return formula.rotate(x, p, q, adapter_ids, form, group_size)
    if not wants_grad(x, p, q):
        return BelowAutograd.rotate(x, p, q, adapter_ids, form, group_size, overlap)
    return Rotate.apply(x, p, q, adapter_ids, form, group_size, False, BelowAutograd)


def _rotate_backward_autograd(grad, saved, p, q, *rest):
    return (formula if wants_grad(grad, saved, p, q) else BelowAutograd).rotate_backward(grad, saved, p, q, *rest)


def _rotate_inplace_autograd(x, p, q, *rest):
    if wants_grad(x, p, q):
        raise RuntimeError(
            "road_kernels::rotate_ has no gradient of its own: call road_kernels.rotate(..., inplace=True)"
        )
    return BelowAutograd.rotate_(x, p, q, *rest)


def _tables_autograd(p, q, form, group_size, dtype):
    if needs_formula():
        return formula.tables(p, q, form, group_size, dtype)
    if not wants_grad(p, q):
        return BelowAutograd.tables(p, q, form, group_size, dtype)
    return Tables.apply(p, q, form, group_size, dtype, BelowAutograd)


schemas.LIBRARY.impl("tables", _tables_autograd, "Autograd")
schemas.LIBRARY.impl("rotate", _rotate_autograd, "Autograd")
schemas.LIBRARY.impl("rotate_", _rotate_inplace_autograd, "Autograd")
schemas.LIBRARY.impl("rotate_backward", _rotate_backward_autograd, "Autograd")
