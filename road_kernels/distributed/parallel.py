"""Tensor parallel layers with RoAd: styles for torch.distributed.tensor.parallel.parallelize_module.

    from road_kernels.distributed.parallel import RoadParallel, RoadReplicated

    parallelize_module(model, mesh, {
        "layers.*.attention.q_proj": RoadParallel(ColwiseParallel()),
        "layers.*.attention.o_proj": RoadParallel(RowwiseParallel()),
    })

They are for a module that holds a linear layer (``base_layer``, as PEFT's layers do), the parameters of adapters for
its output, [P] each, and ``group_size``, an int or a dict of them by adapter. The adapters' forward, merge and unmerge
are the module's own, on DTensors.
"""

import copy

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel

from .dispatch import register


class RoadParallel(ParallelStyle):
    """The style of the base layer, with the adapters on its output.

    Column-parallel: each rank rotates its own features by its own part of the parameters, before the output is brought
    to ``output_layouts``; nothing more is sent. Row-parallel: the parameters are replicated and rotate what the style
    reduces to, all of it (Replicate) or each rank's own tokens (Shard(1), sequence parallelism), which costs an
    all-reduce of the gradient of each parameter.

    Args:
        style: ColwiseParallel or RowwiseParallel. Its ``output_layouts`` and ``use_local_output`` are of the module.
        base: the attribute with the linear layer.

    Raises:
        TypeError: another style.
        ValueError: a column-parallel layer whose features cannot be sharded at multiples of every group_size.
    """

    def __init__(self, style: ParallelStyle, *, base: str = "base_layer"):
        super().__init__()
        if not isinstance(style, (ColwiseParallel, RowwiseParallel)):
            raise TypeError(f"style must be ColwiseParallel or RowwiseParallel, got {type(style).__name__}")
        self.style, self.base = style, base

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        register()
        columns = isinstance(self.style, ColwiseParallel)
        base, inner = getattr(module, self.base), copy.copy(self.style)
        inner.use_local_output = False
        if columns:
            _check_groups(module, base, device_mesh)
            inner.output_layouts = (Shard(-1),)
        setattr(module, self.base, inner._apply(base, device_mesh))
        _distribute(module, base, device_mesh, Shard(0) if columns else Replicate())
        wanted, is_local = self.style.output_layouts, self.style.use_local_output

        def output(_module, _args, result: DTensor):
            result = result.redistribute(placements=wanted)
            return result.to_local() if is_local else result

        module.register_forward_hook(output)
        return module


class RoadReplicated(ParallelStyle):
    """A layer that every rank computes whole, and of whose output each uses a part of its own: replicated kv heads.

    The output is a plain tensor. Backward adds up the ranks' gradients, of the input (an all-reduce) and of each
    parameter of the adapters. The base layer stays as it is: its own gradients, if it has any, are not added up.
    """

    def __init__(self, *, base: str = "base_layer"):
        super().__init__()
        self.base = base

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        register()
        base, whole = getattr(module, self.base), [Replicate()]
        _distribute(module, base, device_mesh, *whole)
        base.register_forward_hook(lambda _m, _a, out: DTensor.from_local(out, device_mesh, whole, run_check=False))
        module.register_forward_hook(lambda _m, _a, out: out.to_local(grad_placements=[Partial()]))
        return module


def _check_groups(module: nn.Module, base: nn.Linear, mesh: DeviceMesh) -> None:
    sizes = module.group_size
    for group_size in sizes.values() if isinstance(sizes, dict) else [sizes]:
        if base.out_features % (mesh.size() * group_size):
            raise ValueError(
                f"{base.out_features} features over {mesh.size()} ranks are not sharded at multiples of group_size "
                f"{group_size}: make the layer row-parallel or replicated, or train with a smaller group_size"
            )


def _distribute(module: nn.Module, base: nn.Module, mesh: DeviceMesh, placement: Placement) -> None:
    """Makes DTensors of the adapters' parameters, whose gradients are added up at once: an optimizer may not do it."""
    of_base = set(base.modules())
    for owner in module.modules():
        if owner in of_base:
            continue
        for name, parameter in list(owner.named_parameters(recurse=False)):
            sharded = distribute_tensor(parameter.detach(), mesh, [placement])
            sharded = nn.Parameter(sharded, requires_grad=parameter.requires_grad)
            if parameter.requires_grad:
                sharded.register_hook(lambda grad: _as_parameter(grad, [placement]))
            owner.register_parameter(name, sharded)


def _as_parameter(grad: torch.Tensor, placements: list[Placement]) -> torch.Tensor:
    return grad.redistribute(placements=placements) if isinstance(grad, DTensor) else grad
