"""Which calls a mixed batch needs: the samples of equal group_size, and the place of each one's adapter."""

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from ...ops.autograd import is_transformed
from ...ops.checks import VARIANTS
from ...serving import bank_ids

NO_ADAPTER = "__base__"


class Run(NamedTuple):
    """Adapters of a layer that share a group_size: one call."""

    group_size: int
    variant: str  # the widest: every road_1 is a road_2, and every road_2 a road_4
    names: dict[str, list[str]]  # variant -> its adapters
    ids: Tensor  # int32 [B]: the place of each sample's adapter in all ``names``, -1 for none


class Batch(list):
    """The adapter names of a batch, as a list, with the runs of a layer for them.

    ``used``: runs of the adapters in the batch. ``every``: of all adapters of the layer, so that names are nothing but
    values of ids: a compiled layer takes them as an input, where it would compile itself anew for other names.
    """

    def __init__(self, layer, names: list[str], device: torch.device):
        super().__init__(names)
        self.group_size, self.variant, self.device = dict(layer.group_size), dict(layer.variant), device
        self.used = runs(layer, dict.fromkeys(names), names, device)
        self.every = runs(layer, layer.group_size, names, device)

    def is_for(self, layer, names: list[str], device: torch.device) -> bool:
        return (
            self == names
            and self.group_size == layer.group_size
            and self.variant == layer.variant
            and self.device == device
        )


def runs(layer, adapters, names: list[str], device: torch.device) -> list[Run]:
    """The runs of ``adapters`` for samples with the adapters ``names``."""
    here = [name for name in adapters if name != NO_ADAPTER and name in layer.group_size]
    made = []
    for group_size in dict.fromkeys(layer.group_size[name] for name in here):
        of_variant: dict[str, list[str]] = {}
        for name in here:
            if layer.group_size[name] == group_size:
                of_variant.setdefault(layer.variant[name], []).append(name)
        place = {name: index for index, name in enumerate(name for some in of_variant.values() for name in some)}
        slots = [place.get(name, -1) for name in names]
        if is_transformed():
            ids = torch.tensor(slots, dtype=torch.int32, device=device)
        else:
            ids = bank_ids.to_device(slots, None, device)
        made.append(Run(group_size, max(of_variant, key=VARIANTS.index), of_variant, ids))
    return made


# The latest batches. The layers of a model share them, so that names are looked up and ids copied to the device once.
_latest: list[Batch] = []
_MOST = 8
# Those that a CUDA graph reads: as long as the layer, whose parameters the graph reads too.
_captured: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def batch_of(layer, names: list[str], device: torch.device) -> Batch:
    """The batch of ``names`` for this layer.

    Nothing that is made under a transform of PyTorch is kept, and nothing that was kept is used there: a tensor of
    functionalization, vmap, a tracer or FakeTensorMode means nothing outside, and a real one may mean nothing inside.

    Raises:
        RuntimeError: a CUDA graph is being captured, and this batch has not run before.
    """
    global _latest
    if is_transformed():
        return Batch(layer, names, device)
    captures = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    for batch in (*_latest, *_captured.get(layer, ())) if captures else _latest:
        if batch.is_for(layer, names, device):
            if captures and not any(batch is kept for kept in _captured.setdefault(layer, [])):
                _captured[layer].append(batch)
            return batch
    if captures:
        raise RuntimeError(
            f"the mixed batch {_shortened(names)} must run once before a CUDA graph captures it: its adapter_ids are "
            "copied to the device then, which a graph cannot record"
        )
    with torch.inference_mode(False):  # inference tensors could not be saved by a later call that records gradients
        batch = Batch(layer, list(names), device)
    _latest = [batch, *_latest[: _MOST - 1]]
    return batch


def _shortened(names: list[str]) -> str:
    return str(names) if len(names) <= 8 else f"{names[:8]} and {len(names) - 8} more"
