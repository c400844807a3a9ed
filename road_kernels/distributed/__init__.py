"""The ops on DTensors (torch.distributed.tensor): which placements are computed where they are.

    rules.py       the rule of each op, for DTensor's dispatcher
    dispatch.py    the public functions on DTensors: what they check and convert
    fsdp.py        what FSDP2 does with parameters

``register()`` gives DTensor the rules. Nobody has to call it: importing road_kernels does where the program has
imported torch.distributed.tensor, and otherwise the first call on a DTensor does. Importing road_kernels
imports nothing of it.
"""

import contextlib
import sys

from ..ops import autograd
from .dispatch import is_sharded, register

__all__ = ["is_sharded", "register"]


def _before_subclass(tensor) -> None:
    if is_sharded(tensor):
        register()


autograd.before_subclass = _before_subclass
if "torch.distributed.tensor" in sys.modules:
    with contextlib.suppress(ImportError):  # a later PyTorch may have moved what rules.py needs: a call will tell
        register()
