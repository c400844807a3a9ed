"""The public functions on DTensors. Nothing here imports torch.distributed where the program has not."""

import functools
import sys

import torch

from ..backends import registry


def is_sharded(*tensors) -> bool:
    """Whether any of them is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(t, module.DTensor) for t in tensors)


@functools.cache
def register() -> None:
    """Gives DTensor the rules of all ops (rules.py). Imports torch.distributed.tensor; may be called repeatedly.

    Raises ModuleNotFoundError where this PyTorch is built without torch.distributed.
    """
    from .rules import register

    register()


def check(backend: str | None, **tensors) -> None:
    """Refuses what a call with a DTensor cannot have, in the words of the public functions.

    Raises:
        TypeError: a tensor beside it that is none.
        ValueError: a DTensor of another mesh.
        RuntimeError: a backend that was asked for. The shards go to the ops as registered for their device.
    """
    module = sys.modules["torch.distributed.tensor"]
    given = {name: t for name, t in tensors.items() if t is not None}
    sharded = {name: t for name, t in given.items() if isinstance(t, module.DTensor)}
    first, x = next(iter(sharded.items()))
    if plain := [name for name in given if name not in sharded]:
        raise TypeError(
            f"{first} is a DTensor, so {' and '.join(plain)} must be, too: distribute_tensor(t, mesh, [Replicate()]) "
            "makes one of a tensor that every rank has"
        )
    for name, t in sharded.items():
        if t.device_mesh != x.device_mesh:
            raise ValueError(f"{name} must be on the mesh of {first}, {x.device_mesh}, got {t.device_mesh}")
    registered = registry.registered_for(x.device)
    if registry.choose(backend, x.device) is not registered:
        name = registered.__name__.rpartition(".")[2]
        raise RuntimeError(f"shards on {x.device} are computed by the backend {name!r}: no other can be asked for")


def refuse(what: str, **tensors) -> None:
    """Refuses DTensors where ``what`` has no rule for them."""
    for name, t in tensors.items():
        if is_sharded(t):
            raise TypeError(f"{name} is a DTensor, which {what} does not take: call it on the local shards")


def gathered(t: torch.Tensor) -> torch.Tensor:
    """All of a DTensor, on every rank: a collective of the ranks of its mesh. Other tensors as they are."""
    return t.full_tensor() if is_sharded(t) else t


def replicated(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A tensor that every rank has, as a DTensor on the mesh of ``like``; nothing is sent."""
    module = sys.modules["torch.distributed.tensor"]
    placements = [module.Replicate()] * like.device_mesh.ndim
    return module.DTensor.from_local(t, like.device_mesh, placements, run_check=False)


def made_whole(t: torch.Tensor) -> torch.Tensor:
    """A DTensor replicated on its mesh: a collective of its ranks; gradients reach t."""
    module = sys.modules["torch.distributed.tensor"]
    return t.redistribute(placements=[module.Replicate()] * t.device_mesh.ndim)
