"""The methods of PEFT that training.py compares; RoAd both with PEFT's own code and on our kernels."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from ..harness.record import PLAIN
from .models import GROUP_SIZE, LINEARS


@dataclass
class Method:
    name: str
    config: Callable[[], object] | None  # makes PEFT's config; None: no adapter
    use: Callable[[], AbstractContextManager] = nullcontext
    ours: bool = False
    like: str | None = None  # the method whose error bounds this one's
    heavy: bool = False  # left out by --gpu-check


def methods() -> list[Method]:
    """The heavy ones last: what an out-of-memory error leaves behind then disturbs no other."""
    import peft

    from road_kernels.integrations import peft as road_peft

    everywhere = {"target_modules": list(LINEARS)}
    found = [Method(PLAIN, None)]
    for k in (1, 2, 4):
        name = f"RoAd{k}, PEFT"
        config = functools.partial(peft.RoadConfig, variant=f"road_{k}", group_size=GROUP_SIZE, **everywhere)
        found.append(Method(name, config))
        found.append(Method(f"RoAd{k}, PEFT on road_kernels", config, road_peft.enabled, True, name))
        in_place = functools.partial(road_peft.enabled, inplace=True)
        found.append(Method(f"RoAd{k}, PEFT on road_kernels, in place", config, in_place, True, name))
    found.append(Method("LoRA rank 8", functools.partial(peft.LoraConfig, r=8, lora_alpha=8, **everywhere)))
    found.append(Method("IA3", functools.partial(peft.IA3Config, feedforward_modules=[], **everywhere)))
    for size in (16, 2):  # 256 and 2048 blocks of 4096 features, as in the table
        oft = functools.partial(peft.OFTConfig, r=0, oft_block_size=size, **everywhere)
        found.append(Method(f"OFT, blocks of {size}", oft, heavy=True))
    # More than one factor needs PEFT's CUDA extension, which PEFT tries to compile in any case.
    boft = functools.partial(peft.BOFTConfig, boft_block_size=8, boft_n_butterfly_factor=1, **everywhere)
    found.append(Method("BOFT, blocks of 8, one factor", boft, heavy=True))
    return found
